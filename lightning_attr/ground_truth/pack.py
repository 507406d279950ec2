"""The pack of a sweep: its finished ground truth in two files, against which scores are checked without retraining.

``NAME.safetensors`` holds the tensors; ``NAME.json``, the manifest, holds the settings, the list of retrained models
and the digest of the tensors.

Shapes: Q queries, N samples, M retrained models, D draws.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_attr.artifacts import load_tensors, save_tensors, write_atomically
from lightning_attr.artifacts.expect import expect_settings, expect_tensors
from lightning_attr.artifacts.records import read_record, write_record
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError
from lightning_attr.ground_truth.metrics.functional import loss_change
from lightning_attr.models.load import NULL, null_entries, null_of

FORMAT = 1

#: What a pack was made from.
ROLES = ("original", "queries", "store")

#: What models whose training set follows no attribution method have for its name.
UNATTRIBUTED = ("random", "subset", "full", "group")


class Model(NamedTuple):
    """One retrained model."""

    name: str
    """Of its entry in the sweep, such as ``top/similarity/query-3/k-20``."""
    method: str
    """``subset``, ``random``, ``full``, ``group``, or the attribution method whose top was removed."""
    query: int | None
    """The query whose top was removed; None where it was not that of one query."""
    k: int
    """How many samples were removed."""
    seed: int
    """Of the training."""
    group: str | None = None
    """The group that was removed."""
    grouping: str | None = None
    """By what samples are grouped there, such as ``artist``."""


@dataclass(frozen=True, eq=False)
class Pack:
    """The ground truth of a sweep.

    Args:
        models: The retrained models.
        masks: What each of them was trained on, bool [M, N].
        sample_id: Int64 [N], ascending.
        query_id: Int64 [Q], ascending.
        losses: The queries' losses under each of them, float32 [M, Q, D]; NaN where a query was not measured.
        original_losses: The same under the original model, on the same draws, [Q, D].
        deviations: Generation deviation Delta G of the latents, float64 [M, Q]; NaN likewise.
        similarities: Cosine of the regenerated latents with the original's, float64 [M, Q]; NaN likewise.
        weights: The original's weights, by name; of a fine-tuned model those that lie over its base.
        null: Its null conditions, by name.
        configs: Its ``denoiser``, ``scheduler`` and ``latent_shape``, and ``base`` where it is fine-tuned.
        queries: The query store, byte by byte, uint8.
        settings: ``draws``, ``digests`` of original, queries and store, ``versions``, where
            a ``base`` lies, and what the sweep adds.
    """

    models: tuple[Model, ...]
    masks: Tensor
    sample_id: Tensor
    query_id: Tensor
    losses: Tensor
    original_losses: Tensor
    deviations: Tensor
    similarities: Tensor
    weights: Mapping[str, Tensor]
    null: Mapping[str, Tensor]
    configs: Mapping[str, Any]
    queries: Tensor
    settings: Mapping[str, Any]

    @property
    def loss_changes(self) -> Tensor:
        """Return the loss change Delta L of each model and query, float64 [M, Q].

        It is that against the model of all samples and the same training seed where the pack has one, else against the
        original. Such models of all samples are themselves compared with the original.
        """
        full = {model.seed: row for row, model in enumerate(self.models) if model.method == "full"}
        rows = [None if model.method == "full" else full.get(model.seed) for model in self.models]
        before = [self.original_losses if row is None else self.losses[row] for row in rows]
        return loss_change(torch.stack(before), self.losses)

    def rows(self, method: str) -> list[int]:
        """Return which models are of a method."""
        return [row for row, model in enumerate(self.models) if model.method == method]

    def of_queries(self, ids: Collection[int]) -> Pack:
        """Return what the pack knows of those of its queries, without the models that others' tops were removed for.

        Raises:
            UserError: It has none of them.
        """
        known = self.query_id.tolist()
        columns = [column for column, query in enumerate(known) if query in ids]
        if not columns:
            raise UserError(f"queries: found none of the pack's, expected some of {known[0]} to {known[-1]}")
        rows = [row for row, model in enumerate(self.models) if model.query is None or model.query in ids]
        measured = ("losses", "deviations", "similarities")
        return replace(
            self,
            models=tuple(self.models[row] for row in rows),
            masks=self.masks[rows],
            query_id=self.query_id[columns],
            original_losses=self.original_losses[columns],
            **{name: getattr(self, name)[rows][:, columns] for name in measured},
        )

    def save(self, path: str | Path) -> None:
        """Write both files; a pack is whole only with the second, the manifest."""
        manifest_path, tensors_path = pack_files(path)
        plain = {name: getattr(self, name) for name in _TENSORS}
        packed = torch.from_numpy(np.packbits(self.masks.numpy(), axis=1))
        weights = {f"original/{name}": weight for name, weight in self.weights.items()}
        save_tensors(
            tensors_path, "pack", {**plain, **null_entries(self.null), **weights, "masks": packed}, {"format": FORMAT}
        )
        manifest = {
            "format": FORMAT,
            "settings": dict(self.settings),
            "original": dict(self.configs),
            "models": [_said(model) for model in self.models],
            "tensors": file_digest(tensors_path),
        }
        write_record(manifest_path, manifest)

    @classmethod
    def load(cls, path: str | Path) -> Pack:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: A file is missing, damaged, or not of this pack; it says which.
        """
        manifest_path, tensors_path = pack_files(path)
        manifest = _read_manifest(manifest_path)
        tensors, _ = load_tensors(tensors_path, "pack")
        if (found := file_digest(tensors_path)) != manifest["tensors"]:
            raise UserError(
                f"{tensors_path}: damaged or of another pack: found digest {found}, "
                f"expected {manifest['tensors']} as {manifest_path} has it"
            )
        models, samples = len(manifest["models"]), tensors["sample_id"].numel() if "sample_id" in tensors else 0
        expect_tensors(tensors_path, tensors, TENSORS, M=models, B=-(-samples // 8))
        # What the original would be restored from; losses may be unknown.
        known = [name for name in tensors if name.startswith(("original/", NULL))]
        if strange := [name for name in known if not bool(tensors[name].isfinite().all())]:
            raise UserError(f"{tensors_path}: found {strange[0]} that is not finite, expected finite numbers")
        bits = np.unpackbits(tensors["masks"].numpy(), axis=1, count=len(tensors["sample_id"]))
        return cls(
            models=tuple(Model(**model) for model in manifest["models"]),
            masks=torch.from_numpy(bits).bool(),
            weights={name.removeprefix("original/"): tensors[name] for name in tensors if name.startswith("original/")},
            null=null_of(tensors),
            configs=manifest["original"],
            settings=manifest["settings"],
            **{name: tensors[name] for name in _TENSORS},
        )


#: The tensors that are stored as they are: Y bytes of the query store.
_TENSORS: Mapping[str, str] = {
    "sample_id": "int N",
    "query_id": "int Q",
    "losses": "float M Q D",
    "original_losses": "float Q D",
    "deviations": "float M Q",
    "similarities": "float M Q",
    "queries": "int Y",
}

#: All of the models, and B bytes of eight samples each.
TENSORS: Mapping[str, str] = {**_TENSORS, "masks": "int M B"}


def _said(model: Model) -> dict[str, Any]:
    """Return a model as the manifest has it: of a group only where one was removed, as earlier versions read it."""
    return {name: value for name, value in model._asdict().items() if name not in Model._field_defaults or value}


def pack_files(path: str | Path) -> tuple[Path, Path]:
    """Return the manifest and the tensors of a pack that is named by either of them, or by their common name."""
    path = Path(path)
    name = path.name.removesuffix(".json").removesuffix(".safetensors")
    return path.with_name(f"{name}.json"), path.with_name(f"{name}.safetensors")


def _read_manifest(path: Path) -> dict[str, Any]:
    expected = {"format": int, "settings": dict, "original": dict, "models": list, "tensors": str}
    manifest = read_record(path, expected, "manifest of a pack")
    if manifest["format"] != FORMAT:
        raise UserError(f"{path}: found a pack of format {manifest['format']}, expected {FORMAT}")
    for index, model in enumerate(manifest["models"]):
        if not isinstance(model, dict) or {*model} | {*Model._field_defaults} != {*Model._fields}:
            raise UserError(f"{path}: found no model in models[{index}], expected {', '.join(Model._fields)}")
        expect_settings(f"{path}: models[{index}]", model, {"name": str, "method": str, "k": int, "seed": int})
        if not isinstance(model["query"], int | None):
            raise UserError(f"{path}: models[{index}]: found query {model['query']!r}, expected an id or none")
        for name in Model._field_defaults:
            if not isinstance(model.get(name), str | None):
                raise UserError(f"{path}: models[{index}]: found {name} {model[name]!r}, expected a name or none")
    expect_settings(f"{path}: settings", manifest["settings"], {"draws": dict, "digests": dict})
    expect_settings(f"{path}: digests", manifest["settings"]["digests"], dict.fromkeys(ROLES, str))
    expect_settings(f"{path}: original", manifest["original"], {"denoiser": dict, "scheduler": dict})
    return manifest


def unpack(pack: Pack, folder: str | Path) -> None:
    """Write ``original.ckpt``, as any task's ``checkpoint``, ``queries.lmdb``, and ``sample_ids.txt``, one id a line.

    Files that are there already stay.

    Raises:
        UserError: One that is there already is another one.
    """
    folder = Path(folder)
    files = {
        folder / "original.ckpt": _checkpoint(pack),
        folder / "queries.lmdb": pack.queries.numpy(),
        folder / "sample_ids.txt": "".join(f"{sample}\n" for sample in pack.sample_id.tolist()).encode(),
    }
    for path, content in files.items():
        if path.exists() and path.read_bytes() != bytes(content):
            raise UserError(f"{path}: found another file there, expected none or the pack's own; choose another folder")
    for path, content in files.items():
        if not path.exists():
            write_atomically(path, bytes(content))


def _checkpoint(pack: Pack) -> bytes:
    """Return the original as :func:`~lightning_attr.models.load` reads it."""
    buffer = io.BytesIO()
    weights = {f"denoiser.{name}": weight for name, weight in pack.weights.items()}
    record = {**pack.configs, "made_from": {"store": pack.settings["digests"]["store"]}, **null_entries(pack.null)}
    base = {"base": pack.settings["base"]} if "base" in pack.configs else {}
    torch.save({"state_dict": weights, "trained_model": record, **base}, buffer)
    return buffer.getvalue()
