"""Commands that do not fit what was done before: other data under a name, parts of runs, results that are gone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tools.trials.flips import readers
from tools.trials.halves import MOMENTS, put_in_place
from tools.trials.process import command, forked
from tools.trials.project import COMMANDS, stages
from tools.trials.trial import LIMIT, Bench, Trial, outcome, read_contents
from tools.trials.verdict import Outcome

Prepare = Callable[[Bench], None]

#: Stages that finish a run.
RUNS = (
    "train", "sample", "curvature", "curvature_ekfac", "unlearn/0", "mirrored/0", "attribute/trak", "leave_k_out",
    "evaluate",
)  # fmt: skip

#: What lets a stage see a part of what it is to see.
PARTIAL = (
    "fast_dev_run true", "limit_train_batches 1", "limit_predict_batches 1", "limit_test_batches 1", "max_steps 0",
    "max_epochs 0", "overfit_batches 1", "max_time 00:00:00:00",
)  # fmt: skip

#: What a scheduler or a launcher leaves in the environment of a run that is alone nevertheless.
VARIABLES = (
    "SLURM_NTASKS=2 SLURM_PROCID=1 SLURM_LOCALID=1",
    "SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2 SLURM_PROCID=1 SLURM_LOCALID=1 SLURM_JOB_ID=1",
    "SLURM_NTASKS=2 SLURM_JOB_NAME=x",
    "OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1",
    "PMI_RANK=1",
)

#: A command with another store in the place of the right one.
OTHER_STORES = {
    "validation": "train --data.init_args.val_store runs/other.lmdb",
    "sampling": "sample --model.init_args.store runs/other.lmdb",
    "prompts": "sample_store --model.init_args.prompt_store runs/other.lmdb",
    "attribution": "attribute/trak --data.init_args.store runs/other.lmdb",
    "similarity": "attribute/similarity_latent --data.init_args.store runs/other.lmdb",
    "queries": "attribute/trak --model.init_args.queries runs/other.lmdb",
    "curvature": "curvature --data.init_args.store runs/other.lmdb",
    "unlearning": "unlearn/0 --model.init_args.store runs/other.lmdb",
    "mirrored unlearning": "mirrored/0 --data.init_args.store runs/other.lmdb",
    "retraining": "leave_k_out --data.init_args.store runs/other.lmdb",
    "relevant": "evaluate --model.init_args.relevant.store runs/other.lmdb",
    "all of training": "train --data.init_args.store runs/other.lmdb",
}

#: Of those, what makes sense: prompts are words, and a training on another store is another training.
SENSIBLE = ("prompts", "all of training")


def trials(whole: Path) -> Iterator[Trial]:
    """Yield all of them; each that ends well must have the result of the last command alone."""
    every = stages()
    for name in RUNS:
        stage = every[name]
        folder = stage.makes[0]
        for file in _results(whole / folder):
            if name.startswith("curvature") and file.startswith("checkpoints/"):
                continue  # it was to resume from: the finished run has no use for it
            steps = [stage.args]
            yield _trial(f"mixups/{name} without {file}", partial(_delete, f"{folder}/{file}"), steps, stage.makes)
        for words in PARTIAL:
            key, value = words.split()
            first = (*stage.args, f"--trainer.{key}", value)
            prepare = partial(_remove, stage.makes)
            yield _trial(f"mixups/{name} after {words}", prepare, [first, stage.args], stage.makes, may_fail=1)
    for name in MOMENTS:
        stage = every[name]
        for how, change in (("with a copy", _copy_store), ("by a link", _link_store)):
            yield _trial(f"mixups/{name} goes on {how}", partial(_half, name, change), [stage.args], stage.makes)
    for name, words in OTHER_STORES.items():
        reader = readers()[words.split()[0]]
        args = (*reader.args, *words.split()[1:])
        yield _trial(f"mixups/another store for {name}", _other_store, [args], None, right=name in SENSIBLE)
    yield from _of_images(whole)
    train = every["train"].args
    yield _trial("mixups/fewer steps", None, [(*train, "--trainer.max_steps", "2")], None)
    for name in ("curvature", "leave_k_out", "sample"):
        yield _trial(f"mixups/{name} of a checkpoint saved again", _save_again, [every[name].args], every[name].makes)
    yield _trial(
        "mixups/retraining of scores saved again", _reorder, [every["leave_k_out"].args], every["leave_k_out"].makes
    )
    link = partial(_link, "runs/trial/checkpoints/.last.ckpt.tmp", "runs/train.lmdb")
    yield _trial("mixups/a link", link, [readers()["train"].args], None, right=True)
    home = tuple("~/x" if word == "runs/train" else word for word in train)
    yield _trial("mixups/home", _nothing, [home, ("report", "~/x")], None, right=True)
    for variables in VARIABLES:
        for name in ("train", "sample", "attribute/trak"):
            args = (*variables.split(), *readers()[name].args)
            yield _trial(f"mixups/{name} under {variables}", None, [args], None, right=True)


def _results(folder: Path) -> list[str]:
    """Return the files that a run leaves behind, but for what only says how it went."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [str(path.relative_to(folder)) for path in files if not path.name.startswith("events.out")]


