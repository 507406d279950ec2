"""Attribution: chunks that outlive a stop, the top of each query, candidates, ensembles, mistakes."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from attribution_methods import TextGradient
from miniature import Project
from stopped import Moment, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from two_ranks import run_both

from datamodules import Store
from lightning_attr.artifacts import load_tensors, save_tensors
from lightning_attr.artifacts.chunks import Chunks
from lightning_attr.artifacts.scores import Scores, TopScores, load_scores
from lightning_attr.cli import run_stage
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError
from lightning_attr.methods.base import Context
from lightning_attr.models import load

QUERIES = [40, 43, 44]


@pytest.fixture(scope="module")
def checkpoints(stores: Project, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Checkpoints of two models."""
    root = tmp_path_factory.mktemp("models")
    for rate in ("0.001", "0.1"):
        run_stage(stores.args("train", root / rate, trainer__max_steps=2, model__init_args__learning_rate=rate))
    return [root / rate / "checkpoints/last.ckpt" for rate in ("0.001", "0.1")]


def command(stores: Project, folder: Path, method: str, *checkpoints: Path, **overrides: Any) -> list[str]:
    """An attribution of three validation images in batches of 2: ten batches make five chunks of 8 samples."""
    settings = {
        "model__init_args__queries": stores.val_store,
        "model__init_args__method": method if "." in method else f"attribution_methods.{method}",
        "model__init_args__checkpoints": [str(path) for path in checkpoints],
        "model__init_args__query_ids": QUERIES,
        "data__init_args__batch_size": 2,
        "trainer__logger": "false",  # pictures take longer than the rest
    }
    return stores.args("similarity", folder, **{**settings, **overrides})


def scored(args: list[str]) -> Scores:
    run_stage(args)
    return Scores.load(Path(args[args.index("--trainer.default_root_dir") + 1]) / "scores.safetensors")


