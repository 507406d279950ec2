"""Customised models whose influence is known, the shares fitted on them, and groups; and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Make = Callable[[], None]

SET, MODELS, SCORES, RANKS, SHARES, CLUSTERS = (
    "runs/abc/set", "runs/abc/models", "runs/abc/attribute/similarity_latent/scores.safetensors",
    "runs/abc/scores/cosine.safetensors", "runs/abc/shares.safetensors", "runs/near.json",
)  # fmt: skip
LAYOUT = "others/published"
ENTRIES = f"{LAYOUT}/json/test_shapes.json"

_PROMPTS = {"thing": ["a red star"], "scene": ["a star on a yellow background"]}
#: What makes a shipped config of the experiment ``abc`` small, by its name.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "make": {
        "set.distractors": "runs/train.lmdb", "set.exemplars": "runs/val.lmdb", "set.images": 2,
        "set.train": ["configs/abc_customise.yaml"], "set.sample": ["configs/abc_sample.yaml"],
        "set.models": [
            {"name": "a-0", "category": "artist", "split": "train", "exemplars": [28, 29], "prompts": _PROMPTS},
            {"name": "a-1", "category": "artist", "split": "validation", "exemplars": [24, 25], "prompts": _PROMPTS},
            {"name": "a-2", "category": "artist", "split": "test", "exemplars": [26, 27], "prompts": _PROMPTS},
        ],
    },
    "customise": {
        "trainer.max_steps": 2, "checkpoint.every_n_train_steps": 1, "data.init_args.batch_size": 2,
        "model.init_args.base": {"model": "runs/train/checkpoints/last.ckpt", "adapter": {"kind": "lora", "rank": 2}},
    },
    "sample": {"model.init_args.steps": 2, "model.init_args.batch_size": 4},
    "similarity": {"data.init_args.batch_size": 8},
    "score": {"data.init_args.batch_size": 8},
    "scores_adapter": {
        "scores.method": "cosine", "scores.distractors": 8, "scores.out": RANKS,
        "scores.steps": [{"verb": "predict", "configs": ["configs/abc_score.yaml", "configs/cosine.yaml"]}],
    },
}  # fmt: skip

#: The method of the scores of each model.
COSINE: Mapping[str, Any] = {
    "model": {
        "init_args": {
            "method": {
                "class_path": "lightning_attr.methods.GradientSimilarity",
                "init_args": {"kind": "cosine", "output": {"draws": {"timesteps": 1}}},
            }
        }
    }
}

#: The commands by name, in the order in which they are run once there is a model, and what each makes.
COMMANDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "abc_make": ("abc make -c configs/abc_make.yaml", (SET, MODELS)),
    "abc_similarity": (
        "predict -c configs/abc_similarity.yaml -c configs/similarity_latent.yaml", (str(Path(SCORES).parent),),
    ),
    "abc_scores": ("abc scores -c configs/abc_scores_adapter.yaml", (RANKS,)),
    "abc_table": (f"abc table {SCORES} --set {SET}", ()),
    "abc_kept": (f"abc table {RANKS}", ()),
    "abc_read": (f"abc read {LAYOUT} --json [{ENTRIES}] --out runs/read --size 16 --workers 0", ("runs/read",)),
    "shares_fit": (f"shares fit {SET} {SCORES} --out {SHARES}", (SHARES,)),
    "shares_check": (f"shares check {SET} {SCORES} --shares {SHARES}", ()),
    "groups": (f"groups runs/train.lmdb --out {CLUSTERS}", (CLUSTERS,)),
}  # fmt: skip

#: Those that are run when everything else is there.
LAST: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "near": (f"report runs --grouping {CLUSTERS} --out runs/near.html", ("runs/near.html",)),
}

#: The same where a trial writes elsewhere.
ANEW: Mapping[str, str] = {
    "abc_make": f"{COMMANDS['abc_make'][0]} --set.folder runs/t",
    "abc_scores": f"{COMMANDS['abc_scores'][0]} --scores.method t --scores.out runs/t.safetensors",
    "abc_table": COMMANDS["abc_table"][0],
    "abc_read": COMMANDS["abc_read"][0].replace("runs/read", "runs/t"),
    "shares_fit": COMMANDS["shares_fit"][0].replace(SHARES, "runs/t.safetensors"),
    "shares_check": COMMANDS["shares_check"][0],
    "groups": COMMANDS["groups"][0].replace(CLUSTERS, "runs/t.json"),
}

#: Its files and folders, by their kinds.
FILES = {
    "AbC set": SET,
    "AbC plan": "configs/abc_make.yaml",
    "AbC scoring": "configs/abc_scores_adapter.yaml",
    "AbC scores": SCORES,
    "ranks": RANKS,
    "shares": SHARES,
    "clusters": CLUSTERS,
    "published layout": LAYOUT,
    "published entries": ENTRIES,
}

#: Kinds of folders that are there.
FOLDERS = (
    "run",
    "network of others",
    "images",
    "pipeline",
    "LoRA",
    "own images",
    "AbC set",
    "published layout",
    "empty name",
)

_READ = "--out runs/t --size 16 --workers 0"
#: Commands with one file of theirs left open, and what it may be.
OPEN = {
    "abc make -c": ("abc make --set.folder runs/t -c {}", ("AbC plan",)),
    "abc make --set.exemplars": (f"{ANEW['abc_make']} --set.exemplars {{}}", ()),
    "abc make --set.distractors": (f"{ANEW['abc_make']} --set.distractors {{}}", ("store",)),
    # The set and the models go into folders of their own below, beside what is there.
    "abc make --set.folder": ("abc make -c configs/abc_make.yaml --set.folder {}", ("*", *FOLDERS)),
    "abc scores -c": (
        "abc scores -c {} --scores.method t --scores.out runs/t.safetensors", ("AbC scoring",),
    ),
    "abc scores --scores.set": (f"{ANEW['abc_scores']} --scores.set {{}}", ("AbC set",)),
    "abc scores --scores.models": (f"{ANEW['abc_scores']} --scores.models {{}}", ()),
    "abc scores --scores.out": (
        "abc scores -c configs/abc_scores_adapter.yaml --scores.method t --scores.out {}", ("*", "ranks"),
    ),
    "abc table": (f"abc table {{}} --set {SET}", ("ranks", "AbC scores")),
    "abc table --set": (f"abc table {SCORES} --set {{}}", ("AbC set",)),
    "abc table --keep": (f"{COMMANDS['abc_table'][0]} --keep {{}}", ("*", "ranks")),
    "abc table --json": (f"{COMMANDS['abc_table'][0]} --json {{}}", ("*",)),
    "abc read": (f"abc read {{}} --json [{ENTRIES}] {_READ}", ("published layout",)),
    "abc read --json": (f"abc read {LAYOUT} --json+ {{}} {_READ}", ("published entries",)),
    "abc read --out": (f"abc read {LAYOUT} --json [{ENTRIES}] --size 16 --workers 0 --out {{}}", ("*",)),
    "shares fit": (f"shares fit {{}} {SCORES} --out runs/t.safetensors", ("AbC set",)),
    "shares fit scores": (f"shares fit {SET} {{}} --out runs/t.safetensors", ("AbC scores",)),
    "shares fit --out": (f"shares fit {SET} {SCORES} --out {{}}", ("*", "shares")),
    "shares fit --figure": (f"{ANEW['shares_fit']} --figure {{}}", ("*",)),
    "shares fit --json": (f"{ANEW['shares_fit']} --json {{}}", ("*",)),
    "shares check --shares": (f"shares check {SET} {SCORES} --shares {{}}", ("shares",)),
    "groups": ("groups {} --out runs/t.json", ("store", "query store", "own store", "own queries")),
    "groups --out": ("groups runs/train.lmdb --out {}", ("*", "clusters")),
    "report --grouping": ("report runs --out runs/t.html --grouping {}", ("clusters",)),
    "report --shares": ("report runs --out runs/t.html --shares {}", ("shares",)),
}  # fmt: skip

#: Options of commands with a number or a word.
NUMBERS = {
    "abc_make": ("set.images", "set.seed"),
    "abc_scores": ("scores.distractors", "scores.seed", "scores.split"),
    "abc_table": ("split",),
    "abc_read": ("distractors", "seed", "size", "workers", "batch_size", "on_error"),
    "shares_check": ("split",),
    "groups": ("distance",),
}

#: Of the options, which wrong values have a meaning.
MEANT = (
    ("abc_make", "set.seed", "0"), ("abc_make", "set.seed", "1000000000"), ("abc_scores", "scores.distractors", "null"),
    ("abc_scores", "scores.seed", "*"), ("abc_scores", "scores.split", "null"), ("abc_read", "distractors", "null"),
    ("abc_read", "seed", "*"), ("abc_read", "size", "null"), ("abc_read", "workers", "0"),
    ("abc_read", "workers", "1000000000"), ("abc_read", "batch_size", "1000000000"), ("groups", "distance", "0"),
)  # fmt: skip

#: Command lines as they are, and whether each may end well.
LINES: dict[str, tuple[str, bool]] = {
    "abc alone": ("abc", False),
    "abc of nothing": ("abc nothing", False),
    "abc make of nothing": ("abc make", False),
    "abc make again": (COMMANDS["abc_make"][0], True),
    "abc make of another seed": (f"{COMMANDS['abc_make'][0]} --set.seed 7", False),
    "abc make of no models": (f"{ANEW['abc_make']} --set.models []", False),
    "abc make of one model twice": (
        f"{ANEW['abc_make']} --set.models "
        + json.dumps([{"name": "a", "category": "b", "split": "test", "exemplars": [24], "prompts": {"x": ["y"]}}] * 2),
        False,
    ),
    "abc scores of nothing": ("abc scores", False),
    "abc scores again": (COMMANDS["abc_scores"][0], True),
    "abc scores of no steps": (f"{ANEW['abc_scores']} --scores.steps []", False),
    "abc scores in the place of the training": (f"{COMMANDS['abc_scores'][0]} --scores.method train", False),
    "abc scores out of the folder": (f"{ANEW['abc_scores']} --scores.method ../x", False),
    "abc table of nothing": ("abc table", False),
    "abc table without its set": (f"abc table {SCORES}", False),
    "abc table twice": (f"abc table {SCORES} {SCORES} --set {SET}", False),
    "abc table of other scores": (f"abc table runs/attribute/trak/scores.safetensors --set {SET}", False),
    "abc table of an unknown split": (f"{COMMANDS['abc_table'][0]} --split banana", False),
    "abc read without --json": (f"abc read {LAYOUT} --out runs/t --size 16", False),
    "abc read twice": (f"abc read {LAYOUT} --json [{ENTRIES},{ENTRIES}] {_READ}", False),
    "abc read again": (COMMANDS["abc_read"][0], True),
    "shares alone": ("shares", False),
    "shares fit on nothing": (f"shares fit {SET} --out runs/t.safetensors", False),
    "shares fit without --out": (f"shares fit {SET} {SCORES}", False),
    "shares fit twice on one": (f"{ANEW['shares_fit']} {SCORES}", False),
    "shares check of an unknown split": (f"{COMMANDS['shares_check'][0]} --split banana", False),
    "shares check without --shares": (f"shares check {SET} {SCORES}", False),
    "groups without --out": ("groups runs/train.lmdb", False),
    "groups into no JSON": ("groups runs/train.lmdb --out runs/t", False),
    "groups of no attribute": ("report runs --out runs/t.html --grouping banana", False),
}  # fmt: skip

#: Files of settings, and what reads each.
SETTINGS = {
    f"{SET}/abc.json": ("abc_table again", "shares_check again"),
    CLUSTERS: ("near again",),
    ENTRIES: ("abc_read anew",),
    "configs/abc_make.yaml": ("abc_make anew",),
    "configs/abc_scores_adapter.yaml": ("abc_scores again",),
}

#: Files of tensors, and what reads each.
ARTEFACTS = {
    SCORES: ("abc_table again", "shares_fit anew"),
    RANKS: ("abc_kept again",),
    SHARES: ("shares_check again",),
}


def make() -> None:
    """Make a folder in the published layout: two models of two exemplars, two images each, and distractors."""
    entries = []
    for model in ("x", "y"):
        exemplars = [f"exemplar/shapes/{model}/{number}.png" for number in range(2)]
        made = [f"synth/shapes/object/{model}/samples/{number:05}.png" for number in range(2)]
        for place, name in enumerate((*exemplars, *made)):
            _draw(name, place + 10 * (model == "y"))
        synth = {"object": [f"dataset/{name}" for name in made]}
        entries.append({"exemplar": [f"dataset/{name}" for name in exemplars], "synth": synth, "class_id": model})
    for number in range(6):
        _draw(f"laion_subset/{number}.png", 100 + number)
    Path(ENTRIES).parent.mkdir()
    Path(ENTRIES).write_text(json.dumps(entries))


def _draw(name: str, seed: int) -> None:
    path = Path(LAYOUT) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((24, 20)).save(path)


def inputs() -> Iterator[tuple[str, Make, tuple[str, ...], bool]]:
    """Yield trials of the layout's files: name, what changes one, what reads it, and whether that may end well."""
    for what, name in {"exemplar": "exemplar/shapes/x/0.png", "query": "synth/shapes/object/x/samples/00000.png",
                       "distractor": "laion_subset/0.png"}.items():  # fmt: skip
        path = Path(LAYOUT) / name
        yield f"published {what}/missing", path.unlink, ("abc_read anew",), what == "distractor"
        yield f"published {what}/no image", partial(_write, path, b"x"), ("abc_read anew",), False
        yield f"published {what}/cut", partial(_cut, path), ("abc_read anew",), False


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])
