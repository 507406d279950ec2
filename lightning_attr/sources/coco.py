"""Images with captions in COCO's JSON format."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any, ClassVar, TypeVar

from datamodules.store.records import check_text
from lightning_attr.errors import UserError, one_line, quoted, shortened
from lightning_attr.sources.base import Faults, Record
from lightning_attr.sources.places import Named

T = TypeVar("T")

_NAMES: tuple[type[int | str], ...] = (int, str)
"""What licences are named by."""


@dataclass(frozen=True)
class CocoImage(Record):
    """One entry of ``images``, with its captions in ascending order of their annotation ids; its key is its name."""

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Return the name of the file."""
        return {"file_name": self.key}


@dataclass(frozen=True)
class Coco:
    """Images that a captions file in COCO's format lists; they keep their ids.

    Args:
        images: Folder of the image files.
        captions: The captions file.
    """

    images: Path
    captions: Path
    kind: ClassVar[str] = "coco"

    def records(self, faults: Faults) -> Iterator[Record]:
        """Yield the images.

        Raises:
            UserError: The folder or the file is missing, or the file is no JSON or not in COCO's captions format.
        """
        if not self.images.is_dir():
            raise UserError(f"--images {self.images}: expected a folder")
        yield from read_captions(self.captions, self.images)


def folder_of(captions: Path) -> Path:
    """Return the folder of the images of a captions file of the official layout.

    Raises:
        UserError: There is none: ``annotations/captions_train2017.json`` has its images in ``train2017``.
    """
    folder = captions.parent.parent / captions.stem.removeprefix("captions_")
    if not folder.is_dir():
        raise UserError(f"{captions}: found no folder {folder} of its images; name it: prepare coco --images DIR")
    return folder


def read_captions(path: Path, folder: Path) -> list[CocoImage]:
    """Read all images of a captions file in ascending order of their ids, those without captions included.

    Args:
        path: The captions file.
        folder: Of the image files.

    Raises:
        UserError: The file is missing, is no JSON, or is not in COCO's captions format.
    """
    content = _read_json(path)
    licences = {
        _field(entry, "id", _NAMES, "licenses", path): _licence(entry, path)
        for entry in _entries(content, "licenses", path, optional=True)
    }
    captions = _captions_by_image(content, path)
    images = [_image(entry, licences, captions, path, folder) for entry in _entries(content, "images", path)]
    images.sort(key=lambda image: image.id)
    for first, second in pairwise(images):
        if first.id == second.id:
            raise UserError(f"{path}: image id {first.id} appears twice, expected ids that are unique")
    return images


def _image(
    entry: Mapping[str, Any],
    licences: Mapping[int | str, str | None],
    captions: Mapping[int, list[tuple[int, str]]],
    path: Path,
    folder: Path,
) -> CocoImage:
    id = _field(entry, "id", int, "images", path)
    if not 0 <= id < 1 << 63:
        raise UserError(f"{path}: images: found id {quoted(id)}, expected one from 0 to 2^63 - 1")
    name = _field(entry, "file_name", str, "images", path)
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise UserError(f"{path}: image {id}: found file_name {quoted(name)}, expected a path within --images")
    licence = None if entry.get("license") is None else _field(entry, "license", _NAMES, "images", path)
    urls = [_field(entry, key, str, "images", path) for key in ("flickr_url", "coco_url") if entry.get(key) is not None]
    return CocoImage(
        id=id,
        key=name,
        place=Named(folder, name),
        captions=tuple(text for _, text in sorted(captions.get(id, []))),
        licence=None if licence is None else licences.get(licence),
        source=next((url for url in urls if url), name),
    )


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
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError, and what is nested too deep
        reason = shortened(one_line(error), 200)
        raise UserError(f"{path}: not JSON ({reason}), expected a COCO captions file") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: found a JSON {type(content).__name__}, expected an object with images and annotations"
        )
    return content


def _entries(content: Mapping[str, Any], key: str, path: Path, optional: bool = False) -> list[Mapping[str, Any]]:
    if optional and content.get(key) is None:
        return []
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        keys = shortened(", ".join(map(repr, content)), 200)
        found = f"keys {keys or 'none'}" if key not in content else f"type {type(entries).__name__}"
        raise UserError(f"{path}: found {found}, expected a list of objects under {key!r}")
    return entries


def _field(entry: Mapping[str, Any], key: str, kind: type[T] | tuple[type[T], ...], where: str, path: Path) -> T:
    """Return a value of an entry, which must be of a type, and of text what a file can hold."""
    value = entry.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise UserError(
            f"{path}: {where}: found {key} {quoted(value)}, expected {expected}, in {shortened(repr(entry), 200)}"
        )
    if isinstance(value, str):
        of = f"image {entry.get('image_id', entry.get('id'))}: {key}"
        check_text(f"{path}: {where}: {shortened(of, 80)}", value)
    return value


def _licence(entry: Mapping[str, Any], path: Path) -> str | None:
    """Return the name and address of a licence."""
    name, url = (
        "" if entry.get(key) is None else _field(entry, key, str, "licenses", path).strip() for key in ("name", "url")
    )
    return f"{name} ({url})" if name and url else name or url or None
