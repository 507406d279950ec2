"""`python -m tools.prepare_coco`: make a store of images with captions in COCO's format."""

from tools.prepare_coco.command import main

__all__ = ["main"]
