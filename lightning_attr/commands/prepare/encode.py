"""Turn images and captions into what a store holds: views and captions, encoded, in half precision.

Shapes: B images, C x h x w a latent.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.store import Store
from datamodules.store.records import Field, Meta, Schema, first_difference
from datamodules.store.weights import WEIGHT, WEIGHTS
from lightning_attr.commands.prepare.images import Pixels
from lightning_attr.encoders import AutoencoderKLEncoder, ImageEncoder, PipelineText, TextEncoder
from lightning_attr.encoders.store import store_image_encoder, store_text_encoder
from lightning_attr.errors import UserError, expect_within
from lightning_attr.models.load import place_of_base
from lightning_attr.models.spec import Spec, read_spec

LARGEST = 8192
"""The most pixels a side that images may have in a store."""

Half = np.ndarray[Any, np.dtype[np.float16]]
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Recipe:
    """How a store is made of images and captions.

    Args:
        image: Image encoder.
        text: Text encoder.
        size: Side of the square images in pixels.
        captions: Captions kept per image; an image may have fewer.
        flips: Whether the horizontal flip is stored as a second view.
        weighted: Whether the store has how often training shows each image.
    """

    image: ImageEncoder
    text: TextEncoder
    size: int
    captions: int
    flips: bool
    weighted: bool = False

    def __post_init__(self) -> None:
        """Refuse a size that no image has.

        Raises:
            UserError: It is one.
        """
        expect_within("--size", self.size, 1, LARGEST)

    @property
    def schema(self) -> Schema:
        """Return the schema of the store."""
        views = 2 if self.flips else 1
        return Schema(
            fields={
                "latent": Field((views, *self.image.latent_shape(self.size)), "float16", "latent"),
                **{
                    name: Field((self.captions, *shape), "float16", "condition")
                    for name, shape in self.text.conditions.items()
                },
                **{name: Field((1, *shape), "float32", "condition") for name, shape in self._size_conditions.items()},
                **({WEIGHT: WEIGHTS} if self.weighted else {}),
            },
            encoders={"image": self.image.config(), "text": self.text.config()},
        )

    @property
    def _size_conditions(self) -> Mapping[str, tuple[int, ...]]:
        return self.text.size_conditions if isinstance(self.text, PipelineText) else {}

    def arrays(
        self, pixels: Pixels, metas: Sequence[Meta], shapes: Sequence[tuple[int, int]] = ()
    ) -> list[dict[str, Array]]:
        """Encode uint8 pixels [B, size, size, 3] and at most ``captions`` texts an image to arrays by field.

        Args:
            pixels: The images' centres.
            metas: What the store keeps of them.
            shapes: Height and width of each whole image, where the model is told them.

        Raises:
            UserError: An encoder gives numbers that half precision cannot hold.
        """
        captions = [meta.captions for meta in metas]
        arrays: dict[str, Array] = {"latent": self._latents(pixels), **self._conditions(captions)}
        for name, values in arrays.items():
            finite = np.isfinite(values).reshape(len(metas), -1).all(1)
            if not finite.all():
                image = f"image {metas[int(finite.argmin())].id}"
                raise UserError(f"{image}: found no finite {name} in half precision, expected numbers below 65504")
        if isinstance(self.text, PipelineText):
            sizes = self.text.sizes(shapes, [self._crop(shape) for shape in shapes], (self.size, self.size))
            arrays |= {name: value[:, None].numpy() for name, value in sizes.items()}
        return [{name: values[row] for name, values in arrays.items()} for row in range(len(pixels))]

    def count_texts(self, captions: Iterable[str]) -> Counter[str]:
        """Count the captions that the text encoder cuts, and those of which it sees nothing."""
        lengths, room = self.text.lengths(list(captions)), self.text.room
        cut = sum(length > room for length in lengths)
        return Counter({f"captions cut after {room} tokens": cut, "captions without a token": lengths.count(0)})

    def _crop(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the upper and left edge of the centre of an image whose shorter side was made ``size``."""
        height, width = (side * self.size / min(shape) for side in shape)
        return round((height - self.size) / 2), round((width - self.size) / 2)

    def _latents(self, pixels: Pixels) -> Half:
        """Encode pixels to latents [B, views, C, h, w]."""
        images = torch.from_numpy(pixels)
        views = [images, images.flip(2)] if self.flips else [images]
        latents = torch.stack([self.image.encode(view) for view in views], dim=1)
        return _half(latents)

    def _conditions(self, captions: Sequence[Sequence[str]]) -> dict[str, Half]:
        """Encode captions to conditions [B, captions, ...] by name, zero where an image has fewer captions."""
        has_caption = np.arange(self.captions) < np.array([len(texts) for texts in captions])[:, None]
        arrays = {}
        for name, encoded in self.text.encode([text for texts in captions for text in texts]).items():
            arrays[name] = np.zeros((*has_caption.shape, *encoded.shape[1:]), np.float16)
            arrays[name][has_caption] = _half(encoded)
        return arrays


