"""A small project with every kind of file that the stages write and read, all paths relative to its folder.

It is made of the shipped configs, with sizes of their own on top.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from lightning_attr.curvature import KroneckerCurvature, load_curvature, save_factors
from tools.trials import known, own
from tools.trials.process import ROOT, Ended, command, forked

CONFIGS = ROOT / "lightning_attr" / "configs"
METHODS = sorted(path.stem for path in (CONFIGS / "methods").glob("*.yaml"))

#: The folders of a project. What is kept beside them is for the trials.
PARTS = ("configs", "coco", "others", "runs")

Config = dict[str, Any]

DENOISER = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}

#: What makes a shipped config small, by stage and key.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "train": {
        "trainer.max_steps": 6, "trainer.val_check_interval": 3, "trainer.log_every_n_steps": 1,
        "checkpoint.every_n_train_steps": 2, "model.init_args.denoiser": DENOISER,
        "model.init_args.warmup_steps": 2, "data.init_args.batch_size": 8,
        "trainer.callbacks.1.init_args.prompts": ["a purple star"], "trainer.callbacks.1.init_args.steps": 2,
    },
    "sample": {"model.init_args.steps": 3, "model.init_args.prompts": ["a purple star", "a red circle"]},
    "sample_store": {"model.init_args.steps": 3, "model.init_args.count": 2, "model.init_args.batch_size": 2},
    "curvature": {"trainer.max_epochs": 1, "data.init_args.batch_size": 8, "checkpoint.every_n_train_steps": 1},
    "curvature_kfac": {"trainer.max_epochs": 1, "data.init_args.batch_size": 8, "model.init_args.kind": "kfac"},
    "curvature_ekfac": {"trainer.max_epochs": 2, "data.init_args.batch_size": 8, "checkpoint.every_n_train_steps": 1},
    "unlearn": {
        "trainer.callbacks.0.init_args.draws.timesteps": 2, "trainer.callbacks.0.init_args.batch_size": 1,
        "model.init_args.draws.timesteps": 2,
    },
    "mirrored": {
        "trainer.max_steps": 2, "model.init_args.until": None, "model.init_args.draws.timesteps": 2,
        "data.init_args.batch_size": 8,
    },
    "virtual_steps": {
        "trainer.max_steps": 2, "checkpoint.every_n_train_steps": 1, "model.init_args.draws.timesteps": 2,
        "data.init_args.batch_size": 8,
    },
    "tuned_features": {
        "trainer.max_epochs": 2, "checkpoint.every_n_train_steps": 1, "model.init_args.batch_size": 2,
        "model.init_args.distractors": 4,
    },
    "leave_k_out": {
        "model.init_args.evaluation.timesteps": 4, "data.init_args.exclude.top": 4,
        "data.init_args.exclude.scores": "runs/attribute/trak/scores.safetensors",
    },
    "evaluate": {
        "model.init_args.retrained": ["runs/leave_k_out"],
        "model.init_args.scores": ["runs/attribute/trak/scores.safetensors"],
        "trainer.callbacks.0.init_args.first": 1,
        "model.init_args.relevant.k": [4],
    },
    "attribute": {
        "vars.timesteps": 2, "data.init_args.batch_size": 2,
        "trainer.callbacks": [{"class_path": "callbacks.TopImages", "init_args": {"queries": 1, "top": 1}}],
    },
    "sweep": {
        "sweep.evaluation.timesteps": 2, "sweep.random": {"k": [3], "count": 1},
        "sweep.top": {"scores": {"trak": "runs/attribute/trak/scores.safetensors"}, "k": [3], "queries": [0]},
        "sweep.subsets": {"count": 1, "seeds": 2}, "sweep.full.seeds": 1,
    },
}  # fmt: skip

#: The shipped config of a stage that has another name, and the experiment that has it.
SHIPPED = {
    "sample": ("demo", "sample"),
    "sample_store": ("shapes", "sample"),
    "curvature_kfac": ("shapes", "curvature"),
    "evaluate": ("demo", "evaluate"),
    "tuned_features": ("abc", "tuned_features"),
}

VERBS = {"sample": "predict", "attribute": "predict", "evaluate": "test"}

QUERIES = range(2)

SWEEP = ("sweep", "-c", "configs/sweep.yaml")

PACK = ("runs/sweep/pack.json", "runs/sweep/pack.safetensors")

#: Of the sweep, in order.
ENTRIES = ("top/trak/query-0/k-3", "random/k-3/0", "subset/0/seed-0", "subset/0/seed-1", "full/seed-1")

#: What the sizes of methods are; those whose shipped sizes are small already have none.
METHOD_SIZES = {"projection": 8, "draws": {"timesteps": 2}, "noises": 2}

#: Methods that no shipped config has, by what their configs say.
OTHER_METHODS: Mapping[str, Config] = {
    "vision": {"class_path": "lightning_attr.methods.VisionSimilarity", "init_args": {"model": "others/vision"}},
    "kfac": {
        "class_path": "lightning_attr.methods.Influence",
        "init_args": {"curvature": "runs/curvature_kfac/curvature.safetensors", "output": {"draws": {"timesteps": 2}}},
    },
    "factors": {
        "class_path": "lightning_attr.methods.Influence",
        "init_args": {"curvature": "others/factors_ekfac", "output": {"draws": {"timesteps": 2}}},
    },
}

#: The commands beside Lightning's verbs, and what each makes.
COMMANDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "prepare_shapes": (
        "prepare shapes --out runs/train.lmdb --val runs/val.lmdb --count 24 --val_count 8 --planted 4 --tokens 6 "
        "--dim 16",
        ("runs/train.lmdb", "runs/val.lmdb"),
    ),
    "prepare_coco": (
        "prepare coco --images coco/images --captions coco/captions.json --out runs/coco.lmdb --size 32 --workers 0 "
        "--batch_size 4",
        ("runs/coco.lmdb",),
    ),
    "evaluate_run": (f"evaluate {PACK[0]} runs/attribute/trak/scores.safetensors --out runs/packed", ("runs/packed",)),
    "evaluate_pack": (f"evaluate {PACK[0]} runs/attribute/trak/scores.safetensors", ()),
    "unpack": (f"evaluate {PACK[0]} --unpack runs/unpacked", ("runs/unpacked",)),
    "inspect": ("inspect runs/train.lmdb --verify --captions 24", ()),
    "report": ("report runs", ("runs/report.html",)),
    **own.COMMANDS,
    **known.COMMANDS,
    **known.LAST,
}


@dataclass(frozen=True)
class Stage:
    """A command of the project.

    Attributes:
        name: Of it, and of its folder below ``runs`` where it is a run.
        args: Of ``lightning-attr``.
        makes: The files and folders that are its results.
        config: The name of its config; None where it has none.
    """

    name: str
    args: tuple[str, ...]
    makes: tuple[str, ...]
    config: str | None = None

    def with_config(self, path: str) -> Stage:
        """Return the same with another file as its config."""
        words = tuple(path if word == f"configs/{self.config}.yaml" else word for word in self.args)
        return replace(self, args=words)


def stages() -> dict[str, Stage]:
    """Return every stage, in the order in which they are run."""
    return {stage.name: stage for stage in _stages()}


def _stages() -> Iterator[Stage]:
    for name in ("prepare_shapes", "prepare_coco", *own.COMMANDS):
        yield _command(name)
    for name in ("train", "sample", "sample_store", "curvature", "curvature_kfac", "curvature_ekfac"):
        yield _of_config(name, name)
    for name in known.COMMANDS:
        yield _command(name)
    yield _of_config("tuned", "tuned_features")
    yield _of_config("virtual_steps", "virtual_steps")
    for query in map(str, QUERIES):
        yield _of_config(f"unlearn/{query}", "unlearn", "--model.init_args.query", query)
        yield _of_config(f"mirrored/{query}", "mirrored", "--model.init_args.query", query)
    for method in (*METHODS, *OTHER_METHODS):
        yield _of_config(f"attribute/{method}", f"attribute_{method}")
    yield _of_config("attribute/top", "attribute_trak", "--model.init_args.topk", "5")
    yield _of_config("others", "attribute_trak", "--model.init_args.checkpoints", '["others/unet"]')
    yield _of_config("leave_k_out", "leave_k_out")
    yield _of_config("evaluate", "evaluate")
    for index, entry in enumerate(ENTRIES):
        yield Stage(f"sweep/{entry}", (*SWEEP, "--index", str(index)), (f"runs/sweep/entries/{entry}",), "sweep")
    yield Stage("sweep", SWEEP, PACK, "sweep")
    yield Stage("sweep_list", (*SWEEP, "--list"), (), "sweep")
    for name in ("evaluate_run", "evaluate_pack", "unpack", "inspect", "report", *known.LAST):
        yield _command(name)


def _command(name: str) -> Stage:
    words, makes = COMMANDS[name]
    return Stage(name, tuple(words.split()), makes)


def _of_config(name: str, config: str, *overrides: str) -> Stage:
    verb = VERBS.get(config.partition("_")[0], "fit")
    folder = f"runs/{name}"
    where = ("--trainer.default_root_dir", folder)
    return Stage(name, (verb, "-c", f"configs/{config}.yaml", *overrides, *where), (folder,), config)


def configs() -> dict[str, Config]:
    """Return the project's configs by name: the shipped ones, made small."""
    found = {name: sized(_shipped(*SHIPPED.get(name, ("shapes", name))), SIZES[name]) for name in SIZES}
    attribute = found.pop("attribute")
    for method in METHODS:
        found[f"attribute_{method}"] = merged(attribute, _small(_shipped("methods", method)))
    for method, settings in OTHER_METHODS.items():
        found[f"attribute_{method}"] = merged(attribute, {"model": {"init_args": {"method": settings}}})
    found["leave_k_out"] = merged(found["train"], found["leave_k_out"])
    return found


