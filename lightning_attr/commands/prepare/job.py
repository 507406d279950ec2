"""One run of ``prepare``: fit, decode, encode, write; go on where a killed run stopped.

Shapes: B images of H x W pixels.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
import torch
from xxhash import xxh3_128_hexdigest

from datamodules.store.records import Sample
from datamodules.store.weights import WEIGHT, weight_array
from datamodules.store.writer import StoreWriter
from lightning_attr.commands.prepare.decoder import Decoder
from lightning_attr.commands.prepare.encode import Recipe, check_made_from
from lightning_attr.commands.prepare.images import Decoded, Undecoded, file_digest
from lightning_attr.commands.prepare.same import check_images, made_from
from lightning_attr.console import progress
from lightning_attr.encoders import PatchPCA
from lightning_attr.errors import UserError
from lightning_attr.sources.base import Faults, Record

FIT_IMAGES = 2_000  # a 48 x 48 covariance is known to three digits after far fewer
SAME_AGAIN = "give the same arguments again or remove that file"


@dataclass
class Job:
    """One run of the command: what it reads, how it encodes, where it writes, and what it counts.

    Args:
        images: All that are asked for, by ascending id.
        settings: The kind of their source, and how they are read, as the store keeps it.
        recipe: How they are encoded.
        batch_size: Images encoded at once.
        faults: Takes note of those that cannot be stored.
        decoder: Reads them.
        writer: Of the store.
        changed: Counts what was changed of images, such as that they were converted.
        texts: Counts the captions that are cut or say nothing.
    """

    images: Sequence[Record]
    settings: Mapping[str, Any]
    recipe: Recipe
    batch_size: int
    faults: Faults
    decoder: Decoder
    writer: StoreWriter
    changed: Counter[str] = field(default_factory=Counter)
    texts: Counter[str] = field(default_factory=Counter)

    def check_partial(self) -> None:
        """Refuse to go on with a killed run of other images or encoders.

        Raises:
            UserError: The partial store does not come from these images.
        """
        last = self.writer.last_id
        if last is None:
            return
        partial = self.writer.partial
        check_made_from(partial, self.writer.made_from, made_from(self.settings, self.recipe), SAME_AGAIN)
        images = [image for image in self.images if image.id <= last]
        check_images(partial, SAME_AGAIN, self.writer.written(), images, self.recipe, self.faults.skip)
        self.texts += self.recipe.count_texts(text for meta, _ in self.writer.written() for text in meta.captions)

    def settle_encoders(self) -> None:
        """Fit the image encoder where it needs that, or take its state from the run that this one goes on with.

        Raises:
            UserError: That run had other encoders.
        """
        encoder, saved, known = (
            self.recipe.image,
            self.writer.encoder_state("image"),
            made_from(self.settings, self.recipe),
        )
        if isinstance(encoder, PatchPCA) and not encoder.fitted:
            if saved is None:
                encoder.fit(self._fit_batches())
            else:
                encoder.load_state(saved)
            # Of images that come later in the store, too: they must not have changed in between.
            files = [file_digest(image.place) for image in self._spread()]
            known["fitted_on"] = xxh3_128_hexdigest(" ".join(files).encode())
        if saved is not None:
            check_made_from(self.writer.partial, self.writer.made_from, known, SAME_AGAIN)
        self.writer.put_made_from(known)
        if (state := encoder.state()) is not None:
            self.writer.put_encoder_state("image", state)

    def store(self) -> None:
        """Decode, encode and write what the store does not hold yet."""
        last = self.writer.last_id
        # The cuts are the same whatever is there already: the last bits of an encoding may depend on its batch.
        batches = [batch for batch in self._batches(self.images) if last is None or batch[-1].id > last]
        with progress("images") as bar:
            task = bar.add_task("encode", total=sum(map(len, batches)))
            for batch, items in zip(batches, self._decoded(batches), strict=True):
                pairs = [(image, item) for image, item in zip(batch, items, strict=True) if self._accepts(item)]
                for sample in self._samples(pairs):
                    if last is None or sample.meta.id > last:
                        self.writer.write(sample)
                        self.texts += self.recipe.count_texts(sample.meta.captions)
                self._count(item for image, item in zip(batch, items, strict=True) if last is None or image.id > last)
                bar.advance(task, len(batch))

    def _fit_batches(self) -> Iterator[torch.Tensor]:
        """Yield images evenly spread over all of them, in batches [B, H, W, 3]."""
        spread = self._spread()
        with progress("images") as bar:
            task = bar.add_task("fit encoder", total=len(spread))
            for items in self._decoded(self._batches(spread)):
                pixels = [item.pixels for item in items if self._accepts(item)]
                if pixels:
                    yield torch.from_numpy(np.stack(pixels))
                bar.advance(task, len(items))

    def _spread(self) -> Sequence[Record]:
        return self.images[:: math.ceil(len(self.images) / FIT_IMAGES)]

    def _batches(self, images: Sequence[Record]) -> list[Sequence[Record]]:
        return [images[i : i + self.batch_size] for i in range(0, len(images), self.batch_size)]

    def _decoded(self, batches: Iterable[Sequence[Record]]) -> Iterator[list[Decoded | Undecoded]]:
        return self.decoder.batches([image.place for image in batch] for batch in batches)

    def _accepts(self, item: Decoded | Undecoded) -> TypeGuard[Decoded]:
        """Return whether an image was decoded; where not, it is left out, or the run fails."""
        if isinstance(item, Undecoded) and not self.faults.skip:
            raise UserError(f"{item.place}: {item.reason} (see --on_error)")
        return isinstance(item, Decoded)

    def _count(self, items: Iterable[Decoded | Undecoded]) -> None:
        """Count what was left out and what was changed."""
        for item in items:
            if isinstance(item, Undecoded):
                self.faults.add(item.kind, f"{item.place}: {item.reason}")
            else:
                self.changed.update(item.notes)

    def _samples(self, pairs: Sequence[tuple[Record, Decoded]]) -> Iterator[Sample]:
        """Encode a batch."""
        if not pairs:
            return
        metas = [image.meta(self.recipe.captions) for image, _ in pairs]
        arrays = self.recipe.arrays(
            np.stack([item.pixels for _, item in pairs]), metas, [item.shape for _, item in pairs]
        )
        for (image, item), meta, fields in zip(pairs, metas, arrays, strict=True):
            if self.recipe.weighted:
                fields[WEIGHT] = weight_array(image.weight)
            yield Sample(meta, fields, item.thumb, item.digest)