def _of_images(whole: Path) -> Iterator[Trial]:
    words = COMMANDS["prepare_coco"][0].split()
    made = ("runs/coco.lmdb",)
    fewer = partial(_remove, made)
    yield _trial("mixups/images after fewer", fewer, [(*words, "--limit", "5"), words], made, may_fail=1)
    yield _trial("mixups/other images", _other_images, [words], None)
    yield _trial("mixups/other captions", _other_captions, [words], None)
    yield _trial("mixups/other images on the way", partial(_half_of_other_images), [words], None, right=False)
    shapes = COMMANDS["prepare_shapes"][0].split()
    yield _trial("mixups/other shapes", None, [(*shapes, "--seed", "1")], None)
    yield _trial("mixups/more shapes", None, [(*shapes, "--count", "30")], None)


def _trial(
    name: str,
    prepare: Prepare | None,
    steps: Sequence[Sequence[str]],
    makes: Sequence[str] | None,
    *,
    right: bool = False,
    may_fail: int = 0,
) -> Trial:
    return Trial(name, partial(_try, name, prepare, steps, makes, right, may_fail))


def _try(
    name: str,
    prepare: Prepare | None,
    steps: Sequence[Sequence[str]],
    makes: Sequence[str] | None,
    right: bool,
    may_fail: int,
    bench: Bench,
    random: Random,
) -> Outcome:
    """Run steps. The last one is judged: by its results where they are known, else by whether it may end well."""
    if prepare is not None:
        prepare(bench)
        bench.settle()
    for step in steps[:-1]:
        ended = bench.command(step, LIMIT)
        if ended.status not in (0, 1) or "Traceback" in ended.err:
            return outcome(name, step, ended, False)
    ended = bench.command(steps[-1], LIMIT)
    more = f"after {steps[:-1]}" if len(steps) > 1 else ""
    if makes is not None:
        expected = read_contents(bench.whole, makes)
        found = bench.contents(makes)
        wrong = [path for path in expected if found.get(path) != expected[path]]
        right = not wrong
        more += f" another result: {wrong[:3]}" if wrong else ""
    elif changed := [path for path in bench.changed() if not path.startswith("runs/trial") and ".partial" not in path]:
        return outcome(name, steps[-1], ended, False, "silent", f"changed: {changed[:3]}")
    return outcome(name, steps[-1], ended, right, more=more)


def _nothing(bench: Bench) -> None:
    """Leave all as it is."""


def _delete(file: str, bench: Bench) -> None:
    (bench.folder / file).unlink()


def _remove(makes: Sequence[str], bench: Bench) -> None:
    for made in makes:
        shutil.rmtree(bench.folder / made, ignore_errors=True)
        (bench.folder / made).unlink(missing_ok=True)


def _half(name: str, move: Prepare, bench: Bench) -> None:
    put_in_place(bench, name)
    if (bench.folder / "runs/train.lmdb").exists():
        move(bench)


def _copy_store(bench: Bench) -> None:
    """Copy the store to a disk of the machine, as jobs do, and name the copy."""
    elsewhere = shutil.copy(bench.folder / "runs/train.lmdb", bench.folder / "runs/elsewhere.lmdb")
    for config in (bench.folder / "configs").glob("*.yaml"):
        config.write_text(config.read_text().replace("runs/train.lmdb", str(elsewhere)))


def _link_store(bench: Bench) -> None:
    store = bench.folder / "runs/train.lmdb"
    store.symlink_to(store.rename(store.with_name("elsewhere.lmdb")))


def _other_store(bench: Bench) -> None:
    words = COMMANDS["prepare_shapes"][0].replace("runs/train.lmdb --val runs/val.lmdb", "runs/other.lmdb").split()
    ended = command([*words, "--seed", "1"], bench.folder, LIMIT)
    if ended.status != 0:
        raise RuntimeError(ended.err)


def _other_images(bench: Bench) -> None:
    images = sorted((bench.folder / "coco/images").glob("*.png"))
    for image, other in zip(images, reversed([image.read_bytes() for image in images]), strict=True):
        image.write_bytes(other)


def _half_of_other_images(bench: Bench) -> None:
    put_in_place(bench, "prepare_coco")
    _other_images(bench)


def _other_captions(bench: Bench) -> None:
    path = bench.folder / "coco/captions.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["caption"] = "another"
    path.write_text(json.dumps(content))


def _save_again(bench: Bench) -> None:
    """Save a checkpoint in other bytes, as a run that was killed and went on may have left it."""

    def save() -> None:
        path = "runs/train/checkpoints/last.ckpt"
        content = torch.load(path, weights_only=True)
        torch.save(dict(reversed(content.items())), path)

    _done(save, bench)


def _reorder(bench: Bench) -> None:
    """Save scores with another order of what their header says."""

    def save() -> None:
        path = "runs/attribute/trak/scores.safetensors"
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            header = dict(reversed(file.metadata().items()))
        before = Path(path).read_bytes()
        while Path(path).read_bytes() == before:  # their order is random
            save_file(tensors, path, header)

    _done(save, bench)


def _done(work: Callable[[], None], bench: Bench) -> None:
    ended = forked(work, bench.folder, LIMIT)
    if ended.status != 0:
        raise RuntimeError(ended.err)


def _link(path: str, target: str, bench: Bench) -> None:
    link = bench.folder / path
    link.parent.mkdir(parents=True)
    link.symlink_to(os.path.relpath(bench.folder / target, link.parent))
