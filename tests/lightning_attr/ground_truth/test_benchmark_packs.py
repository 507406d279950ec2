"""The packs that come with the project are whole, and are those of the shipped sweeps."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml

from lightning_attr.commands.evaluate import main
from lightning_attr.ground_truth.pack import Pack

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module", params=["coco64", "shapes", "hands"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def path(name: str) -> Path:
    return ROOT / "benchmarks" / name / "pack"


def test_holds_the_entries_of_the_sweep(name: str, path: Path) -> None:
    pack = Pack.load(path)
    sweep = yaml.safe_load((ROOT / "configs" / name / "sweep.yaml").read_text())["sweep"]
    random, subsets = sweep["random"], sweep["subsets"]
    top = sweep.get("top", {"scores": {}, "queries": [], "k": []})
    groups = sweep.get("groups", {"names": [], "seeds": 1})
    removals = {
        **dict.fromkeys(top["scores"], len(top["queries"]) * len(top["k"]) * top.get("seeds", 1)),
        "group": len(groups["names"]) * groups["seeds"],
    }
    assert Counter(model.method for model in pack.models) == {
        **{method: count for method, count in removals.items() if count},
        "random": len(random["k"]) * random["count"] * random.get("seeds", 1),
        "subset": subsets["count"] * subsets["seeds"],
        "full": sweep["full"]["seeds"],
    }
    assert pack.settings["draws"]["timesteps"] == sweep["evaluation"]["timesteps"] == pack.losses.shape[2]
    assert torch.isfinite(pack.losses).all()
    if base := pack.settings.get("base"):  # as it is named from the project's root
        assert not Path(base).is_absolute()
        assert (ROOT / base).is_file()
    removed = (~pack.masks).sum(1).tolist()
    assert removed == [model.k for model in pack.models]


def test_says_what_the_results_page_says(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(path)])
    printed = capsys.readouterr().out
    page = (ROOT / "docs/results.md").read_text()
    (ceiling,) = [line for line in printed.splitlines() if "ceiling of LDS" in line]
    assert ceiling.split("│")[2].strip() in page
