"""Wrong settings: every key of every config, with values of the wrong type, size or kind, one at a time."""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tools.trials.process import command
from tools.trials.project import Stage, configs, put, stages
from tools.trials.trial import Bench, Trial, outcome
from tools.trials.verdict import Outcome

#: Seconds that a run with a wrong setting may take. One that asks for a thousand years of work is stopped.
LIMIT = 20.0

#: A key that no class has.
UNKNOWN = "no_such_key"

#: The stage that tries a config, where it is not the one of the config's name.
TRIED_BY = {"unlearn": "unlearn/0", "mirrored": "mirrored/0", "sweep": "sweep", "tuned_features": "tuned"}

#: The configs whose settings are all tried; of others those that no other config has.
ALL_KEYS = ("train", "attribute_trak")

#: Odd values that have a meaning, so that a run with them may end well: patterns of configs with keys, and of the names
#: of wrong values.
MEANT = (
    (".*seed(_everything)?", "zero|negative|huge|null"),
    (".*batch_size|.*every_n_(train_)?(steps|epochs)|.*interval", "huge"),
    (".*(captions|views|projection|topk|top|first|queries)", "huge|null"),
    (".*vars.timesteps", "huge"),  # no more than a name, where a config does not refer to it
    (".*num_workers|.*log_every_n_steps|.*min_(epochs|steps)", "zero|null"),
    (".*(enable_model_summary|enable_progress_bar|logger|inference_mode)", "null"),
    (".*/vars", "mapping|unknown"),  # free names
    ("train/trainer.limit_(predict|test)_batches", ".*"),  # of a stage that trains
    (".*default_root_dir", "missing|banana|of another"),
    (".*callbacks.0.init_args.base|.*checkpoint.dirpath", "missing|banana"),
    (".*trainer.max_steps", "negative"),
    (".*num_sanity_val_steps|.*warmup_steps|.*max_(epochs|steps)", "huge"),
    (".*(guidance|dropout|weight_decay|regularisation|damping.value|forget|learning_rate)", "zero|tiny"),
    (".*(guidance|weight_decay|regularisation|damping.value|forget)", "fraction"),
    # What a stage has no use for, it does not look at.
    ("attribute_.*/trainer.(.*val.*|.*train.*|overfit.*|accumulate.*|gradient_clip.*|min_.*|max_.*|.*sanity.*)", ".*"),
)


def trials(whole: Path) -> Iterator[Trial]:
    """Yield the trials of all keys of all configs.

    Args:
        whole: The project, whose printed configs are kept in it.
    """
    every = stages()
    for name, config in configs().items():
        stage = every.get(TRIED_BY.get(name, name)) or every[name.replace("_", "/", 1)]
        for key, value in _keys(name, config, stage, whole):
            for kind, wrong in wrong_values(key, value):
                yield Trial(f"settings/{name}/{key}/{kind}", partial(_try, stage, config, key, kind, wrong))


def _keys(name: str, config: Any, stage: Stage, whole: Path) -> Iterator[tuple[str, Any]]:
    """Yield all keys of a config, and the value of each."""
    printed = config if name == "sweep" else _printed(name, stage, whole)
    own: tuple[str, ...] = ("model", "data", "checkpoint", "sweep", "seed_everything", "trainer.callbacks")
    if name.startswith("attribute_") and name not in ALL_KEYS:
        own = ("model.init_args.method",)
    for key, value in _flat(printed):
        if key.startswith(own) or name in ALL_KEYS:
            yield key, value


def _printed(name: str, stage: Stage, whole: Path) -> Any:
    """Return a config as the stage reads it, with all defaults."""
    path = whole / "printed" / f"{name}.yaml"
    if not path.exists():
        ended = command([*stage.args, "--print_config"], whole, LIMIT)
        if ended.status != 0:
            raise RuntimeError(f"{name}: {ended.err}")
        path.parent.mkdir(exist_ok=True)
        path.write_text(ended.out)
    return yaml.safe_load(path.read_text())


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of nested mappings and lists, those of mappings as well as those in them."""
    if key:
        yield key, value
    if isinstance(value, dict | list):
        for name, child in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(child, dict) or isinstance(value, dict):
                yield from _flat(child, f"{key}.{name}" if key else str(name))


def wrong_values(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield values that a key must not have, by what is wrong with them."""
    yield "mapping", {"no": "thing"}
    if not isinstance(value, list):
        yield "list", []
    if isinstance(value, dict):
        yield "unknown", {**value, UNKNOWN: 1}
        yield "word", "banana"
        return
    if key.endswith("class_path"):
        for wrong in ("banana", "os.system", "lightning_attr.tasks.Nothing", "torch.nn.Linear", "", "..", 7):
            yield f"class {wrong}", wrong
        return
    if isinstance(value, list):
        yield from (("word", "banana"), ("number", 7), ("nested", [[]]), ("nothing in it", [None]), ("mappings", [{}]))
        return
    yield from (("empty", ""), ("null", None)) if value is not None else ()
    yield "banana", "banana"
    if isinstance(value, str):
        yield "seven", 7
        if "/" in value:
            yield from _wrong_paths(value)
    elif not isinstance(value, bool):
        yield from (("negative", -1), ("zero", 0), ("nan", math.nan), ("inf", math.inf), ("-inf", -math.inf))
        yield from (("fraction", 1.5), ("huge", 10**9), ("enormous", 10**30), ("tiny", 1e-30))
    else:
        yield "seven", 7


def _wrong_paths(value: str) -> Iterator[tuple[str, Any]]:
    yield "missing", "runs/nowhere/none"
    yield "folder", "runs"
    yield "pipe", "runs/pipe"
    yield "below a file", "configs/train.yaml/x"
    yield "other kind", "configs/train.yaml" if not value.endswith(".yaml") else "runs/train.lmdb"
    yield "other tensors", "runs/base_losses.safetensors"
    yield "nul", "runs/a\0b"
    yield "long", "runs/" + "x" * 300
    yield (
        "of another",
        next(other for other in ("runs/train.lmdb", "runs/train/checkpoints/last.ckpt") if other != value),
    )


def _try(stage: Stage, config: Any, key: str, kind: str, wrong: Any, bench: Bench, random: Random) -> Outcome:
    changed = copy.deepcopy(config)
    put(changed, key, wrong)
    os.mkfifo(bench.folder / "runs/pipe")
    (bench.folder / "configs/trial.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))
    args = list(stage.with_config("configs/trial.yaml").args)
    if f"--{key}" in args:
        args = args[: args.index(f"--{key}")] + args[args.index(f"--{key}") + 2 :]
    if key != "trainer.default_root_dir" and stage.config != "sweep":
        args += ["--trainer.default_root_dir", "runs/trial"]
    ended = bench.command(args, LIMIT)
    name = f"settings/{stage.config}/{key}/{kind}"
    meant = has_meaning(f"{stage.config}/{key}", kind)
    overwritten = [name for name in bench.changed() if not name.startswith("configs/")]
    if overwritten and stage.config != "sweep":
        return outcome(name, args, ended, False, "silent", f"changed: {overwritten[:3]}")
    if ended.status is None and kind in ("huge", "enormous", "inf"):
        return outcome(name, args, ended, True, "harmless" if meant else "silent", "still running")
    return outcome(name, args, ended, meant, more=f"with {key}: {wrong!r}"[:200])


def has_meaning(key: str, kind: str) -> bool:
    """Return whether an odd value of a key is one that it may have."""
    return any(re.fullmatch(keys, key) and re.fullmatch(kinds, kind) for keys, kinds in MEANT)
