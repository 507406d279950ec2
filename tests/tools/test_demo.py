"""The demo in miniature: its own stages and configs, with fewer steps and draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from test_configs import CONFIGS, LARGEST, miniature

from lightning_attr.cli import FinishedError
from tools import demo

FEWER = {**LARGEST, "batch_size": 100, "top": 16}  # what is removed stays as it is


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runs_all_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("demo", "methods"):
        (Path("configs") / folder).mkdir(parents=True)
        for config in (CONFIGS / folder).glob("*.yaml"):
            small = miniature(yaml.safe_load(config.read_text()), FEWER)
            (Path("configs") / folder / config.name).write_text(yaml.safe_dump(small))
    demo.main([])
    printed = capsys.readouterr().out
    assert all(words in printed for words in demo.METHODS.values())
    summary = json.loads((demo.ROOT / "summary.json").read_text())
    assert summary["recall_at_10_chance"] == 10 / 400
    assert all(0 <= summary[f"recall_at_10{name}"] <= 10 / 12 for name in ("", "_influence", "_similarity"))
    assert summary["loss_change"].keys() == {"top", "influence", "similarity", "random"}
    assert (demo.ROOT / "report.html").exists()
    for stage in (
        demo.prepare,
        demo.unlearn,
        lambda: demo.cli("predict", "attribute", "../methods/default"),
    ):  # as a second start finds them
        with pytest.raises(FinishedError):
            stage()
