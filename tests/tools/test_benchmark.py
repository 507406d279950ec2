import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest

from tools.benchmark.command import main
from tools.benchmark.timing import Sizes, ratio

TINY = Sizes(latents=200, texts=6, records=40, trained=70, epochs=1, swept=8, images=4, retrained=2, steps=2, repeats=1)

KEYS = {
    "read": {
        "read_sequential_vs_memmap",
        "read_random_vs_memmap",
        "read_sequential_vs_memmap_text",
        "read_random_vs_memmap_text",
    },
    "peers": {"read_vs_litdata", "read_vs_webdataset"},
    "train": {"train_step_vs_bare"},
    "loss_sweep": {"sweep_vs_bare"},
    "prepare": {"prepare_images_per_s"},
    "sweep": {"grouped_vs_separate", "grouped_vs_alone_batch8"},
}


def test_ratio_pairs_neighbours() -> None:
    """A slow moment that falls on both sides of a pair changes nothing."""
    ours, theirs = iter([9.0, 1.0, 10.0, 1.0]), iter([9.0, 2.0, 20.0, 2.0])
    spread = ratio(lambda: next(ours), lambda: next(theirs), repeats=3)
    assert (spread.lower, spread.median, spread.upper) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    "group",
    [
        "read",
        "peers",
        "train",
        "loss_sweep",
        "prepare",
        pytest.param("sweep", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_figures_of_a_group(group: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "figures.json"
    main([group, "--json", str(kept)], TINY)
    figures = json.loads(kept.read_text())
    assert figures.keys() == KEYS[group]
    table = capsys.readouterr().out
    for key, value in figures.items():
        assert key in table
        if value is None:
            assert find_spec(key.removeprefix("read_vs_")) is None
            assert "is not installed" in table
        else:
            assert math.isfinite(value)
            assert value > 0


def test_unknown_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["reed"])
    assert "'reed'" in capsys.readouterr().err
