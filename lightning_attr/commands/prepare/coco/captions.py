"""Read captions in COCO's JSON format."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from lightning_attr.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class CocoImage:
    """One entry of ``images``, with its captions in ascending order of their annotation ids."""

    id: int
    file_name: str
    captions: tuple[str, ...]
    licence: str | None
    source: str


def read_captions(path: Path) -> list[CocoImage]:
    """Read all images of a captions file in ascending order of their ids, those without captions included.

    Raises:
        UserError: The file is missing, is no JSON, or is not in COCO's captions format.
    """
    content = _read_json(path)
    licences = {entry.get("id"): _licence(entry) for entry in _entries(content, "licenses", path, optional=True)}
    captions = _captions_by_image(content, path)
    images = [
        CocoImage(
            id=_field(entry, "id", int, "images", path),
            file_name=_field(entry, "file_name", str, "images", path),
            captions=tuple(text for _, text in sorted(captions.get(entry["id"], []))),
            licence=licences.get(entry.get("license")),
            source=entry.get("flickr_url") or entry.get("coco_url") or entry["file_name"],
        )
        for entry in _entries(content, "images", path)
    ]
    images.sort(key=lambda image: image.id)
    for first, second in pairwise(images):
        if first.id == second.id:
            raise UserError(f"{path}: image id {first.id} appears twice, expected ids that are unique")
    return images


def _captions_by_image(content: Mapping[str, Any], path: Path) -> dict[int, list[tuple[int, str]]]:
    """Map image ids to their (annotation id, caption) pairs; blank captions are left out."""
    captions: dict[int, list[tuple[int, str]]] = {}
    for entry in _entries(content, "annotations", path):
        image_id = _field(entry, "image_id", int, "annotations", path)
        text = " ".join(_field(entry, "caption", str, "annotations", path).split())
        if text:
            captions.setdefault(image_id, []).append((_field(entry, "id", int, "annotations", path), text))
    return captions


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}), expected a COCO captions file") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise UserError(f"{path}: not JSON ({error}), expected a COCO captions file") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: found a JSON {type(content).__name__}, expected an object with images and annotations"
        )
    return content


def _entries(content: Mapping[str, Any], key: str, path: Path, optional: bool = False) -> list[Mapping[str, Any]]:
    if optional and key not in content:
        return []
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        found = f"keys {', '.join(map(repr, content))}" if key not in content else f"type {type(entries).__name__}"
        raise UserError(f"{path}: found {found}, expected a list of objects under {key!r}")
    return entries


def _field(entry: Mapping[str, Any], key: str, kind: type[T], where: str, path: Path) -> T:
    value = entry.get(key)
    if not isinstance(value, kind):
        raise UserError(f"{path}: {where}: found {key} {value!r}, expected {kind.__name__}, in {dict(entry)}")
    return value


def _licence(entry: Mapping[str, Any]) -> str | None:
    """Return the name and address of a licence."""
    name, url = entry.get("name", ""), entry.get("url", "")
    return f"{name} ({url})" if name and url else name or url or None
