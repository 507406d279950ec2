"""Show that a change of the code changes no result: run the same stages before and after, and compare every bit.

    python -m tools.same_bits record CLONE FILE [--coco DIR]
    python -m tools.same_bits compare BEFORE AFTER

``record`` runs the stages in an empty folder with the code of a clone: the demo, every method on the stores of both
packs, curvatures of each kind, leave-K-out, sweeps. Each stage is stopped in the middle once and goes on. It writes the
digests of all tensors that came out. Names may change between two versions, so a digest is over contents alone.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import xxhash
import yaml
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from datamodules import Store
from tools.demo import STORE

QUERIES = [0, 1]
"""The packs' queries that methods are compared on."""

UNFINISHED = ("checkpoints/last.ckpt", "chunks/*.safetensors", "*.partial", "../*.parts/*", "../*.chunks/*")
"""What a stage leaves behind that is in the middle, below its folder."""


RENAMED = {"leave_k_out.safetensors": "retraining.safetensors"}
"""Files that have another name now."""


@dataclass(frozen=True)
class Stage:
    """One command and what it makes.

    Args:
        name: Its folder below ``runs``.
        arguments: The command, without the interpreter.
        files: What to compare of what it makes, below ``runs/NAME``.
        stopped: Whether to stop it in the middle first.
    """

    name: str
    arguments: Sequence[str]
    files: Sequence[str]
    stopped: bool = True


@dataclass(frozen=True)
class Commands:
    """The commands of a clone, which were others while they lay in ``tools``.

    Args:
        clone: The folder of the code.
    """

    clone: Path
    old: bool = field(init=False)

    def __post_init__(self) -> None:
        """Look which commands there are."""
        object.__setattr__(self, "old", (self.clone / "tools" / "prepare_shapes.py").exists())

    def stage(self, verb: str, *configs: str, **overrides: Any) -> list[str]:
        """Return ``lightning-attr VERB``; ``a__b=1`` stands for ``--a.b 1``."""
        words = ["-m", "lightning_attr.cli" if self.old else "lightning_attr.main", verb]
        for config in configs:
            words += ["-c", f"configs/{config}.yaml"]
        for key, value in overrides.items():
            words += [f"--{key.replace('__', '.')}", value if isinstance(value, str) else json.dumps(value)]
        return words

    def attribute(self, world: str, method: str, **overrides: Any) -> list[str]:
        """Return the command that scores by a method; the default may be in ``attribute.yaml`` itself."""
        path = self.clone / "configs" / "methods" / f"{method}.yaml"
        above = (f"methods/{method}",) if path.exists() else ()
        return self.stage("predict", f"{world}/attribute", *above, **overrides)

    def shapes(self, *options: str) -> list[str]:
        """Return the command that makes a store of shapes."""
        return ["-m", "tools.prepare_shapes", *options] if self.old else self._verb("prepare", "shapes", options)

    def drawings(self, out: str) -> list[str]:
        """Return the command that makes the store of the demo."""
        return self._verb("prepare", "drawings", ["--out", out, *STORE])

    def coco(self, images: str, captions: str, ids: str, out: str) -> list[str]:
        """Return the command that makes the store of the COCO pack."""
        options = ["--images", images, "--captions", captions, "--ids", ids, "--out", out, "--workers", "0"]
        if self.old:
            encoders = ["patch-pca:patch=8,channels=4", "hashed-words:tokens=24,dim=64"]
            return [
                "-m", "tools.prepare_coco", *options, "--image-encoder", encoders[0], "--text-encoder", encoders[1],
            ]  # fmt: skip
        image = ["--image_encoder", "PatchPCA", "--image_encoder.patch", "8", "--image_encoder.channels", "4"]
        text = ["--text_encoder", "HashedWords", "--text_encoder.tokens", "24", "--text_encoder.dim", "64"]
        return self._verb("prepare", "coco", [*options, *image, *text])

    def sweep(self, *options: str) -> list[str]:
        """Return the command that runs a sweep."""
        return ["-m", "tools.sweep", *options] if self.old else self._verb("sweep", None, options)

    def unpack(self, pack: str, folder: str) -> list[str]:
        """Return the command that takes the original and the queries out of a pack."""
        options = [pack, "--unpack", folder]
        return ["-m", "tools.evaluate", *options] if self.old else self._verb("evaluate", None, options)

    def _verb(self, verb: str, of: str | None, options: Sequence[str]) -> list[str]:
        return ["-m", "lightning_attr.main", verb, *([of] if of else []), *options]


