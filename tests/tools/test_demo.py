"""The demo in miniature: its own stages and configs, with fewer steps and draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from test_configs import CONFIGS, LARGEST, miniature

from lightning_attr.cli import FinishedError
from tools import demo

FEWER = {**LARGEST, "batch_size": 64, "top": demo.PLANTED}  # what is removed stays as it is


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runs_all_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("benchmarks").symlink_to(CONFIGS.parent / "benchmarks")
    for folder in ("demo", "methods"):
        (Path("configs") / folder).mkdir(parents=True)
        for config in (CONFIGS / folder).glob("*.yaml"):
            small = miniature(yaml.safe_load(config.read_text()), FEWER)
            (Path("configs") / folder / config.name).write_text(yaml.safe_dump(small))
    demo.main([])
    printed = capsys.readouterr().out
    assert all(words in printed for words in demo.METHODS.values())
    summary = json.loads((demo.ROOT / "summary.json").read_text())
    for measured in ("first_artist", "recall", "loss_change"):
        assert summary[measured].keys() == demo.METHODS.keys()
    assert summary["recall"]["random"] == demo.PLANTED / 64
    assert all(0 <= recall <= 1 for recall in summary["recall"].values())
    without = json.loads((demo.ROOT / "leave_k_out/artist/manifest.json").read_text())
    assert demo.ARTIST in json.dumps(without)
    assert (demo.ROOT / "report.html").exists()
    for stage in (
        demo.prepare,
        lambda: demo.cli("fit", "train"),
        lambda: demo.cli("predict", "attribute", "../methods/similarity_latent"),
    ):  # as a second start finds them
        with pytest.raises(FinishedError):
            stage()
