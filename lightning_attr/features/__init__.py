"""What images are compared by: latents, texts, pixels, what vision models see, what a denoiser makes of them."""

from lightning_attr.features.activations import Activations
from lightning_attr.features.base import Feature, largest_cosines
from lightning_attr.features.onnx import Onnx
from lightning_attr.features.pictures import Pixel, Vision
from lightning_attr.features.stored import Latent, Text

#: Features that need no settings, by their words.
WORDS: dict[str, type[Feature]] = {"latent": Latent, "text": Text, "pixel": Pixel}

__all__ = ["WORDS", "Activations", "Feature", "Latent", "Onnx", "Pixel", "Text", "Vision", "largest_cosines"]
