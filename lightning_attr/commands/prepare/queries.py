"""Make a query store of image files that a model has made.

    lightning-attr prepare queries PATH... --out STORE --encoders_from TRAINING_STORE [--prompt TEXT]

A path is a PNG, JPEG or WebP, a folder of them, or a ``.jsonl`` whose lines have ``image`` (beside it) and perhaps
``prompt``, ``seed``, ``steps``, ``guidance``. The prompt is ``--prompt`` or the line's; else that of a ``.txt`` of the
image's name and of what the generator wrote into the image, which must not differ. A query is made again with other
models only where seed, steps and guidance are known.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from PIL import Image
from xxhash import xxh3_128_hexdigest

from datamodules.store import Store
from datamodules.store.records import Meta, Sample, first_difference
from datamodules.store.writer import StoreWriter
from lightning_attr.commands.prepare.encode import (
    ANOTHER_OUT,
    Recipe,
    check_made_from,
    device,
    encoders_of,
    encoders_of_model,
    finished,
)
from lightning_attr.commands.prepare.generated import Origin, is_weighted, read_origin
from lightning_attr.commands.prepare.images import Decoded, Reading, decode, file_digest
from lightning_attr.console import command, made, out, progress, summary, warn
from lightning_attr.encoders import ImageEncoder, jpeg
from lightning_attr.errors import UserError, one_line, quoted, shortened
from lightning_attr.image_files import open_image
from lightning_attr.options import at_least, parsed, parser

#: Of file names, in small letters, and what Pillow calls the formats.
ENDINGS, FORMATS = (".png", ".jpg", ".jpeg", ".webp"), ("PNG", "JPEG", "WEBP", "MPO")
LINE_KEYS = ("image", "prompt", "seed", "steps", "guidance")
#: Images encoded at once: always cut at the same places, for the last bits may depend on the batch.
BATCH = 16
SAME_AGAIN = "give the same arguments again or remove that file"


@dataclass(frozen=True)
class Query:
    """An image to be asked about.

    Args:
        path: Of its file.
        key: What tells it from the others: its name, with folders or a number where several have the same.
        origin: How it was made; the prompt is known.
        size: Its width and height in pixels.
        digest: Of the file.
    """

    path: Path
    key: str
    origin: Origin
    size: tuple[int, int]
    digest: str

    def meta(self, id: int) -> Meta:
        """Return what the store keeps of it."""
        return Meta(id, (str(self.origin.prompt),), None, self.key, {"key": self.key, **self.origin.known()})


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    args = parsed(_parser(), arguments)
    at_least(args, size=1)
    queries = read_queries(args.paths, args.prompt)
    recipe, reading = _recipe(args, queries)
    state = recipe.image.state()
    image = "as it is" if state is None else xxh3_128_hexdigest(state)
    known = {"source": "queries", "turned": reading.turned, "image_encoder": image}
    if finished(args.out, recipe.schema, known):
        with Store(args.out) as store:
            _compare(args.out, ANOTHER_OUT, [(store.meta(i), store.file_digest(i)) for i in range(len(store))], queries)
        out.print(f"{args.out} is finished already: nothing to do", soft_wrap=True)
        return
    with StoreWriter(args.out, recipe.schema) as writer:
        if len(writer):
            check_made_from(writer.partial, writer.made_from, known, SAME_AGAIN)
            _compare(writer.partial, SAME_AGAIN, list(writer.written()), queries[: len(writer)])
        writer.put_made_from(known)
        if state is not None:
            writer.put_encoder_state("image", state)
        counts = _write(writer, recipe, reading, queries)
        texts = +recipe.count_texts(str(query.origin.prompt) for query in queries)
        writer.finish(texts)
    counts += texts + _unknown(queries)
    summary(str(args.out), [("queries", len(queries)), *((name, n) for name, n in sorted(counts.items()) if n)])
    made([args.out], command("inspect", args.out))


def _parser() -> ArgumentParser:
    of = parser("prepare queries", __doc__)
    of.add_argument("paths", type=Path, nargs="+", help="images, folders of images, or .jsonl files")
    of.add_argument("--out", type=Path, required=True, help="the store to make")
    of.add_argument("--prompt", type=str | None, default=None, help="the prompt of all of them")
    of.add_argument("--encoders_from", type=Path | None, default=None, help="the training store: its encoders and size")
    of.add_argument("--model", type=Path | None, default=None, help="a pipeline's folder: its encoders")
    of.add_argument("--size", type=int | None, default=None, help="side in pixels; default that of the store or images")
    of.add_argument("--device", default="cpu", help="where to encode")
    return of


def read_queries(paths: Sequence[Path], prompt: str | None) -> list[Query]:
    """Return the queries that paths stand for, in the order of their keys.

    Args:
        paths: Images, folders of images, or ``.jsonl`` files.
        prompt: Of all of them; None where each has its own.

    Raises:
        UserError: There is none, a file cannot be read, or a prompt is missing, given twice, or not the only one.
    """
    stated = None if prompt is None else _origin("--prompt", {"prompt": prompt}).prompt
    if stated == "":
        raise UserError("--prompt: found an empty text, expected the prompt")
    found = [each for path in paths for each in _listed(path)]
    for path, line in found:
        if stated is not None and line.prompt is not None:
            raise UserError(f"--prompt: found one, and another of {path} in a .jsonl, expected one or the other")
    read = [(path, *_read(path, line if stated is None else replace(line, prompt=stated))) for path, line in found]
    keys = _keys([path for path, *_ in read])
    queries = [
        Query(path, key, origin, size, file_digest(path)) for key, (path, origin, size) in zip(keys, read, strict=True)
    ]
    return sorted(queries, key=lambda query: query.key)


def _listed(path: Path) -> Iterator[tuple[Path, Origin]]:
    """Yield the images that a path stands for, and what a ``.jsonl`` says of them."""
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.suffix.lower() in ENDINGS and each.is_file())
        if not files:
            raise UserError(f"{path}: found no images in this folder, expected some of {', '.join(ENDINGS)}")
        yield from ((file, Origin()) for file in files)
    elif path.exists() and not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path}: found neither a file nor a folder, expected an image, a folder of them, or a .jsonl")
    elif path.suffix.lower() == ".jsonl":
        yield from _lines(path)
    else:
        yield path, Origin()


def _lines(path: Path) -> Iterator[tuple[Path, Origin]]:
    """Yield the images of a ``.jsonl``, whose paths are relative to it, and what it says of each."""
    lines = [(number, line) for number, line in enumerate(_text(path).split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path}: found no lines, expected one of JSON for each image")
    for number, line in lines:
        where = f"{path}: line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({shortened(one_line(error), 200)})") from error
        if not isinstance(entry, dict) or not isinstance(name := entry.pop("image", None), str) or "\0" in name:
            raise UserError(f"{where}: found {shortened(line, 80)}, expected an object with the path of an image")
        if unknown := sorted(entry.keys() - set(LINE_KEYS)):
            raise UserError(f"{where}: found {quoted(unknown[0])}, expected {', '.join(LINE_KEYS)}")
        yield path.parent / name, _origin(where, entry)


def _origin(where: str, values: Mapping[str, Any]) -> Origin:
    try:
        return Origin(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _read(path: Path, stated: Origin) -> tuple[Origin, tuple[int, int]]:
    """Return how an image was made, and its size: as stated, else as a ``.txt`` beside it and the image itself say.

    Raises:
        UserError: It is no image, or its prompt is not known, or not the only one.
    """
    try:
        with open_image(path) as image:
            size, form = image.size, image.format
            written = _written(path, image, stated.prompt is not None)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, expected an image, a folder of images, or a .jsonl") from None
    except Exception as error:  # on damaged files Pillow raises OSError, SyntaxError, struct.error, ValueError, ...
        raise UserError(f"{path}: found no image of PNG, JPEG or WebP: {one_line(error)}") from error
    if form not in FORMATS:
        raise UserError(f"{path}: found an image of format {form}, expected PNG, JPEG or WebP")
    prompt = stated.prompt
    if prompt is None:
        sidecar = path.with_suffix(".txt")
        beside = _origin(str(sidecar), {"prompt": _text(sidecar)}).prompt if sidecar.is_file() else None
        if beside and written.prompt and beside != written.prompt:
            found = f"{quoted(written.prompt)} in it and {quoted(beside)} in {sidecar.name}"
            raise UserError(f"{path}: found the prompts {found}, expected one; give --prompt")
        prompt = beside or written.prompt
    if not prompt:
        raise UserError(f"{path}: found no prompt in it and no {path.stem}.txt beside it; give --prompt")
    return Origin(prompt, **{**written.known(), **stated.known()}), size


def _written(path: Path, image: Image.Image, is_stated: bool) -> Origin:
    """Return what the generator wrote; where the prompt is stated, what cannot be understood is left out."""
    try:
        return read_origin(image)
    except UserError as error:
        if not is_stated:
            raise UserError(f"{path}: {error}; give --prompt") from error
        warn(f"{path}: {error}; only what is stated is kept of it")
        return Origin()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: found no text ({one_line(error)}), expected a file of text") from error


def _keys(paths: Sequence[Path]) -> list[str]:
    """Return the names of files; with as many of their folders as tell them apart, and a number of the same file."""
    keys = [path.name for path in paths]
    absolute = [path.absolute() for path in paths]
    for depth in range(2, max(len(path.parts) for path in absolute)):
        shared = {key for key, count in Counter(keys).items() if count > 1}
        keys = [
            "/".join(path.parts[-depth:]) if key in shared else key for key, path in zip(keys, absolute, strict=True)
        ]
        if len(set(keys)) == len(set(absolute)):
            break
    seen: Counter[str] = Counter()
    for place, key in enumerate(keys):
        seen[key] += 1
        if seen[key] > 1:
            keys[place] = f"{key}#{seen[key]}"
    return keys


def _recipe(args: Namespace, queries: Sequence[Query]) -> tuple[Recipe, Reading]:
    """Return encoders, size and reading of images as the command line asks for, or as the training store has them."""
    if (args.encoders_from is None) == (args.model is None):
        raise UserError("--encoders_from: expected the training store, or --model, one of both")
    reading = Reading(turned=True)
    if args.encoders_from is not None:
        image, text = encoders_of(args.encoders_from)
        with Store(args.encoders_from) as store:
            size = _size_of(image, store.schema.fields["latent"].shape[1:])
            reading = Reading(turned=bool(store.made_from.get("turned", False)))  # of COCO's images it is not said
        if args.size not in (None, size):
            raise UserError(f"--size: found {args.size}, expected {size} as {args.encoders_from} has it")
    else:
        image, text = encoders_of_model(args.model)
        size = args.size or _common_size(queries)
    where = device(args.device)
    return Recipe(image.to(where), text.to(where), size, captions=1, flips=False), reading


def _size_of(image: ImageEncoder, latent: tuple[int, ...]) -> int:
    """Return the side of the images whose latents [C, h, w] have this shape."""
    for size in range(latent[-1], 65 * latent[-1], latent[-1]):
        try:
            if image.latent_shape(size) == latent:
                return size
        except UserError:  # not a size that it takes
            continue
    raise UserError(f"--encoders_from: found latents of shape {latent}, expected those of square images")


def _common_size(queries: Sequence[Query]) -> int:
    """Return the side of images that are all squares of one size."""
    sides = {side for query in queries for side in query.size}
    if len(sides) > 1:
        raise UserError(f"--size: found none, and images of {min(sides)} to {max(sides)} pixels a side, expected it")
    return sides.pop()


def _compare(path: str | Path, advice: str, stored: Sequence[tuple[Meta, str]], queries: Sequence[Query]) -> None:
    """Check that a store has been made of the queries.

    Raises:
        UserError: It has been made of others.
    """
    if len(stored) != len(queries):
        raise UserError(f"{path}: found {len(stored)} queries, expected {len(queries)}; {advice}")
    for id, ((meta, digest), query) in enumerate(zip(stored, queries, strict=True)):
        if (difference := first_difference(meta.to_json(), query.meta(id).to_json())) is not None:
            raise UserError(f"{path}: query {id}: {difference}; {advice}")
        if digest != query.digest:
            raise UserError(f"{path}: found query {id} made from other bytes, expected those of {query.path}; {advice}")


def _write(writer: StoreWriter, recipe: Recipe, reading: Reading, queries: Sequence[Query]) -> Counter[str]:
    """Encode the queries and write those that a killed run has not; return what was done to the images of all."""
    counts: Counter[str] = Counter()
    there = len(writer)
    with progress("queries") as bar:
        task = bar.add_task("encode", total=len(queries))
        for start in range(0, len(queries), BATCH):
            batch = queries[start : start + BATCH]
            items = [_decoded(query, recipe.size, reading) for query in batch]
            for query, item in zip(batch, items, strict=True):
                counts.update((*item.notes, *_changes(query, recipe.size)))
            if start + len(batch) > there:
                metas = [query.meta(start + place) for place, query in enumerate(batch)]
                pixels = np.stack([item.pixels for item in items])
                arrays = recipe.arrays(pixels, metas, [item.shape for item in items])
                for item, meta, fields in zip(items, metas, arrays, strict=True):
                    if meta.id >= there:
                        writer.write(Sample(meta, fields, jpeg(item.pixels), item.digest))
            bar.advance(task, len(batch))
    return counts


def _decoded(query: Query, size: int, reading: Reading) -> Decoded:
    item = decode(query.path, size, reading)
    if not isinstance(item, Decoded):
        raise UserError(f"{item.place}: {item.reason}")
    if item.digest != query.digest:
        raise UserError(f"{query.path}: found other bytes than a moment ago, expected a file that stays")
    return item


def _changes(query: Query, size: int) -> Iterator[str]:
    """Yield what is done to an image so that it is a square of ``size``."""
    width, height = query.size
    if width != height:
        warn(f"{query.path}: found {width} x {height} pixels; only the centre square is asked about")
        yield "cropped to the centre square"
    if min(width, height) != size:
        yield f"resized to {size} x {size}"


def _unknown(queries: Sequence[Query]) -> Counter[str]:
    """Count the queries of which something is not known, or not meant for a text encoder."""
    complete = [len(query.origin.known()) == 3 for query in queries]
    weighted = [is_weighted(str(query.origin.prompt)) for query in queries]
    return Counter(
        {
            "without seed, steps or guidance": complete.count(False),
            "with weights of words, encoded as they stand": sum(weighted),
        }
    )