@pytest.fixture(scope="module")
def straight(stores: Project, checkpoints: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """Scores of a run without a stop."""
    return scored(command(stores, tmp_path_factory.mktemp("straight") / "run", "TextGradient", checkpoints[0]))


def test_a_method_may_take_gradients(stores: Project, checkpoints: list[Path], straight: Scores) -> None:
    def batch(store: Store, ids: list[int]) -> dict[str, torch.Tensor]:
        positions = store.positions(ids)
        return {name: torch.from_numpy(store.read(name, positions)) for name in ("latent", "text")}

    store, queries, method = Store(stores.store), Store(stores.val_store), TextGradient()
    method.prepare(Context(batch(queries, QUERIES), queries, store, load(checkpoints[0]), torch.device("cpu")))
    (expected,) = method.score([method.measure(batch(store, store.ids.tolist()))])
    torch.testing.assert_close(straight.scores, expected, rtol=1e-4, atol=1e-6)
    assert straight.scores.std() > 0
    assert straight.query_id.tolist() == QUERIES
    assert straight.sample_id.tolist() == store.ids.tolist()
    assert (straight.method, set(straight.settings)) == ("textgradient", {"digests", "precision", "samples"})
    assert straight.settings["digests"] == {
        "store": store.digest, "queries": queries.digest, "checkpoints.0": file_digest(checkpoints[0])
    }  # fmt: skip


MOMENTS = {
    "in the third chunk": Moment("lightning_attr.tasks:Attribution.predict_step", 11),
    "before a chunk is written": Moment("lightning_attr.artifacts.chunks:save_tensors", 3),
    "before the scores": Moment("lightning_attr.tasks:Attribution.on_predict_epoch_end", 1, signal.SIGTERM),
    "before the chunks are deleted": Moment("lightning_attr.artifacts.chunks:Passes.delete", 1),
    "before the run is finished": Moment("lightning_attr.runs.folder:RunFolder.finish", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        "in the third chunk",
        "before the run is finished",
        "before a chunk is written",
        "before the scores",
        "before the chunks are deleted",
    ],
)
def test_stopped_and_resumed(
    stores: Project, checkpoints: list[Path], straight: Scores, tmp_path: Path, moment: str
) -> None:
    args = command(stores, tmp_path / "run", "TextGradient", checkpoints[0])
    assert run(args, tmp_path / "log", MOMENTS[moment]).status not in (0, 1)
    run_stage(args)
    resumed = Scores.load(tmp_path / "run/scores.safetensors")
    assert torch.equal(resumed.scores, straight.scores)
    assert torch.equal(resumed.sample_id, straight.sample_id)
    assert resumed.settings == straight.settings
    assert not (tmp_path / "run/chunks").exists()


@pytest.fixture
def stopped(stores: Project, tmp_path: Path) -> tuple[list[str], list[Path]]:
    """The command of a run that was killed in its third chunk, and the two chunks that it left."""
    args = command(stores, tmp_path / "run", "ByTens")
    run(args, tmp_path / "log", MOMENTS["in the third chunk"])
    chunks = sorted((tmp_path / "run/chunks").glob("*.safetensors"))
    assert [path.stem for path in chunks] == ["000000000-000000007", "000000008-000000015"]
    return args, chunks


def rewrite(chunk: Path, **changes: object) -> None:
    """Put sevens into a chunk, so that it shows whether it is used."""
    tensors, settings = load_tensors(chunk)
    save_tensors(chunk, "chunk", {"rows": 7 + 0 * tensors["rows"]}, {**settings, **changes})


def test_finished_chunks_are_not_measured_again(stopped: tuple[list[str], list[Path]]) -> None:
    args, chunks = stopped
    rewrite(chunks[1])
    scores = scored(args).scores
    assert (scores == 7).all(0).nonzero().flatten().tolist() == list(range(8, 16))


def test_chunks_of_other_settings_are_not_used(stopped: tuple[list[str], list[Path]]) -> None:
    args, chunks = stopped
    rewrite(chunks[0], query_id=[41])
    rewrite(chunks[1], settings={"digests": {}})
    assert not (scored(args).scores == 7).any()


def test_a_damaged_chunk_is_measured_again(
    stopped: tuple[list[str], list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    args, chunks = stopped
    for chunk in chunks:
        rewrite(chunk)
    chunks[0].write_bytes(chunks[0].read_bytes()[:-3])
    scores = scored(args).scores
    assert (scores == 7).all(0).nonzero().flatten().tolist() == list(range(8, 16))
    assert f"{chunks[0]}: damaged" in capsys.readouterr().err


@pytest.mark.parametrize("moment", [2, 7])
def test_passes_are_resumed(stores: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """Stopped in the first pass or in the second, a run goes on with the chunk that is missing."""
    write, written = Chunks.write, []

    def counted(self: Chunks, index: int, rows: torch.Tensor) -> None:
        if len(written) == moment:
            raise KeyboardInterrupt
        written.append((self.folder.name, index))
        write(self, index, rows)

    args = command(stores, tmp_path / "run", "InTwoPasses")
    with monkeypatch.context() as patched:
        patched.setattr(Chunks, "write", counted)
        with pytest.raises(KeyboardInterrupt):
            run_stage(args)
        moment = 10
        scores = scored(args)
    assert written == [(name, index) for name in ("pass-00000", "pass-00001") for index in range(5)]
    expected = torch.arange(40) - 2 * (torch.tensor(QUERIES) % 2 * 10)[:, None] * (torch.arange(40) // 10)
    assert torch.equal(scores.scores, expected.float())
    assert not (tmp_path / "run/chunks").exists()


def test_a_file_that_the_method_reads_counts(stores: Project, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    method = {"model__init_args__method__init_args__reads": tmp_path / "file"}
    digests = scored(command(stores, tmp_path / "run", "ByTens", **method)).settings["digests"]
    assert digests["reads"] == file_digest(tmp_path / "file")


@pytest.mark.slow
def test_two_ranks_and_one_that_is_killed(
    stores: Project, checkpoints: list[Path], straight: Scores, tmp_path: Path
) -> None:
    args = command(stores, tmp_path / "run", "TextGradient", checkpoints[0])
    run_both(args, tmp_path / "log", {1: Moment("lightning_attr.artifacts.chunks:save_tensors", 2)})
    assert [one.status for one in run_both(args, tmp_path / "log")] == [0, 0]
    assert torch.equal(Scores.load(tmp_path / "run/scores.safetensors").scores, straight.scores)
    # One chunk, so that a rank has nothing to do.
    args = command(stores, tmp_path / "one", "ByTens", data__init_args__batch_size=16)
    assert [one.status for one in run_both(args, tmp_path / "log")] == [0, 0]
    assert Scores.load(tmp_path / "one/scores.safetensors").scores.shape == (3, 40)


@pytest.mark.parametrize("k", [1, 13, 40])
def test_topk_is_the_head_of_all_scores(stores: Project, tmp_path: Path, k: int) -> None:
    whole = scored(command(stores, tmp_path / "all", "ByTens"))
    run_stage(command(stores, tmp_path / "top", "ByTens", model__init_args__topk=k))
    top = load_scores(tmp_path / "top/scores.safetensors")
    assert isinstance(top, TopScores)
    assert top.index.shape == (3, k)
    assert top.query_id.tolist() == QUERIES
    for query in QUERIES:
        assert top.ranked(query, k) == whole.ranked(query, k)
    assert (top.method, top.settings) == (whole.method, whole.settings)


def test_candidates(stores: Project, tmp_path: Path) -> None:
    """Retrieve by one method, score the rest by another."""
    retrieved = scored(command(stores, tmp_path / "first", "lightning_attr.methods.Random"))
    subset = f"{{scores: {tmp_path / 'first/scores.safetensors'}, top: 3}}"
    found = scored(command(stores, tmp_path / "second", "ByTens", data__init_args__subset=subset))
    assert found.sample_id.tolist() == sorted({sample for query in QUERIES for sample in retrieved.top(query, 3)})
    assert 3 < len(found.sample_id) <= 9
    assert found.settings["samples"]["count"] == len(found.sample_id)
    assert found.settings["samples"]["ids"] != retrieved.settings["samples"]["ids"]
    assert torch.equal(found.scores[0], (found.sample_id // 10).float())


def test_an_ensemble_is_the_mean(stores: Project, checkpoints: list[Path], straight: Scores, tmp_path: Path) -> None:
    second = scored(command(stores, tmp_path / "second", "TextGradient", checkpoints[1]))
    both = scored(command(stores, tmp_path / "both", "TextGradient", *checkpoints))
    torch.testing.assert_close(both.scores, (straight.scores + second.scores) / 2)
    assert not torch.allclose(straight.scores, second.scores)
    assert both.settings["digests"]["checkpoints.1"] == file_digest(checkpoints[1])


def test_the_top_images_are_in_tensorboard(stores: Project, tmp_path: Path) -> None:
    run_stage(command(stores, tmp_path / "run", "ByTens", model__init_args__topk=2, trainer__logger="true"))
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert events.Tags()["images"] == [f"attribution/{query}" for query in QUERIES]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__init_args__topk": 0}, "model.topk: found 0, expected 1 to 40"),
        ({"model__init_args__topk": 41}, "model.topk: found 41, expected 1 to 40"),
        ({"model__init_args__query_ids": "[43, 43]"}, r"model.query_ids: found \[43, 43\], expected .* each once"),
        ({"model__init_args__query_ids": "[]"}, r"model.query_ids: found \[\], expected at least one"),
        ({"model__init_args__query_ids": "[99]"}, "val.lmdb: found no sample 99"),
        ({"model__init_args__checkpoints": "[nowhere.ckpt]"}, "checkpoint nowhere.ckpt: no such file"),
        ({"trainer__limit_predict_batches": 1}, "trainer.limit_predict_batches: found 1, expected all of them"),
        ({"model__init_args__method": "attribution_methods.TextGradient"}, "model.checkpoints: found none"),
        ({"model__init_args__method__init_args__nan": 12}, "found nan for query 40 and sample 12, expected finite"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("topk", [None, 5])
def test_mistakes(stores: Project, tmp_path: Path, overrides: dict[str, Any], message: str, topk: int | None) -> None:
    overrides = overrides if topk is None else {"model__init_args__topk": topk, **overrides}
    with pytest.raises(UserError, match=message):
        run_stage(command(stores, tmp_path / "run", "ByTens", **overrides))
    assert not (tmp_path / "run/scores.safetensors").exists()


def test_several_checkpoints_for_a_method_that_looks_at_none(
    stores: Project, checkpoints: list[Path], tmp_path: Path
) -> None:
    args = command(stores, tmp_path / "run", "ByTens", *checkpoints)
    with pytest.raises(UserError, match="found 2, expected at most one: bytens looks at no model"):
        run_stage(args)
    shutil.rmtree(tmp_path / "run")
    scored(command(stores, tmp_path / "run", "ByTens", checkpoints[0]))