def _known_configs() -> dict[str, Config]:
    """Return the configs of customised models by name; commands read them that are no stages."""
    found = {f"abc_{name}": sized(_shipped("abc", name), values) for name, values in known.SIZES.items()}
    return found | {"cosine": dict(known.COSINE), "similarity_latent": _shipped("methods", "similarity_latent")}


def _shipped(experiment: str, name: str) -> Config:
    text = (CONFIGS / experiment / f"{name}.yaml").read_text()
    for folder in ("runs/demo", "runs/shapes"):
        text = text.replace(folder, "runs")
    for folder in ("configs/demo", "configs/shapes"):
        text = text.replace(folder, "configs")
    config: Config = yaml.safe_load(text)
    return config


def _small(config: Any) -> Any:
    """Return a method's config with small sizes, wherever they are in it."""
    if not isinstance(config, dict):
        return config
    return {key: METHOD_SIZES[key] if key in METHOD_SIZES else _small(value) for key, value in config.items()}


def sized(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a config with other values, by their dotted keys."""
    for key, value in values.items():
        put(config, key, value)
    return config


def put(config: Any, key: str, value: Any) -> None:
    """Put a value at a dotted key into nested mappings and lists; what is missing on the way is made."""
    first, _, rest = key.partition(".")
    at = int(first) if isinstance(config, list) else first
    if not rest:
        config[at] = value
        return
    if isinstance(config, dict) and not isinstance(config.get(first), dict | list):
        config[first] = {}
    put(config[at], rest, value)


def merged(below: Config, above: Config) -> Config:
    """Return a mapping with another one on top of it, as configs go on top of each other."""
    result = copy.deepcopy(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else copy.deepcopy(value)
    return result


def make(folder: Path, only: Collection[str] | None = None) -> None:
    """Make the project in a folder; what is there already is not made again.

    Args:
        folder: The folder.
        only: The stages to run; None is all.

    Raises:
        RuntimeError: A stage fails.
    """
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    for name, config in configs().items():
        (folder / f"configs/{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    for name, config in _known_configs().items():
        (folder / f"configs/{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    if not (folder / "others").exists():
        _check(forked(make_others, folder, 120), "others")
    for stage in stages().values():
        if only is None or stage.name in only:
            _check(command(stage.args, folder, 300), " ".join(stage.args))
            if stage.name == "curvature_ekfac" and not (folder / "others/factors_ekfac").exists():
                _check(forked(_make_factors, folder, 60), "factors")


def _check(ended: Ended, what: str) -> None:
    if ended.status != 0:
        raise RuntimeError(f"{what}: status {ended.status}\n{ended.out}{ended.err}")


def make_others() -> None:
    """Make what others publish: images with captions, a network of diffusers, models of vision and of text."""
    _make_images(Path("coco"), 10)
    torch.manual_seed(0)
    folder = Path("others")
    diffusers, transformers = import_module("diffusers"), import_module("transformers")
    diffusers.UNet2DConditionModel(**DENOISER).save_pretrained(folder / "unet")
    diffusers.DDPMScheduler().save_pretrained(folder / "scheduler")
    sides = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    vision = transformers.ViTModel(transformers.ViTConfig(**sides, intermediate_size=16), add_pooling_layer=False)
    vision.save_pretrained(folder / "vision")
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder / "vision")
    _make_text(folder / "text")
    vae = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4}
    diffusers.AutoencoderKL(**vae, **sizes).save_pretrained(folder / "vae")
    own.make()
    known.make()


def _make_text(folder: Path) -> None:
    transformers = import_module("transformers")
    folder.mkdir(parents=True)
    words = ["<|startoftext|>", "<|endoftext|>", *(letter + end for letter in "abcdeot" for end in ("", "</w>"))]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate([*words, "ca", "cat</w>"])}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=9).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.CLIPTextConfig(vocab_size=len(words) + 2, max_position_embeddings=9, **sizes, **ends)
    transformers.CLIPTextModel(config).save_pretrained(folder)


def _make_images(folder: Path, count: int) -> None:
    (folder / "images").mkdir(parents=True)
    content: Config = {"licenses": [{"id": 1, "name": "CC BY", "url": "http://x.example"}], "images": []}
    content["annotations"] = [
        {"id": 10 * image + k, "image_id": image, "caption": f"caption {k} of image {image}"}
        for image in range(1, count + 1)
        for k in range(1 + image % 3)
    ]
    for image in range(1, count + 1):
        name = f"{image:04}.{'png' if image % 2 else 'jpg'}"
        coarse = np.random.default_rng(image).integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 36)).save(folder / "images" / name)
        content["images"].append(
            {"id": image, "file_name": name, "license": 1, "flickr_url": f"http://x.example/{image}"}
        )
    (folder / "captions.json").write_text(json.dumps(content))


def _make_factors() -> None:
    curvature = load_curvature("runs/curvature_ekfac/curvature.safetensors")
    assert isinstance(curvature, KroneckerCurvature)
    save_factors("others/factors_ekfac", curvature)
