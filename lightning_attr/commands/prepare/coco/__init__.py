"""`python -m lightning_attr.commands.prepare.coco`: make a store of images with captions in COCO's format."""

from lightning_attr.commands.prepare.coco.command import main

__all__ = ["main"]
