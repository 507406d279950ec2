"""Stores of images that the command itself draws.

Shapes: B images of S pixels a side.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.store.records import Meta, Sample
from datamodules.store.writer import StoreWriter
from lightning_attr.commands.prepare.encode import Recipe, check_made_from, finished
from lightning_attr.commands.prepare.images import Pixels, thumbnail
from lightning_attr.console import out, progress, summary

BATCH = 64


@dataclass(frozen=True)
class Drawn:
    """Images to be drawn, by what is known of them.

    Args:
        metas: By id, ascending; the attribute ``planted`` says whether an image shows the rare concept.
        render: Draws the image of an id, of so many pixels a side.
        thumbnail_scale: How much larger than the image the one is that its thumbnail is made of.
    """

    metas: Mapping[int, Meta]
    render: Callable[[int, int], Image.Image]
    thumbnail_scale: int = 1

    def batches(self, size: int, most: int | None = None) -> Iterator[tuple[list[int], Pixels]]:
        """Yield batches of ids and uint8 images [B, S, S, 3], of the first ``most`` images."""
        ids = list(self.metas)[:most]
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH]
            yield batch, np.stack([np.asarray(self.render(id, size)) for id in batch])


def planted_ids(seed: int, ids: Sequence[int], planted: int) -> list[int]:
    """Return the rare concept's ids: one at a random place in each of ``planted`` equal stretches of ``ids``."""
    generator = np.random.default_rng([seed, len(ids), planted])
    edges = np.linspace(ids[0], ids[0] + len(ids), planted + 1).astype(int)
    return [int(generator.integers(low, high)) for low, high in pairwise(edges)]


def make_drawn(path: Path, recipe: Recipe, drawn: Drawn, made_from: Mapping[str, Any]) -> list[Path]:
    """Write a store of drawn images, unless it is there already; return what is new."""
    if finished(path, recipe.schema, made_from):
        out.print(f"{path} is finished already: nothing to do", soft_wrap=True)
        return []
    with StoreWriter(path, recipe.schema) as writer:
        if len(writer):
            check_made_from(writer.partial, writer.made_from, made_from, "remove that file to start anew")
        state = recipe.image.state()
        assert state is not None  # of a PatchPCA
        writer.put_made_from(made_from)
        writer.put_encoder_state("image", state)
        _write(writer, recipe, drawn)
        writer.finish(+recipe.count_texts(caption for meta in drawn.metas.values() for caption in meta.captions))
    rare = sum(bool(meta.attributes["planted"]) for meta in drawn.metas.values())
    size = f"{path.stat().st_size / 1e6:,.1f} MB"
    summary(str(path), [("samples", len(drawn.metas)), ("planted", rare), ("size", size)])
    return [path]


def _write(writer: StoreWriter, recipe: Recipe, drawn: Drawn) -> None:
    """Draw and write the images that a killed run has not written."""
    last = writer.last_id
    rest = {id: meta for id, meta in drawn.metas.items() if last is None or id > last}
    with progress("images") as bar:
        task = bar.add_task("encode", total=len(drawn.metas), completed=len(drawn.metas) - len(rest))
        for ids, pixels in Drawn(rest, drawn.render).batches(recipe.size):
            arrays = recipe.arrays(pixels, [rest[id] for id in ids])
            for id, image, fields in zip(ids, pixels, arrays, strict=True):
                scale = drawn.thumbnail_scale
                shown = Image.fromarray(image) if scale == 1 else drawn.render(id, scale * recipe.size)
                writer.write(Sample(rest[id], fields, thumbnail(shown)))
            bar.advance(task, len(ids))
