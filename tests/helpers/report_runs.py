"""A small run, saved by the project's own functions: four queries, two rankings, three retrained models, metrics."""

import io
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from synthetic_packs import world

from datamodules.store import Store
from datamodules.store.records import Field, Meta, Sample, Schema
from datamodules.store.writer import StoreWriter
from lightning_attr.artifacts import save_tensors
from lightning_attr.artifacts.records import read_record, write_record
from lightning_attr.artifacts.scores import Scores
from lightning_attr.digests import file_digest
from lightning_attr.ground_truth import as_json, evaluate
from lightning_attr.runs.folder import RunFolder

SAMPLES, SIDE = 40, 16
QUERIES = (0, 1, 2, 4)
HOSTILE = "<script>alert('caption')</script> & \"quotes\""
CONTROLS = "\x1b[2J\x00\u202e"
LONG = "long " * 40_000
LICENCE = "Attribution-ShareAlike License (http://creativecommons.org/licenses/by-sa/2.0/)"
SOURCE = "http://farm8.example.org/7452/8930538048_z.jpg"
METHODS = ("influence-ekfac", "gradient-dot", "trak", "d-trak", "journey-trak", "random")
METRICS = {
    "unlearning/recall_at_10": {"mean": 0.625, "standard_error": 0.05, "known": 4, "unknown": 0},
    "unlearning/recall_at_5": {"mean": 0.3125, "standard_error": 0.04, "known": 4, "unknown": 0},
    "similarity-latent/recall_at_10": {"mean": 0.25, "standard_error": float("nan"), "known": 1, "unknown": 3},
    "unlearning/mean_average_precision": {
        "mean": float("nan"),
        "standard_error": float("nan"),
        "known": 0,
        "unknown": 4,
    },
    "top/k=8/loss_change": {"mean": 0.02, "standard_error": 0.01, "known": 4, "unknown": 0},
}