def demo(commands: Commands) -> Iterator[Stage]:
    """Yield the stages of the demo, and two sweeps of its model."""
    run = "runs/demo"
    yield Stage("demo", commands.drawings(f"{run}/train.lmdb"), ["train.lmdb"])
    yield Stage("demo/train", commands.stage("fit", "demo/train"), ["checkpoints/last.ckpt"])
    yield Stage("demo/sample", commands.stage("predict", "demo/sample"), ["queries.lmdb"])
    yield Stage("demo/curvature_ekfac", commands.stage("fit", "demo/curvature_ekfac"), ["curvature.safetensors"])
    yield Stage("demo/attribute/adapter", commands.attribute("demo", "adapter"), ["scores.safetensors"])
    topk = {"trainer__default_root_dir": f"{run}/attribute/topk", "model__init_args__topk": 20}
    yield Stage("demo/attribute/topk", commands.attribute("demo", "adapter", **topk), ["scores.safetensors"])
    similarity = commands.attribute("demo", "similarity_latent", trainer__default_root_dir=f"{run}/similarity")
    yield Stage("demo/similarity", similarity, ["scores.safetensors"])
    for method, exclude in (
        ("influence", f"{{scores: {run}/attribute/adapter/scores.safetensors, top: 8}}"),
        ("random", "{scores: null, top: null, random: 8}"),
    ):
        overrides = {
            "trainer__default_root_dir": f"{run}/leave_k_out/{method}",
            "model__init_args__method": method,
            "data__init_args__exclude": exclude,
        }
        yield Stage(f"demo/leave_k_out/{method}", commands.stage("fit", "demo/train", "demo/leave_k_out", **overrides),
                    ["checkpoints/last.ckpt", "leave_k_out.safetensors"])  # fmt: skip
    yield Stage("demo/evaluate", commands.stage(
        "test", "demo/evaluate", trainer__callbacks=[],
        model__init_args__retrained=[f"{run}/leave_k_out/influence", f"{run}/leave_k_out/random"],
        model__init_args__scores=[f"{run}/{name}/scores.safetensors" for name in ("attribute/adapter", "similarity")],
    ), ["metrics.json"])  # fmt: skip
    entries = [f"entries/subset/{subset}/seed-0/{file}" for subset in (0, 1)
               for file in ("checkpoints/last.ckpt", "leave_k_out.safetensors")]  # fmt: skip
    for name, group in (("sweep", "1"), ("grouped", "2")):
        yield Stage(f"demo/{name}", commands.sweep("-c", f"{name}.yaml", "--workers", "1", "--group", group),
                    [*entries, "pack.safetensors"], stopped=group == "1")  # fmt: skip


def sweep_config(folder: str) -> dict[str, Any]:
    """Return a sweep of two subsets, trained for fewer steps than the demo."""
    return {
        "folder": folder,
        "train": ["configs/demo/train.yaml", "short.yaml"],
        "original": "runs/demo/train/checkpoints/last.ckpt",
        "queries": "runs/demo/sample/queries.lmdb",
        "evaluation": {"timesteps": 20},
        "subsets": {"count": 2},
    }


