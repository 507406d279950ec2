"""The same few images and captions, laid out as each kind of source has them."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image


@dataclass
class Item:
    """An image file, what it is called, and what is said of it."""

    name: str
    data: bytes
    caption: str


def picture(seed: int, width: int = 24, height: int = 20) -> Image.Image:
    """A smooth random RGB image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def items(count: int = 6) -> list[Item]:
    """Images in the order of their names."""
    return [Item(f"{place:03}.png", encoded(picture(place)), f"a caption of image {place}") for place in range(count)]


def write_folder(folder: Path, content: Sequence[Item]) -> None:
    for item in content:
        path = folder / item.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item.data)
        path.with_suffix(".txt").write_text(item.caption)


def write_jsonl(folder: Path, content: Sequence[Item]) -> None:
    _images(folder, content)
    rows = [json.dumps({"file_name": item.name, "text": item.caption}) for item in reversed(content)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))


def write_csv(folder: Path, content: Sequence[Item]) -> None:
    _images(folder, content)
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text"])
        writer.writerows([item.name, item.caption] for item in content)


def write_parquet(folder: Path, content: Sequence[Item]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for shard, part in enumerate((content[:4], content[4:])):
        rows = [{"image": {"bytes": item.data, "path": item.name}, "text": item.caption} for item in part]
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        schema = pyarrow.schema([("image", kind), ("text", pyarrow.string())])
        table = pyarrow.Table.from_pylist(rows, schema)
        pyarrow.parquet.write_table(table, folder / f"train-{shard:05}-of-00002.parquet", row_group_size=3)


def write_tars(folder: Path, content: Sequence[Item]) -> None:
    for shard, part in enumerate((content[:4], content[4:])):
        members: dict[str, bytes] = {}
        for item in reversed(part):
            stem = Path(item.name).stem
            members |= {item.name: item.data, f"{stem}.json": json.dumps({"caption": item.caption}).encode()}
        write_tar(folder / f"{shard:05}.tar", members)


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _images(folder: Path, content: Sequence[Item]) -> None:
    for item in content:
        path = folder / item.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item.data)


#: How each layout is written, by its name; the first word is the kind.
LAYOUTS: Mapping[str, Callable[[Path, Sequence[Item]], None]] = {
    "folder": write_folder,
    "metadata jsonl": write_jsonl,
    "metadata csv": write_csv,
    "parquet": write_parquet,
    "webdataset": write_tars,
}
