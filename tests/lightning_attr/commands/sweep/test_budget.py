"""How many subsets fit into a time."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from miniature import Project
from sweeps import Miniature

from datamodules.store import Store
from lightning_attr.artifacts.records import write_record
from lightning_attr.commands.sweep.budget import half_width, seconds_of
from lightning_attr.commands.sweep.command import main, parsed_options
from lightning_attr.errors import UserError
from lightning_attr.runs.folder import seconds_taken

#: Half widths as docs/reading-the-numbers.md has them, by queries and subsets.
MEASURED = {
    (5, 8): 0.36, (5, 32): 0.18, (10, 16): 0.19, (10, 32): 0.12, (20, 8): 0.21, (20, 16): 0.13, (20, 32): 0.10,
    (40, 32): 0.08, (40, 48): 0.06,
}  # fmt: skip


@pytest.fixture
def sweep(project: Project, tmp_path: Path) -> Miniature:
    return Miniature(project, tmp_path / "miniature")


@pytest.mark.parametrize(
    ("text", "seconds"), [("8h", 28800), ("90m", 5400), ("1h30m", 5400), ("1d12h", 129600), ("45s", 45)]
)
def test_times(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "h", "0h", "8 h", "-1h", "30m1h", "1.5h", "banana", "9999999h", "8h\n"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UserError, match=r"budget: found .*, expected a time such as 8h or 1h30m"):
        seconds_of(text)


def test_widths_are_those_that_were_measured() -> None:
    for (queries, subsets), width in MEASURED.items():
        assert half_width(queries, subsets) == pytest.approx(width, rel=0.14), (queries, subsets)


def done(sweep: Miniature, **seconds: float) -> None:
    """Leave the status of entries that took so long, as a sweep that was stopped leaves it."""
    for name, each in seconds.items():
        path = sweep.entry(name.replace("__", "/").replace("_", "-"))
        path.mkdir(parents=True)
        write_record(
            path / "status.json", {"state": "done", "error": "", "seconds": each, "where": "", "since": 0.0, "log": ""}
        )


def test_what_fits_beside_what_is_done(sweep: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    """Three entries took 20 s each: in 10 minutes two workers do 60, of which two are the others that are left."""
    args = sweep.args("--budget", "10m")
    done(sweep, subset__0__seed_0=10, subset__0__seed_1=20, random__k_3__0=30)
    main(args)
    said = capsys.readouterr().out
    assert "an entry takes 20 s, the mean of 3 that are done" in said
    count = (2 + 60 - 2) // 2
    assert f"in 10m with 2 workers: {count} subsets under 2 training seeds, beside 2 other entries" in said
    assert f"about ±{half_width(len(Store(sweep.project.queries)), count):.2f}" in said
    assert not (sweep.folder / "sweep.json").exists()  # nothing is begun
    line = next(line for line in said.splitlines() if line.startswith("next: "))
    words = shlex.split(line.removeprefix("next: lightning-attr sweep "))
    assert json.loads(words[-1]) == {"count": count, "fraction": 0.5, "seeds": 2}
    assert parsed_options(words).sweep.subsets.count == count


def test_before_anything_is_done_the_original_says_it(sweep: Miniature, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = seconds_taken(sweep.project.checkpoint.parent.parent)
    assert seconds is not None
    sweep.settings = {"subsets": {"count": 2, "fraction": 0.25, "seeds": 1}}
    main(sweep.args("--budget", "8h", "--workers", "1"))
    said = capsys.readouterr().out
    assert "as long as the original's training" in said
    assert f"in 8h with 1 workers: {int(8 * 3600 / max(seconds, 1)) - 3:,} subsets" in said
    assert "nobody will know the ceiling" in said
    assert '"fraction": 0.25' in said


def test_too_little_time(sweep: Miniature) -> None:
    done(sweep, subset__0__seed_0=300)
    with pytest.raises(
        UserError, match=r"an entry takes 300 s, and 3 are to be run beside .* at least 25m for 4 subsets"
    ):
        main(sweep.args("--budget", "10m"))


def test_an_original_of_unknown_time(sweep: Miniature) -> None:
    (sweep.root / "alone").mkdir(parents=True)
    (sweep.root / "alone/x.ckpt").write_bytes(sweep.project.checkpoint.read_bytes())
    sweep.settings = {"original": str(sweep.root / "alone/x.ckpt")}
    with pytest.raises(UserError, match="run an entry first, by --index 0"):
        main(sweep.args("--budget", "8h"))
