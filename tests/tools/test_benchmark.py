import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from miniature import DENOISER

from tools.benchmark import device
from tools.benchmark.case import build_case
from tools.benchmark.command import main
from tools.benchmark.device import Load, Scorer
from tools.benchmark.timing import Sizes, ratio

TINY = Sizes(
    latents=200,
    texts=6,
    records=40,
    trained=70,
    epochs=1,
    swept=8,
    images=4,
    retrained=2,
    steps=2,
    repeats=1,
    scored=4,
    compared=4,
    featured=2,
    timesteps=1,
    grown=8,
    method_repeats=1,
)

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
    "prepare": {
        "prepare_images_per_s",
        "ingest_folder_vs_bare",
        "ingest_metadata_vs_bare",
        "ingest_parquet_vs_bare",
        "ingest_webdataset_vs_bare",
    },
    "sweep": {"grouped_vs_separate", "grouped_vs_alone_batch8"},
    "methods": {
        "one_pass_vs_sweeps",
        "time_100_vs_1",
        "one_pass_vs_kronfluence",
        "features_vs_traker",
        "feature_memory_vs_traker",
        "features_vs_vmap",
        "feature_memory_vs_vmap",
        "time_growth_8x",
        "topk_memory_growth_8x",
    },
}

PEERS = {"traker": "trak"}
"""Packages of peers that are imported under another name."""


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
        pytest.param("train", marks=pytest.mark.slow),
        pytest.param("loss_sweep", marks=pytest.mark.slow),
        pytest.param("prepare", marks=pytest.mark.slow),
        pytest.param("sweep", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
        pytest.param("methods", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
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
            assert find_spec(PEERS.get(name := key.rpartition("_vs_")[2], name)) is None
            assert "is not installed" in table
        else:
            assert math.isfinite(value)
            assert value > 0


@pytest.mark.slow
def test_device_figures_on_a_cpu(tmp_path: Path) -> None:
    """The part that measures an accelerator, at work with a tiny network and without a compiler."""
    case = build_case(samples=6, queries=3, timesteps=1, config=DENOISER, tokens=5)
    load = Load(case, batch=4, matrix=16, repeats=1, backend="eager")
    figures = {figure.name: figure.value for figure in device.figures(load, torch.device("cpu"))}
    runs = [f"device_{dtype}{compiled}" for dtype in ("fp32", "bf16") for compiled in ("", "_compiled")]
    kinds = ("samples_per_s", "peak_share", "mscoco_minutes")
    assert figures.keys() == {f"{run}_{kind}" for run in runs for kind in kinds} | {"device_bf16_spearman"}
    assert all(value is not None and math.isfinite(value.median) for value in figures.values())
    agreement = figures["device_bf16_spearman"]
    assert agreement is not None
    assert agreement.median > 0.5


@pytest.mark.slow
def test_compiled_network_gives_the_same_scores() -> None:
    """What is compiled leaves the layers alone whose gradients are taken."""
    case = build_case(samples=4, queries=2, timesteps=1, config=DENOISER, tokens=5)
    load = Load(case, batch=4, backend="eager")
    plain, compiled = (Scorer(load, torch.device("cpu"), torch.float32, which).scores for which in (False, True))
    assert plain.std() > 0
    torch.testing.assert_close(plain, compiled, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))


def test_unknown_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["reed"])
    assert "'reed'" in capsys.readouterr().err
