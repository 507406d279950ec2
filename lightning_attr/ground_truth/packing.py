"""Building the pack of a sweep from the folders of its finished entries.

Shapes: Q queries, D draws.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.store import Store
from lightning_attr.artifacts.before import found
from lightning_attr.artifacts.expect import expect_settings
from lightning_attr.artifacts.provenance import check_made_from
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError
from lightning_attr.ground_truth.metrics.functional import feature_similarity
from lightning_attr.ground_truth.pack import UNATTRIBUTED, Model, Pack
from lightning_attr.ground_truth.retrained import deviation_of, load_retrained, removed_group
from lightning_attr.models import load
from lightning_attr.runs.folder import LIBRARIES


def collect(
    entries: Sequence[str | Path], store: str, original: str, queries: str, settings: Mapping[str, Any]
) -> Pack:
    """Build the pack of a sweep.

    Args:
        entries: The folders of its entries, all finished.
        store: What the original was trained on.
        original: The original's checkpoint.
        queries: The query store.
        settings: What else to keep; anything that JSON can hold.

    Raises:
        UserError: An entry is not finished or damaged, or is of other draws or another original, store or query store.
    """
    folders = [Path(entry) for entry in entries]
    _check_finished(folders)
    digests = {name: file_digest(path) for name, path in _files(original, queries, store).items()}
    sample_id, query_id = (torch.from_numpy(Store(path).ids.astype(np.int64)) for path in (store, queries))
    read = [_read_entry(folder, digests) for folder in folders]
    draws = _common_draws(read)
    trained = load(original)
    return Pack(
        models=tuple(entry.model for entry in read),
        masks=torch.stack([~torch.isin(sample_id, entry.tensors["removed_id"]) for entry in read]),
        sample_id=sample_id,
        query_id=query_id,
        losses=torch.stack([entry.spread("retrained_losses", query_id) for entry in read]).float(),
        original_losses=_original_losses(read, query_id),
        deviations=torch.stack([entry.spread("deviation", query_id) for entry in read]),
        similarities=torch.stack([entry.spread("similarity", query_id) for entry in read]),
        weights=trained.weights,
        null=trained.null,
        configs={**trained.configs, "latent_shape": list(trained.latent_shape)},
        queries=torch.frombuffer(bytearray(Path(queries).read_bytes()), dtype=torch.uint8),
        settings={
            **settings,
            "draws": draws,
            **({"base": _from_here(trained.base)} if trained.base else {}),
            "digests": digests,
            "versions": {library: version(library) for library in LIBRARIES},
        },
    )


def _from_here(path: str) -> str:
    """Return a path relative to the working directory where it lies below that: a pack is used on other machines."""
    whole = Path(path).resolve()
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else path


def _files(original: str, queries: str, store: str) -> dict[str, str]:
    return {"original": original, "queries": queries, "store": store}


class _Entry(NamedTuple):
    """A finished entry: the record of its model, its file and what the pack takes from it."""

    model: Model
    path: Path
    tensors: dict[str, Tensor]
    draws: dict[str, Any]

    def spread(self, name: str, query_id: Tensor) -> Tensor:
        """Return values of the measured queries at their places among all queries, NaN at the others."""
        values = self.tensors[name]
        result = torch.full((len(query_id), *values.shape[1:]), torch.nan, dtype=values.dtype)
        result[torch.searchsorted(query_id, self.tensors["query_id"])] = values
        return result


def _check_finished(folders: Sequence[Path]) -> None:
    if not folders:
        raise UserError("entries: found none, expected the folders of a sweep's entries")
    missing = [folder for folder in folders if not found(folder / "retraining.safetensors").is_file()]
    if missing:
        more = f", nor are {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(f"{missing[0]}/retraining.safetensors: no such file, the entry is not finished{more}")


def _read_entry(folder: Path, digests: Mapping[str, str]) -> _Entry:
    path = found(folder / "retraining.safetensors")
    tensors, settings = load_retrained(path)
    expect_settings(str(path), settings, {"seed": int, "draws": dict})
    for role, digest in digests.items():
        check_made_from(str(path), settings, role, digest, "the sweep")
    # Images and latents are not kept: those of all entries together may not fit into memory.
    kept = {name: tensors[name] for name in ("query_id", "removed_id", "original_losses", "retrained_losses")}
    kept["deviation"] = kept["similarity"] = deviation_of(tensors)
    if "original_latent" in tensors:
        kept["similarity"] = feature_similarity(tensors["original_latent"], tensors["retrained_latent"])
    name, method = _entry_name(folder), settings["method"]
    query, group = _removed_query(name, settings), removed_group(settings) or (None, None)
    model = Model(name, method, query, int(settings["k"]), int(settings["seed"]), *group)
    return _Entry(model, path, kept, settings["draws"])


def _entry_name(folder: Path) -> str:
    """Return the path below the sweep's ``entries``."""
    parts = folder.parts
    return "/".join(parts[parts.index("entries") + 1 :]) if "entries" in parts else folder.name


def _removed_query(name: str, settings: Mapping[str, Any]) -> int | None:
    """Return the query whose top an entry removed; entries that do not record it have it in their names."""
    if settings["method"] in UNATTRIBUTED:
        return None
    named = re.search(r"query-(\d+)/", name)
    query = settings.get("top_of", int(named[1]) if named else None)
    return query if isinstance(query, int) else None


def _common_draws(entries: Sequence[_Entry]) -> dict[str, Any]:
    first = entries[0]
    for entry in entries[1:]:
        if entry.draws != first.draws:
            raise UserError(f"{entry.path}: of draws {entry.draws}, expected {first.draws} as {first.path} has it")
    return first.draws


def _original_losses(entries: Sequence[_Entry], query_id: Tensor) -> Tensor:
    """Return the losses of all queries under the original [Q, D], on which the entries must agree."""
    result = entries[0].spread("original_losses", query_id)
    for entry in entries[1:]:
        losses = entry.spread("original_losses", query_id)
        both = ~(result.isnan() | losses.isnan())
        # The same up to what another machine's arithmetic makes of it.
        if not torch.allclose(result[both], losses[both], rtol=1e-3, atol=1e-5):
            raise UserError(f"{entry.path}: the original's losses differ from those in {entries[0].path}")
        result = torch.where(result.isnan(), losses, result)
    return result.float()
