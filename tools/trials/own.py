"""What a user brings: a pipeline, a LoRA over it, images with captions, an output; and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tools.trials.images import BROKEN, IMAGES, put

Make = Callable[[], None]

FOLDER = "others/own"
PIPELINE, LORA, PICTURES, OUTPUT = (f"{FOLDER}/{name}" for name in ("pipeline", "lora", "images", "out.png"))
ONE, TABLE, ASKED = (f"{FOLDER}/{name}" for name in ("one.safetensors", "table/metadata.jsonl", "asked.jsonl"))
LORA_FILE = f"{LORA}/pytorch_lora_weights.safetensors"
STORE, QUERIES, UNPACKED, ANSWER = (f"{FOLDER}/{name}" for name in ("own.lmdb", "asked.lmdb", "unpacked", "answer"))

#: The commands by name, and what each makes.
COMMANDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "prepare_images": (f"prepare images {PICTURES} --out {STORE} --model {PIPELINE} --workers 0", (STORE,)),
    "prepare_table": (f"prepare images {Path(TABLE).parent} --out {FOLDER}/table.lmdb --size 16 --workers 0",
                      (f"{FOLDER}/table.lmdb",)),
    "prepare_queries": (f"prepare queries {OUTPUT} --prompt cat --out {QUERIES} --encoders_from {STORE}", (QUERIES,)),
    "prepare_asked": (f"prepare queries {ASKED} --out {FOLDER}/lines.lmdb --encoders_from {STORE}",
                      (f"{FOLDER}/lines.lmdb",)),
    "prepare_model": (f"prepare model {ONE} --like {PIPELINE} --out {UNPACKED}", (UNPACKED,)),
    "explain": (
        f"explain --model {PIPELINE} --lora {LORA} --images {PICTURES} --query {OUTPUT} --prompt cat --draws 1 "
        f"--out {ANSWER}",
        (f"{ANSWER}/answer.json",),
    ),
}  # fmt: skip

#: Its files and folders, by their kinds.
FILES = {
    "pipeline": PIPELINE,
    "LoRA": LORA,
    "LoRA file": LORA_FILE,
    "model in one file": ONE,
    "own images": PICTURES,
    "own table": TABLE,
    "output": OUTPUT,
    "lines of outputs": ASKED,
    "own store": STORE,
    "own queries": QUERIES,
    "model spec": f"{ANSWER}/model.yaml",
}

_EXPLAIN = "explain --draws 1 --out runs/t --prompt cat"
#: Commands with one file of theirs left open, and what it may be.
OPEN = {
    "own images": (
        f"prepare images {{}} --out runs/t.lmdb --model {PIPELINE}", ("own images", "own table", "captions"),
    ),
    "own --model": (f"prepare images {PICTURES} --out runs/t.lmdb --model {{}}", ("pipeline", "model spec")),
    "own --encoders_from": (
        f"prepare images {PICTURES} --out runs/t.lmdb --size 32 --encoders_from {{}}",
        ("store", "query store", "own store", "own queries"),
    ),
    "own --out": (COMMANDS["prepare_images"][0].replace(STORE, "{}"), ("*", "own store")),
    "queries": (
        f"prepare queries {{}} --prompt cat --out runs/t.lmdb --encoders_from {STORE}",
        ("image", "images", "own images", "output", "lines of outputs"),
    ),
    "queries --encoders_from": (
        f"prepare queries {OUTPUT} --prompt cat --out runs/t.lmdb --encoders_from {{}}",
        ("store", "query store", "own store", "own queries"),
    ),
    "queries --out": (COMMANDS["prepare_queries"][0].replace(QUERIES, "{}"), ("*", "own queries")),
    "model": (f"prepare model {{}} --like {PIPELINE} --out runs/t", ("model in one file",)),
    "model --like": (f"prepare model {ONE} --like {{}} --out runs/t", ("pipeline",)),
    "model --out": (f"prepare model {ONE} --like {PIPELINE} --out {{}}", ("*",)),
    "explain --model": (f"{_EXPLAIN} --images {PICTURES} --query {OUTPUT} --model {{}}", ("pipeline",)),
    "explain --lora": (
        f"{_EXPLAIN} --model {PIPELINE} --images {PICTURES} --query {OUTPUT} --lora {{}}", ("LoRA", "LoRA file"),
    ),
    "explain --images": (
        f"{_EXPLAIN} --model {PIPELINE} --query {OUTPUT} --images {{}}",
        ("own images", "own table", "captions", "own store", "own queries"),
    ),
    "explain --query": (
        f"explain --draws 1 --out runs/t --prompt cat --model {PIPELINE} --images {PICTURES} --query {{}}",
        ("image", "images", "own images", "output", "lines of outputs"),
    ),
    "explain --out": (COMMANDS["explain"][0].replace(ANSWER, "{}"), ("*",)),
}  # fmt: skip

#: Options of commands with a number or a word.
NUMBERS = {
    "prepare_images": ("kind", "size", "crop", "exif_orientation", "captions_per_image", "flips", "limit", "workers",
                       "batch_size", "on_error", "device", "prompt", "caption_column"),
    "prepare_queries": ("prompt", "device", "batch_size", "on_error"),
    "explain": ("alpha", "variant", "size", "weights", "draws", "check", "train"),
}  # fmt: skip

#: Of the options, which wrong values have a meaning.
MEANT = (
    ("prepare_images", "limit", "1000000000"), ("prepare_images", "limit", "null"), ("prepare_images", "workers", "0"),
    ("prepare_images", "workers", "1000000000"), ("prepare_images", "batch_size", "1000000000"),
    ("prepare_images", "size", "null"), ("prepare_images", "captions_per_image", "null"),
    ("prepare_images", "prompt", "*"), ("prepare_images", "caption_column", "*"), ("prepare_queries", "prompt", "*"),
    ("prepare_queries", "batch_size", "1000000000"), ("explain", "alpha", "null"), ("explain", "alpha", "1.5"),
    ("explain", "alpha", "1000000000"), ("explain", "variant", "null"), ("explain", "size", "null"),
    ("explain", "weights", "null"), ("explain", "check", "null"), ("explain", "train", "null"),
)  # fmt: skip

_ASK = f"--images {PICTURES} --query {OUTPUT} --prompt cat --draws 1"
#: Command lines as they are, and whether each may end well.
LINES: dict[str, tuple[str, bool]] = {
    "images of nothing": ("prepare images", False),
    "images without --out": (f"prepare images {PICTURES}", False),
    "images and two encoders": (f"{COMMANDS['prepare_images'][0]} --encoders_from {STORE}", False),
    "images of no column": (f"{COMMANDS['prepare_table'][0]} --image_column banana", False),
    "captions of no column": (f"{COMMANDS['prepare_table'][0]} --caption_column banana", False),
    "images as shards": (f"prepare images {PICTURES} --out runs/t.lmdb --size 16 --kind webdataset", False),
    "a pattern of nothing": (f"prepare images {PICTURES}/*.tar --out runs/t.lmdb --size 16", False),
    "queries of nothing": (f"prepare queries --out runs/t.lmdb --encoders_from {STORE}", False),
    "queries without a prompt": (f"prepare queries {OUTPUT} --out runs/t.lmdb --encoders_from {STORE}", False),
    "an image twice": (
        f"prepare queries {OUTPUT} {OUTPUT} --prompt cat --out runs/t.lmdb --encoders_from {STORE}", True
    ),
    "no model": (f"explain {_ASK} --out runs/t", False),
    "no query": (f"explain --model {PIPELINE} --images {PICTURES} --out runs/t", False),
    "no out": (f"explain --model {PIPELINE} {_ASK}", False),
    "the same run for another": (f"explain --model {PIPELINE} {_ASK} --out {ANSWER}", False),
    "a check without a recipe": (f"explain --model {PIPELINE} {_ASK} --out runs/t --check 2", False),
    "all weights": (f"explain --model {PIPELINE} {_ASK} --out runs/t --weights all", False),
    "another's checkpoint": (
        f"explain --model runs/train/checkpoints/last.ckpt --images runs/train.lmdb --query {QUERIES} --out runs/t",
        False,
    ),
    "a checkpoint's own": (
        "explain --model runs/train/checkpoints/last.ckpt --images runs/train.lmdb --query runs/sample/queries.lmdb "
        "--draws 1 --out runs/t", True,
    ),
    "a plan": (f"explain --model {PIPELINE} {_ASK} --out runs/t --dry_run", True),
    "the answer again": (COMMANDS["explain"][0], True),
    "one file as a model": (f"explain --model {ONE} {_ASK} --out runs/t", False),
}  # fmt: skip

#: Files of settings of the pipeline and of the texts, and what reads each.
SETTINGS = {
    f"{PIPELINE}/{name}": ("explain anew", "prepare_images anew")
    for name in (
        "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
        "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json",
    )
}  # fmt: skip

#: Files of tensors of others, and what reads each.
TENSORS = {
    LORA_FILE: ("explain anew",),
    ONE: ("prepare_model anew",),
    f"{PIPELINE}/text_encoder/model.safetensors": ("prepare_images anew",),
    f"{PIPELINE}/vae/diffusion_pytorch_model.safetensors": ("prepare_images anew",),
    f"{PIPELINE}/unet/diffusion_pytorch_model.safetensors": ("explain anew",),
}

#: Lines in the place of a table's first one, and whether they may be right.
ROWS: Mapping[str, tuple[str, bool]] = {
    "no JSON": ("{", False),
    "a list": ("[1]", False),
    "no image": (json.dumps({"text": "cat"}), False),
    "no text": (json.dumps({"file_name": "0.png"}), False),
    "a number as a text": (json.dumps({"file_name": "0.png", "text": 7}), False),
    "an empty text": (json.dumps({"file_name": "0.png", "text": " "}), False),
    "texts": (json.dumps({"file_name": "0.png", "text": ["cat", "dog"]}), True),
    "a way out": (json.dumps({"file_name": "../out.png", "text": "cat"}), False),
    "the root": (json.dumps({"file_name": "/etc/passwd", "text": "cat"}), False),
    "no such image": (json.dumps({"file_name": "banana.png", "text": "cat"}), False),
    "the table itself": (json.dumps({"file_name": "metadata.jsonl", "text": "cat"}), False),
    "an image twice": (json.dumps({"file_name": "1.png", "text": "cat"}), False),
    "nul": (json.dumps({"file_name": "a\0b.png", "text": "cat"}), False),
    "a surrogate": ('{"file_name": "0.png", "text": "\\ud800"}', False),
    "a long text": (json.dumps({"file_name": "0.png", "text": "cat " * 100_000}), True),
    "deep": ('{"file_name": "0.png", "text": ' + "[" * 3000 + "]" * 3000 + "}", False),
    "nan": ('{"file_name": "0.png", "text": "cat", "seed": NaN}', True),
}


def make() -> None:
    """Make what a user brings, below the folder where this runs."""
    diffusers, transformers, peft = (import_module(name) for name in ("diffusers", "transformers", "peft"))
    torch.manual_seed(0)
    network = diffusers.UNet2DConditionModel.from_pretrained("others/unet")
    pipeline = diffusers.StableDiffusionPipeline(
        unet=network,
        vae=diffusers.AutoencoderKL.from_pretrained("others/vae"),
        text_encoder=transformers.CLIPTextModel.from_pretrained("others/text"),
        tokenizer=transformers.CLIPTokenizer.from_pretrained("others/text"),
        scheduler=diffusers.DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(PIPELINE)
    save_file({name: value.clone() for name, value in network.state_dict().items()}, ONE)
    network.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, target_modules=["to_k", "to_v"]))
    layers = peft.get_peft_model_state_dict(network)
    random = {name: value if "lora_A" in name else torch.randn(value.shape) for name, value in layers.items()}
    settings = network.peft_config["default"].to_dict()
    pipeline.save_lora_weights(LORA, unet_lora_layers=random, unet_lora_adapter_metadata=settings)
    _draw()


def _draw() -> None:
    """Draw the images: by a text beside each, and by a table; and an output."""
    folders = [Path(PICTURES), Path(TABLE).parent]
    for folder in folders:
        folder.mkdir()
        for number in range(4):
            coarse = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((24, 20)).save(folder / f"{number}.png")
    for number in range(4):
        (folders[0] / f"{number}.txt").write_text(["cat", "dot", "a cat", "bad"][number])
    rows = [json.dumps({"file_name": f"{number}.png", "text": "cat"}) for number in range(4)]
    Path(TABLE).write_text("\n".join(rows))
    Path(OUTPUT).write_bytes((folders[0] / "2.png").read_bytes())
    Path(ASKED).write_text(json.dumps({"image": "out.png", "prompt": "cat", "seed": 3, "steps": 20}))


def inputs() -> Iterator[tuple[str, Make, tuple[str, ...], bool]]:
    """Yield trials of images and tables: name, what changes the file, what reads it, and whether that may end well."""
    for name, draw in IMAGES.items():
        may = name not in BROKEN
        yield f"own image/{name}", partial(put, draw, f"{PICTURES}/0.png"), ("prepare_images anew", "explain anew"), may
        yield f"output/{name}", partial(put, draw, OUTPUT), ("prepare_queries anew", "explain anew"), may
    for name, (line, may) in ROWS.items():
        yield f"table/{name}", partial(_first_line, TABLE, line), ("prepare_table anew",), may
        asked = line.replace('"file_name"', '"image"').replace('"text"', '"prompt"').replace("0.png", "out.png")
        yield f"lines/{name}", partial(_first_line, ASKED, asked), ("prepare_asked anew",), name == "a long text"
    for name, data in TEXTS.items():
        may = name == "byte order"
        yield f"own text/{name}", partial(_write, f"{PICTURES}/0.txt", data), ("prepare_images anew",), may


#: A text beside an image.
TEXTS = {
    "nothing": b"",
    "blank": b" \n\n",
    "not UTF-8": b"caf\xe9",
    "UTF-16": "cat".encode("utf-16"),
    "byte order": b"\xef\xbb\xbfcat",
}


def _first_line(path: str, line: str) -> None:
    rest = Path(path).read_text().splitlines()[1:]
    Path(path).write_text("\n".join([line, *rest]))


def _write(path: str, data: bytes) -> None:
    Path(path).write_bytes(data)


def tensors(path: Path, where: str, ways: Mapping[str, Any]) -> Iterator[tuple[str, Make]]:
    """Yield ways to change some tensors of a file, one at a time."""
    names = sorted(load_file(path))
    for name in dict.fromkeys((names[0], names[len(names) // 2], names[-1])):
        for how in ways:
            yield f"{name} {how}", partial(_rewrite, where, name, ways[how])


def _rewrite(path: str, name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    content = load_file(path)
    changed = change(content.pop(name))
    if changed is not None:
        content[name] = changed.contiguous()
    save_file(content, path)