def _half(values: torch.Tensor) -> Half:
    return values.to("cpu", torch.float16).numpy()


def encoders_of(path: Path) -> tuple[ImageEncoder, TextEncoder]:
    """Rebuild the encoders that a finished store was made with."""
    with Store(path) as store:
        return store_image_encoder(store), store_text_encoder(store)


def encoders_of_model(path: Path) -> tuple[ImageEncoder, TextEncoder]:
    """Return the encoders that a model's pipeline has, with what its adapter lays over the text encoders.

    Raises:
        UserError: It is the model of no pipeline.
    """
    spec, folder = named(path), str(pipeline_of(path))
    adapter = None if spec.adapter is None else str(spec.adapter)
    return AutoencoderKLEncoder(folder, pipeline=True), PipelineText(folder, adapter=adapter, alpha=spec.alpha)


def named(path: Path) -> Spec:
    """Return what a path names: a spec's model and adapter, the base of a fine-tuned checkpoint, or the path itself."""
    if path.suffix == ".ckpt":
        return named(place_of_base(path))
    return read_spec(path) if path.is_file() else Spec(path)


def pipeline_of(path: Path) -> Path:
    """Return the folder of a pipeline that a model is of: it is named itself, or by a spec.

    Raises:
        UserError: It is none.
    """
    folder = named(path).model
    if not (folder / "model_index.json").is_file():
        raise UserError(f"--model {path}: found no model_index.json in {folder}, expected the folder of a pipeline")
    return folder


ANOTHER_OUT = "choose another --out"


def finished(path: Path, schema: Schema, made_from: Mapping[str, Any]) -> bool:
    """Return whether a complete store lies at ``path`` already.

    Raises:
        UserError: There is one, of another schema, or made from something else.
    """
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: found a link to nothing, expected a new place, or a store")
    if not path.exists():
        return False
    with Store(path) as store:
        difference = first_difference(store.schema.to_json(), schema.to_json())
        if difference is not None:
            raise UserError(f"{path}: holds a finished store of another kind: {difference}; {ANOTHER_OUT}")
        check_made_from(path, store.made_from, made_from, ANOTHER_OUT)
    return True


def check_made_from(path: str | Path, found: Mapping[str, Any], expected: Mapping[str, Any], advice: str) -> None:
    """Check that what a store says that it was made from is what is asked for.

    Raises:
        UserError: It is something else, or the store does not say.
    """
    if not found:
        raise UserError(f"{path}: does not say what it was made from, as stores of before; {advice}")
    if difference := first_difference({name: found.get(name) for name in expected}, expected):
        raise UserError(f"{path}: was made from something else: {difference}; {advice}")


def device(name: str) -> torch.device:
    """Return a device by name.

    Raises:
        UserError: Torch knows no such device, or it is not there.
    """
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return found
