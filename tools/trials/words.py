"""Wrong command lines: files of every kind where another is expected, wrong options, verbs, YAML and references."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random

from tools.trials import known, own
from tools.trials.project import COMMANDS, PACK, stages
from tools.trials.trial import Bench, Trial, outcome
from tools.trials.verdict import Outcome

Prepared = Callable[[Bench], None]

#: A file or folder of every kind, by its kind.
FILES = {
    "store": "runs/train.lmdb",
    "query store": "runs/sample/queries.lmdb",
    "checkpoint": "runs/train/checkpoints/last.ckpt",
    "curvature": "runs/curvature/curvature.safetensors",
    "scores": "runs/attribute/trak/scores.safetensors",
    "top scores": "runs/attribute/top/scores.safetensors",
    "pack": PACK[0],
    "tensors of a pack": PACK[1],
    "manifest": "runs/train/manifest.json",
    "config": "configs/train.yaml",
    "sweep": "configs/sweep.yaml",
    "captions": "coco/captions.json",
    "image": "coco/images/0001.png",
    "page": "runs/report.html",
    "run": "runs/train",
    "network of others": "others/unet",
    "images": "coco/images",
    "nothing": "runs/nothing",
    "nowhere": "runs/no/where",
    "below a file": "configs/train.yaml/x",
    "empty name": "",
    "pipe": "runs/pipe",
    "empty file": "runs/empty",
    "nul": "runs/a\0b",
    "no permission": "/proc/nothing",
    "link to itself": "runs/loop",
    "markup": "runs/[/s] [v2]",
    "escapes": "runs/\x1b[31mred",
    "home": "~/nothing",
    "newline": "runs/a\nb",
    **own.FILES,
    **known.FILES,
}

#: Commands with one file of theirs left open, and what it may be.
OPEN = {
    "inspect": ("inspect {} --verify", ("store", "query store")),
    "report": ("report {}", ("run",)),
    "report --out": ("report runs/train --out {}", ("*", "page")),
    "evaluate": ("evaluate {} runs/attribute/trak/scores.safetensors", ("pack", "tensors of a pack")),
    "evaluate scores": (f"evaluate {PACK[0]} {{}}", ("scores", "top scores")),
    "evaluate --json": (f"evaluate {PACK[0]} --json {{}}", ("*",)),
    "evaluate --out": (f"evaluate {PACK[0]} runs/attribute/trak/scores.safetensors --out {{}}", ("*",)),
    "evaluate --unpack": (f"evaluate {PACK[0]} --unpack {{}}", ("*", "images", "run", "network of others")),
    "init": ("init demo {}", ("nothing", "nowhere", "markup", "escapes", "newline", "home")),
    "init experiment": ("init {} runs/made", ()),
    "images": (f"{COMMANDS['prepare_coco'][0]} --out runs/t.lmdb --images {{}}", ("images",)),
    "captions": (f"{COMMANDS['prepare_coco'][0]} --out runs/t.lmdb --captions {{}}", ("captions",)),
    "ids": (f"{COMMANDS['prepare_coco'][0]} --out runs/t.lmdb --ids {{}}", ()),
    "encoders_from": (f"{COMMANDS['prepare_coco'][0]} --out runs/t.lmdb --encoders_from {{}}", ("store",)),
    "coco --out": (f"{COMMANDS['prepare_coco'][0]} --out {{}}", ("*",)),
    "shapes --out": (f"{COMMANDS['prepare_shapes'][0]} --out {{}}", ("*",)),
    "fit -c": ("fit -c {}", ("config",)),
    "fit --ckpt_path": ("fit -c configs/train.yaml --trainer.default_root_dir runs/t --ckpt_path {}", ("checkpoint",)),
    "validate --ckpt_path": ("validate -c configs/train.yaml --ckpt_path {}", ("checkpoint",)),
    "sweep -c": ("sweep -c {} --list", ("sweep",)),
    "default_root_dir": ("fit -c configs/train.yaml --trainer.default_root_dir {}", ("*",)),
    **own.OPEN,
    **known.OPEN,
}

#: Kinds that a new file or folder may have the name of; what is there already must not be lost.
FREE = ("nothing", "nowhere", "markup", "escapes", "newline", "home")

#: Trials whose file takes the place of one of its kind.
REPLACING = (
    "words/report --out/page", "words/abc scores --scores.out/ranks", "words/abc table --keep/ranks",
    "words/shares fit --out/shares", "words/groups --out/clusters",
)  # fmt: skip

#: Options of commands with a number.
NUMBERS = {
    "prepare_shapes": ("count", "val_count", "planted", "size", "patch", "channels", "tokens", "dim", "flips", "seed"),
    "prepare_coco": ("size", "captions_per_image", "flips", "workers", "batch_size", "on_error", "limit", "device",
                     "image_encoder", "text_encoder", "image_encoder.patch", "text_encoder.tokens"),
    "inspect": ("captions",),
    "evaluate_pack": ("queries",),
    "sweep_list": ("workers", "threads", "group", "index", "gpus", "ray"),
    **own.NUMBERS,
    **known.NUMBERS,
}  # fmt: skip

#: Of the options, which wrong values have a meaning.
MEANT = (
    ("prepare_shapes", "planted", "0"), ("prepare_shapes", "seed", "*"), ("prepare_coco", "limit", "1000000000"),
    ("prepare_coco", "limit", "null"),
    ("prepare_coco", "workers", "0"), ("inspect", "captions", "*"), ("evaluate_pack", "queries", "0"),
    ("evaluate_pack", "queries", "null"), ("prepare_coco", "workers", "1000000000"),
    ("prepare_coco", "image_encoder", "null"), ("prepare_coco", "text_encoder", "null"),
    ("sweep_list", "*", "*"), ("prepare_coco", "batch_size", "1000000000"), *own.MEANT,
    *known.MEANT,
)  # fmt: skip

VALUES = ("banana", "-1", "0", "1.5", "nan", "inf", "1000000000", str(10**30), "", "[]", "{no: thing}", "null", "1e400")

#: Command lines as they are, and whether each may end well.
LINES: dict[str, tuple[str, bool]] = {
    "no verb": ("", True),
    "wrong verb": ("fitt -c configs/train.yaml", False),
    "no config": ("fit", False),
    "no value of -c": ("fit -c", False),
    "empty config": ("fit --config=", False),
    "unknown option": ("fit -c configs/train.yaml --no.such 1", False),
    "unknown option of a command": ("inspect runs/train.lmdb --no_such 1", False),
    "shortened option": ("inspect runs/train.lmdb --ver", False),
    "two configs": ("fit -c configs/train.yaml -c configs/sample.yaml --trainer.default_root_dir runs/t", False),
    "curvature and train": (
        "fit -c configs/curvature.yaml -c configs/train.yaml --trainer.default_root_dir runs/t", False,
    ),
    "no folder": ("fit -c configs/train.yaml --trainer.default_root_dir null", False),
    "prepare": ("prepare", False),
    "prepare nothing": ("prepare nothing", False),
    "shapes without --out": ("prepare shapes", False),
    "coco without images": ("prepare coco --out runs/t.lmdb", False),
    "more planted than images": ("prepare shapes --out runs/t.lmdb --count 3 --planted 4", False),
    "size without patch": ("prepare shapes --out runs/t.lmdb --size 33", False),
    "no device": (
        "prepare coco --images coco/images --captions coco/captions.json --out runs/t.lmdb --device cuda", False,
    ),
    "wrong device": (
        "prepare coco --images coco/images --captions coco/captions.json --out runs/t.lmdb --device x:y", False,
    ),
    "too many scores": (f"evaluate {PACK[0]} " + "runs/attribute/trak/scores.safetensors " * 2, True),
    "queries with out": (f"evaluate {PACK[0]} --queries 0-1 --out runs/t", False),
    "queries the wrong way": (f"evaluate {PACK[0]} --queries 1-0", False),
    "queries of none": (f"evaluate {PACK[0]} --queries 7-9", False),
    "index beyond": ("sweep -c configs/sweep.yaml --index 99", False),
    "index below": ("sweep -c configs/sweep.yaml --index -1", False),
    "gpus alone": ("sweep -c configs/sweep.yaml --gpus 1", False),
    "ray nowhere": ("sweep -c configs/sweep.yaml --ray nowhere:1", False),
    "no logger": ("fit -c configs/train.yaml --trainer.default_root_dir runs/t --trainer.logger WandbLogger", False),
    "no callback": ("fit -c configs/train.yaml --trainer.default_root_dir runs/t --trainer.callbacks [Banana]", False),
    "interval beyond": (
        "fit -c configs/train.yaml --trainer.default_root_dir runs/t --trainer.check_val_every_n_epoch 1 "
        "--trainer.val_check_interval 1000", False,
    ),
    "a share of nothing": (
        "fit -c configs/train.yaml --trainer.default_root_dir runs/t --trainer.limit_train_batches 0.01", False
    ),
    "bf16": ("fit -c configs/train.yaml --trainer.default_root_dir runs/t --trainer.precision bf16-mixed", True),
    "16": ("fit -c configs/train.yaml --trainer.default_root_dir runs/t --trainer.precision 16-mixed", True),
    "gpu": ("fit -c configs/train.yaml --trainer.default_root_dir runs/t --trainer.accelerator gpu", False),
    "strategy": ("fit -c configs/train.yaml --trainer.default_root_dir runs/t --trainer.strategy banana", False),
    "steps and nothing to exclude": (
        "fit -c configs/leave_k_out.yaml --trainer.default_root_dir runs/t --data.init_args.exclude null", True
    ),
    "all excluded": (
        "fit -c configs/leave_k_out.yaml --trainer.default_root_dir runs/t --data.init_args.exclude.top 24", False,
    ),
    "scores without any": (
        "fit -c configs/leave_k_out.yaml --trainer.default_root_dir runs/t --data.init_args.exclude {scores:[],top:3}",
        False,
    ),
    "no prompts": (
        "predict -c configs/sample.yaml --trainer.default_root_dir runs/t --model.init_args.prompts []", False,
    ),
    "empty prompt": (
        'predict -c configs/sample.yaml --trainer.default_root_dir runs/t --model.init_args.prompts [""]', False,
    ),
    "strong guidance": (
        "predict -c configs/sample.yaml --trainer.default_root_dir runs/t --model.init_args.guidance 1e30", False,
    ),
    "a part of a curvature": (
        "fit -c configs/curvature.yaml --trainer.default_root_dir runs/t --trainer.limit_train_batches 1", False
    ),
    "print_config": ("fit -c configs/train.yaml --print_config", True),
    "help": ("fit --help", True),
    **own.LINES,
    **known.LINES,
}  # fmt: skip

#: Configs as text.
TEXTS = {
    "nothing": "",
    "null": "null\n",
    "a list": "- trainer\n",
    "a word": "banana\n",
    "a number": "7\n",
    "tab": "trainer:\n\tx: 1\n",
    "nul": "trainer: \0\n",
    "not UTF-8": "trainer: {default_root_dir: \udcff}\n",
    "open": "trainer: {a: [\n",
    "twice": "trainer: {max_steps: 1}\ntrainer: {max_steps: 2}\n",
    "no such variable": "trainer: {max_steps: '${vars.no}'}\n",
    "open reference": "trainer: {max_steps: '${vars.'}\n",
    "of itself": "trainer: {max_steps: '${trainer.max_steps}'}\n",
    "in a circle": "vars: {a: '${vars.b}', b: '${vars.a}'}\ntrainer: {max_steps: '${vars.a}'}\n",
    "resolver": "trainer: {default_root_dir: 'runs/${oc.env:NO_SUCH_VARIABLE}'}\n",
    "unknown resolver": "trainer: {max_steps: '${no.such:1}'}\n",
    "python": "trainer: !!python/object/apply:os.system [id]\n",
    "alias of itself": "vars: &a {b: *a}\n",
    "deep": "vars: " + "{a: " * 3000 + "1" + "}" * 3000 + "\n",
    "numbers as keys": "1: 2\n",
    "date": "trainer: {max_steps: 2026-01-01}\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "no model": "model: null\n",
    "no data": "data: null\n",
    "no trainer": "trainer: null\n",
    "other vars": "vars: [1]\n",
    "word for vars": "vars: banana\n",
    "byte order": "\ufefftrainer: {max_steps: 1}\n",
    "carriage returns": "trainer: {max_steps: 1}\r\n",
    "sexagesimal": "trainer: {max_steps: 1:30}\n",
    "octal": "trainer: {max_steps: 010}\n",
    "yes": "trainer: {max_steps: yes}\n",
    "model of a list": "model: []\n",
    "arguments of a list": "model: {init_args: []}\n",
    "old key": "model: {init_args: {lr: 1}}\n",
    "merge": "<<: {trainer: {max_steps: 1}}\n",
    "long": "vars: {a: " + "x" * 200_000 + "}\n",
    "surrogate": 'vars: {a: "\\ud800"}\n',
}

#: Of the texts, those that say nothing or something that has a meaning.
MEANING = (
    "nothing",
    "null",
    "byte order",
    "carriage returns",
    "octal",
    "merge",
    "long",
    "surrogate",
    "other vars",
    "word for vars",
    "deep",
    "twice",
    "sexagesimal",
    "no data",
)


def trials(whole: Path) -> Iterator[Trial]:
    """Yield the trials of command lines."""
    for command, (words, right) in OPEN.items():
        for kind, path in FILES.items():
            args = [path if word == "{}" else word for word in words.split()]
            may = kind in right or ("*" in right and kind in FREE)
            yield _trial(f"words/{command}/{kind}", args, may, _prepare_files)
    for command, options in NUMBERS.items():
        for option in options:
            for value in VALUES:
                may = any(a == command and b in ("*", option) and c in ("*", value) for a, b, c in MEANT)
                args = [*_base(command), f"--{option}", value]
                yield _trial(f"words/{command}/{option}={value}", args, may)
    for name, (line, may) in LINES.items():
        yield _trial(f"words/line/{name}", line.split(), may)
    for name, text in TEXTS.items():
        args = ["fit", "-c", "configs/train.yaml", "-c", "configs/trial.yaml", "--trainer.default_root_dir", "runs/t"]
        yield _trial(f"words/config/{name}", args, name in MEANING, partial(_write_config, text))
        yield _trial(
            f"words/only config/{name}", ["fit", "-c", "configs/trial.yaml"], False, partial(_write_config, text)
        )
        sweep = ["sweep", "-c", "configs/sweep.yaml", "-c", "configs/trial.yaml", "--list"]
        yield _trial(f"words/sweep config/{name}", sweep, name in ("nothing", "null"), partial(_write_config, text))
    for stage in stages().values():
        if stage.config not in (None, "sweep") and "/1" not in stage.name:
            for verb in ("fit", "validate", "test", "predict", "sweep", "inspect"):
                if verb != stage.args[0]:
                    args = [
                        verb,
                        *stage.args[1:],
                        *(["--trainer.default_root_dir", "runs/t"] if verb != "inspect" else []),
                    ]
                    may = verb == "validate" and stage.config in ("train", "leave_k_out")
                    yield _trial(f"words/verb/{verb} of {stage.name}", args, may)


def _base(command: str) -> Sequence[str]:
    if command in known.ANEW:
        return known.ANEW[command].split()
    words = stages()[command].args
    if command in own.COMMANDS:
        return [*words, "--out", "runs/t" if command == "explain" else "runs/t.lmdb"]
    if command.startswith("prepare"):
        return [
            word.replace("runs/train", "runs/t").replace("runs/val", "runs/v").replace("runs/coco", "runs/c")
            for word in words
        ]
    return words


def _prepare_files(bench: Bench) -> None:
    (bench.folder / "runs/empty").touch()
    os.mkfifo(bench.folder / "runs/pipe")
    (bench.folder / "runs/loop").symlink_to("loop")
    bench.settle()


def _write_config(text: str, bench: Bench) -> None:
    (bench.folder / "configs/trial.yaml").write_bytes(text.encode(errors="surrogateescape"))


def _trial(name: str, args: Sequence[str], may: bool, prepare: Prepared | None = None) -> Trial:
    return Trial(name, partial(_try, name, args, may, prepare))


def _try(name: str, args: Sequence[str], may: bool, prepare: Prepared | None, bench: Bench, random: Random) -> Outcome:
    if prepare is not None:
        prepare(bench)
    ended = bench.command(args, 30)
    if (overwritten := bench.changed()) and name not in REPLACING:
        return outcome(name, args, ended, False, "silent", f"changed: {overwritten[:3]}")
    return outcome(name, args, ended, may)