def pack(commands: Commands, world: str, store: Stage) -> Iterator[Stage]:
    """Yield every curvature and method on a pack's original, queries and store."""
    run = f"runs/{world}"
    original = f"{run}/pack/original.ckpt"
    yield Stage(f"{world}/pack", commands.unpack(f"benchmarks/{world}/pack", f"{run}/pack"), [], stopped=False)
    yield store
    curvatures = {
        "curvature": ("curvature", {}),
        "curvature_ekfac": ("curvature_ekfac", {}),
        "curvature_kfac": ("curvature", {"model__init_args__kind": "kfac", "model__init_args__weights": "attention"}),
    }
    for name, (config, own) in curvatures.items():
        overrides = {"trainer__default_root_dir": f"{run}/{name}", "model__init_args__checkpoint": original, **own}
        yield Stage(
            f"{world}/{name}", commands.stage("fit", f"{world}/{config}", **overrides), ["curvature.safetensors"]
        )
    for query in QUERIES:
        given: dict[str, Any] = {
            "model__init_args__checkpoint": original,
            "model__init_args__queries": f"{run}/pack/queries.lmdb",
            "model__init_args__query": query,
        }
        for name in ("unlearn", "mirrored"):
            folder = f"{name}/{query}"
            named: dict[str, Any] = {"trainer__default_root_dir": f"{run}/{folder}"} | (
                {"trainer__callbacks": []} if name == "unlearn" else {}
            )
            yield Stage(
                f"{world}/{folder}", commands.stage("fit", f"{world}/{name}", **given, **named), ["weights.safetensors"]
            )
    if (commands.clone / f"configs/{world}/virtual_steps.yaml").exists():
        steps: dict[str, Any] = {
            "trainer__default_root_dir": f"{run}/virtual_steps",
            "model__init_args__checkpoint": original,
            "model__init_args__queries": f"{run}/pack/queries.lmdb",
            "model__init_args__query_ids": QUERIES,
        }
        command = commands.stage("fit", f"{world}/virtual_steps", **steps)
        yield Stage(f"{world}/virtual_steps", command, ["directions.safetensors"])
    methods = sorted(path.stem for path in (commands.clone / "configs" / "methods").glob("*.yaml"))
    for method in ("default", *(name for name in methods if name != "default")):
        scored: dict[str, Any] = {
            "trainer__default_root_dir": f"{run}/attribute/{method}",
            "model__init_args__queries": f"{run}/pack/queries.lmdb",
            "model__init_args__checkpoints": [] if method.startswith(("similarity", "random")) else [original],
            "model__init_args__query_ids": QUERIES,
        }
        yield Stage(f"{world}/attribute/{method}", commands.attribute(world, method, **scored), ["scores.safetensors"])


def stages(commands: Commands, coco: Path | None) -> Iterator[Stage]:
    """Yield everything that is compared; the COCO pack where its images are at hand."""
    yield from demo(commands)
    shapes = [
        "--out",
        "runs/shapes/train.lmdb",
        "--val",
        "runs/shapes/val.lmdb",
        "--count",
        "500",
        "--val-count",
        "100",
    ]
    shapes = shapes if commands.old else [word.replace("val-count", "val_count") for word in shapes]
    yield from pack(commands, "shapes", Stage("shapes", commands.shapes(*shapes), ["train.lmdb", "val.lmdb"]))
    if coco is not None:
        captions = coco / "annotations" / "captions_train2017.json"
        make = commands.coco(
            str(coco / "train2017"), str(captions), "runs/coco64/pack/sample_ids.txt", "runs/coco64/train.lmdb"
        )
        yield from pack(commands, "coco64", Stage("coco64", make, ["train.lmdb"]))


def record(clone: Path, coco: Path | None, folder: Path) -> Iterator[tuple[str, str]]:
    """Run all stages in a folder, and yield the name and digest of everything that came out."""
    for name in ("configs", "benchmarks"):
        if not (folder / name).exists():
            (folder / name).symlink_to(clone / name)
    (folder / "short.yaml").write_text("trainer: {max_steps: 60}\ncheckpoint: {every_n_train_steps: 20}\n")
    for name in ("sweep", "grouped"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"sweep": sweep_config(f"runs/demo/{name}")}))
    for stage in stages(Commands(clone), coco):
        start = time.perf_counter()
        stops = run(stage, clone, folder)
        print(f"{stage.name}: {time.perf_counter() - start:.0f} s, {stops} stops", file=sys.stderr, flush=True)
        for file in stage.files:
            yield f"{stage.name}/{file}", digest(_made(folder / "runs" / stage.name / file))


