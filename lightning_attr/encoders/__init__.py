"""Image and text encoders: built-in ones that need no download, and those of diffusers and transformers."""

from lightning_attr.encoders.base import ImageEncoder, TextEncoder
from lightning_attr.encoders.hashed_words import HashedWords, is_word
from lightning_attr.encoders.patch_pca import PatchPCA
from lightning_attr.encoders.pipeline_text import PipelineText, time_ids
from lightning_attr.encoders.pretrained import AutoencoderKLEncoder, CLIPText, VisionFeatures
from lightning_attr.encoders.registry import image_encoder, text_encoder
from lightning_attr.encoders.store import (
    ENCODER_STATES,
    check_encoders,
    encoders_digest,
    jpeg,
    read_image,
    store_image_encoder,
    store_text_encoder,
    thumb_images,
)

__all__ = [
    "ENCODER_STATES",
    "AutoencoderKLEncoder",
    "CLIPText",
    "HashedWords",
    "ImageEncoder",
    "PatchPCA",
    "PipelineText",
    "TextEncoder",
    "VisionFeatures",
    "check_encoders",
    "encoders_digest",
    "image_encoder",
    "is_word",
    "jpeg",
    "read_image",
    "store_image_encoder",
    "store_text_encoder",
    "text_encoder",
    "thumb_images",
    "time_ids",
]