@dataclass(frozen=True)
class Builder:
    """Adds the parts of a run to a folder, as the stages do."""

    root: Path

    @property
    def train(self) -> Path:
        return self.root / "train.lmdb"

    @property
    def queries(self) -> Path:
        return self.root / "sample" / "queries.lmdb"

    def stage(self, name: str, verb: str, task: str, finish: bool = True, **init_args: Any) -> Path:
        trainer = {"default_root_dir": str(self.root / name), "max_steps": 7, "precision": "32-true"}
        model = {"class_path": f"lightning_attr.tasks.{task}", "init_args": init_args}
        folder = RunFolder(self.root / name)
        assert folder.start(verb, {"seed_everything": 3, "trainer": trainer, "model": model, "data": {}})
        if finish:
            folder.finish()
        return folder.path

    def digests(self) -> dict[str, str]:
        return {"store": file_digest(self.train), "queries": file_digest(self.queries)}

    def training(self) -> None:
        metas = [Meta(3 * i, (f"caption number {3 * i}",), LICENCE, SOURCE, {}) for i in range(SAMPLES - 1)]
        metas.append(Meta(3 * SAMPLES, (HOSTILE + CONTROLS + LONG,), CONTROLS, "javascript:alert(1)", {}))
        write_store(self.train, metas)
        self.stage("train", "fit", "LatentDiffusion", learning_rate=0.001)

    def sampling(self) -> None:
        attributes = [{"seed": 10 + query, "steps": 50, "guidance": 7.5} for query in QUERIES]
        metas = [
            Meta(query, (f"prompt {query}",), None, "synthesized", attribute)
            for query, attribute in zip(QUERIES, attributes, strict=True)
        ]
        self.stage("sample", "predict", "Sampler", store=str(self.train), prompts=["prompt"])
        write_store(self.queries, metas)

    def unlearning(self, query: int) -> Scores:
        folder = self.stage(
            f"unlearn/{query}", "fit", "Unlearning", store=str(self.train), queries=str(self.queries), query=query
        )
        return self.scores(folder / "scores.safetensors", "unlearning", [query], scale=1e-4)

    def similarity(self) -> Scores:
        folder = self.stage("similarity", "predict", "Attribution", queries=str(self.queries), store=str(self.train))
        return self.scores(folder / "scores.safetensors", "similarity-latent", QUERIES)

    def scores(self, path: Path, method: str, queries: Any, scale: float = 1.0, **settings: Any) -> Scores:
        generator = torch.Generator().manual_seed(sum(queries))
        values = scale * torch.randn(len(queries), SAMPLES, generator=generator)
        ids = torch.from_numpy(Store(self.train).ids.copy())
        scores = Scores(values, torch.tensor(queries), ids, method, {**settings, "digests": self.digests()})
        scores.save(path)
        return scores

    def many_methods(self) -> dict[str, Scores]:
        """Scores that resemble each other more or less, and differ much in size."""
        self.training()
        self.sampling()
        generator = torch.Generator().manual_seed(0)
        base = torch.randn(len(QUERIES), SAMPLES, generator=generator)
        ids = torch.from_numpy(Store(self.train).ids.copy())
        made = {}
        for place, method in enumerate(METHODS):
            noise = torch.randn(base.shape, generator=generator)
            values = (noise if method == "random" else base + place * noise / 4) * 10.0 ** (-3 * place)
            made[method] = Scores(values, torch.tensor(QUERIES), ids, method, {"digests": self.digests()})
            made[method].save(self.root / "attribute" / method / "scores.safetensors")
        return made

    def leave_k_out(self, method: str, rise: float, folder: str | None = None) -> dict[str, torch.Tensor]:
        path = self.stage(
            f"leave_k_out/{folder or method}", "fit", "Retraining", queries=str(self.queries), method=method
        )
        generator = torch.Generator().manual_seed(int(1000 * rise))
        losses = torch.rand(len(QUERIES), 5, generator=generator)
        latent = torch.randn(len(QUERIES), 2, 4, 4, generator=generator)
        image = torch.randint(0, 256, (len(QUERIES), SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
        tensors = {
            "query_id": torch.tensor(QUERIES),
            "removed_id": torch.arange(8),
            "original_losses": losses,
            "retrained_losses": losses + rise * torch.rand(losses.shape, generator=generator),
            "original_latent": latent,
            "retrained_latent": latent + rise * torch.randn(latent.shape, generator=generator),
            "original_image": image,
            "retrained_image": 255 - image,
        }
        settings = {"method": method, "k": 8, "draws": {}, "digests": self.digests()}
        save_tensors(path / "retraining.safetensors", "retraining", tensors, settings)
        return tensors

    def evaluation(self) -> None:
        folder = self.stage("evaluate", "test", "Evaluation", retrained=["leave_k_out/top"])
        write_record(folder / "metrics.json", {"metrics": METRICS, "loss_changes": [], "pack": against_pack()})

    def forget_origin(self) -> None:
        """Let the manifests of a copy name no file that is there."""
        for path in self.root.rglob("manifest.json"):
            named = json.dumps(read_record(path, {}, "manifest"))
            write_record(path, json.loads(re.sub(r'"/[^"]*/', '"/gone/', named)))

    def everything(self) -> None:
        self.training()
        self.sampling()
        parts = [self.unlearning(query) for query in QUERIES]
        Scores.stack(parts).save(self.root / "unlearning.safetensors")
        self.similarity()
        for method, rise in (("random", 0.01), ("similarity", 0.05), ("top", 0.2)):
            self.leave_k_out(method, rise)
        self.evaluation()


@cache
def against_pack() -> dict[str, Any]:
    """An evaluation against a pack whose truth is known; the name of one method is foreign text."""
    made = world()
    noise = made.normal(*made.influence.shape)
    scores = {
        "truth": made.scores("truth", made.influence),
        "near": made.scores("near", made.influence + 0.05 * noise),
        HOSTILE: made.scores(HOSTILE, made.influence[:4] + 2 * noise[:4]),
        "noise": made.scores("noise", noise),
    }
    return dict(as_json(evaluate(made.pack(), scores)))


def write_store(path: Path, metas: list[Meta]) -> None:
    """A store whose thumbnails are coloured noise."""
    rng = np.random.default_rng(len(metas))
    path.parent.mkdir(parents=True, exist_ok=True)
    with StoreWriter(path, Schema({"latent": Field((1, 2), "float32", "latent")}, {})) as writer:
        for meta in metas:
            arrays = {"latent": rng.normal(size=(1, 2)).astype(np.float32)}
            writer.write(Sample(meta, arrays, jpeg(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))))
        writer.finish()


def jpeg(pixels: "np.ndarray[Any, Any]") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()