def _made(path: Path) -> Path:
    """Return the file under its name of today, where it had another one."""
    now = path.with_name(RENAMED.get(path.name, path.name))
    return path if path.exists() else now


def run(stage: Stage, clone: Path, folder: Path) -> int:
    """Run a stage to its end; return how often it was stopped on the way.

    Raises:
        RuntimeError: It failed.
    """
    env = {**os.environ, "PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"}
    command, stops = [sys.executable, *stage.arguments], 0
    for stop in (True, False) if stage.stopped else (False,):
        with (folder / "log.txt").open("w") as log:
            process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)
            if stop and _stopped(process, folder / "runs" / stage.name):
                stops += 1
                continue
            if process.wait():
                raise RuntimeError(
                    f"{' '.join(command)}: status {process.returncode}\n{(folder / 'log.txt').read_text()}"
                )
            break
    return stops


def _stopped(process: subprocess.Popen[bytes], folder: Path) -> bool:
    """Stop a process as soon as something is half done; return whether it was still running then."""
    while process.poll() is None:
        if any(next(folder.glob(pattern), None) for pattern in UNFINISHED):
            process.send_signal(signal.SIGTERM)
            return process.wait() != 0
        time.sleep(0.02)
    return False


def digest(path: Path) -> str:
    """Return the digest of the contents of a file of tensors, a store, a checkpoint or metrics."""
    if path.suffix == ".json":
        metrics = json.loads(path.read_text())["metrics"]
        return xxhash.xxh3_128_hexdigest(json.dumps(metrics, sort_keys=True).encode())
    tensors = (
        _arrays(path) if path.suffix == ".lmdb" else _checkpoint(path) if path.suffix == ".ckpt" else load_file(path)
    )
    parts = sorted(_of_tensor(tensor) for name, tensor in tensors.items() if name != "queries")  # a store's bytes
    return xxhash.xxh3_128_hexdigest("".join(parts).encode())


def _of_tensor(tensor: Tensor) -> str:
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return xxhash.xxh3_128_hexdigest(f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + data)


def _arrays(path: Path) -> dict[str, Tensor]:
    with Store(path) as store:
        arrays = {name: torch.from_numpy(store.read(name, range(len(store)))) for name in store.schema.fields}
        return {**arrays, "ids": torch.tensor(store.ids)}


def _checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the weights, their average and the optimizer's state, but no settings."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    kept = {key: content.get(key) for key in ("state_dict", "current_model_state", "optimizer_states")}
    return dict(_flatten(kept))


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping | list):
        for key, child in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _flatten(child, f"{name}/{key}")


def compare(before: Mapping[str, str], after: Mapping[str, str]) -> Table:
    """Return a table of everything that either has, and whether it is the same."""
    table = Table("what", "before", "after", "same")
    for name in dict.fromkeys([*before, *after]):
        was, now = before.get(name, "missing"), after.get(name, "missing")
        table.add_row(name, was[:8], now[:8], "yes" if was == now else "NO")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    from lightning_attr.console import print_table

    parser = argparse.ArgumentParser(
        prog="python -m tools.same_bits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run the stages of a clone")
    recording.add_argument("clone", type=Path, metavar="CLONE")
    recording.add_argument("file", type=Path, metavar="FILE", help="the digests; those that it has are not made again")
    recording.add_argument("--coco", type=Path, metavar="DIR", help="folder of COCO at 64x64, for its pack")
    recording.add_argument("--folder", type=Path, metavar="DIR", help="where to run, default a temporary folder")
    comparing = commands.add_parser("compare", help="compare two recordings")
    comparing.add_argument("before", type=Path, metavar="BEFORE")
    comparing.add_argument("after", type=Path, metavar="AFTER")
    args = parser.parse_args(arguments)
    if args.command == "compare":
        before, after = (json.loads(path.read_text()) for path in (args.before, args.after))
        print_table(compare(before, after))
        sys.exit(before != after)
    folder = (args.folder or Path(mkdtemp(prefix="same-bits-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, str] = {}
    for name, value in record(args.clone.resolve(), args.coco and args.coco.resolve(), folder):
        found[name] = value
        args.file.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
