"""The model spec: a small file that names a model and the adapter over it, with their digests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_attr.artifacts import write_atomically
from lightning_attr.digests import file_digest, joined_digest
from lightning_attr.errors import UserError, one_line, quoted
from lightning_attr.models.objective import Objective, read_objective

#: What a spec says, and the types of it.
ENTRIES: Mapping[str, tuple[type, ...]] = {
    "model": (str,),
    "adapter": (str, type(None)),
    "alpha": (int, float, type(None)),
    "variant": (str, type(None)),
    "objective": (dict, type(None)),
    "digests": (dict,),
}


@dataclass(frozen=True)
class Spec:
    """What a spec names.

    Attributes:
        model: A folder of diffusers, a checkpoint or a single file.
        adapter: A file or folder; None is none.
        alpha: Of a LoRA whose file lost it.
        variant: Which weights of a folder, such as ``fp16``.
        objective: What training minimised.
    """

    model: Path
    adapter: Path | None = None
    alpha: float | None = None
    variant: str | None = None
    objective: Objective = field(default_factory=Objective)


def read_spec(path: str | Path) -> Spec:
    """Read a spec, and compare the digests in it with what is there.

    Raises:
        UserError: It is no spec, or a file is missing or another one.
    """
    path = Path(path)
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not YAML ({one_line(error)})") from error
    if not isinstance(found, dict) or "model" not in found:
        raise UserError(f"{path}: found no model in it, expected a model spec: {', '.join(ENTRIES)}")
    _check_entries(path, found)
    spec = Spec(
        path.parent / found["model"],
        path.parent / found["adapter"] if found.get("adapter") else None,
        found.get("alpha"),
        found.get("variant"),
        _objective(path, found.get("objective") or {}),
    )
    digests = _digests(spec, path)
    if "digests" not in found:
        line = yaml.safe_dump({"digests": digests}, default_flow_style=True, sort_keys=False, width=10_000).strip()[
            1:-1
        ]
        raise UserError(f"{path}: found no digests, expected the line {line}")
    for role in ("model", "adapter"):
        if (known := found["digests"].get(role)) != digests[role]:
            raise UserError(f"{path}: digests.{role}: found {known}, expected {digests[role]} as {found[role]} has it")
    return spec


def _objective(path: Path, given: Mapping[str, Any]) -> Objective:
    try:
        return read_objective("objective", given)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _check_entries(path: Path, found: Mapping[Any, Any]) -> None:
    if strange := [name for name in found if name not in ENTRIES]:
        raise UserError(f"{path}: found {quoted(strange[0])}, expected {', '.join(ENTRIES)} alone")
    for name, types in ENTRIES.items():
        value = found.get(name)
        if name in found and (not isinstance(value, types) or isinstance(value, bool)):
            known = " or ".join("null" if each is type(None) else each.__name__ for each in types)
            raise UserError(f"{path}: {name}: found {quoted(value)}, expected {known}")
    if (alpha := found.get("alpha")) is not None and not 0 < alpha < float("inf"):
        raise UserError(f"{path}: alpha: found {alpha}, expected a positive number")


def write_spec(
    path: str | Path,
    model: str | Path,
    adapter: str | Path | None = None,
    alpha: float | None = None,
    variant: str | None = None,
    objective: Objective = Objective(),
) -> None:
    """Write a spec, unless it is there already; paths in it are relative to its folder.

    Args:
        path: Of the spec, such as ``model.yaml``.
        model: See :class:`Spec`, as are the others.
        adapter: The adapter.
        alpha: Its alpha.
        variant: The variant.
        objective: What training minimised; what is not given is as is usual for the network's family.

    Raises:
        UserError: The model or the adapter is not there.
    """
    path = Path(path)
    spec = Spec(Path(model), Path(adapter) if adapter is not None else None, alpha, variant, objective)

    def relative(named: Path | None) -> str | None:
        return None if named is None else os.path.relpath(named.resolve(), path.resolve().parent)

    content = {
        "model": relative(spec.model),
        "adapter": relative(spec.adapter),
        "alpha": alpha,
        "variant": variant,
        **({"objective": given} if (given := objective.given) else {}),
        "digests": _digests(spec, path),
    }
    text = yaml.safe_dump(content, sort_keys=False).encode()
    if not path.is_file() or path.read_bytes() != text:
        write_atomically(path, text)


def _digests(spec: Spec, path: Path) -> dict[str, str | None]:
    for named in (spec.model, spec.adapter):
        if named is not None and not (named.is_file() or named.is_dir()):  # a pipe would be waited for
            raise UserError(f"{path}: found no file or folder {named}, expected what the spec names")
    return {
        "model": named_digest(spec.model),
        "adapter": None if spec.adapter is None else file_digest(spec.adapter),
    }


def named_digest(path: Path) -> str:
    """Return the digest of the model that a path names: of a network's folder, with the scheduler's beside it."""
    if path.is_dir() and not (path / "model_index.json").is_file():
        return joined_digest([path, path.parent / "scheduler"])
    return file_digest(path)
