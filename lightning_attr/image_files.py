"""Open image files of others, none of which runs a program; decoding processes import this, which needs Pillow only."""

from pathlib import Path
from typing import IO

from PIL import EpsImagePlugin, Image, ImageFile

EpsImagePlugin.gs_binary = False  # PostScript, whatever its file is called, is a program: Ghostscript would run it


def open_image(file: Path | IO[bytes]) -> ImageFile.ImageFile:
    """Open an image file; what it raises on one that is damaged has no type in common."""
    return Image.open(file)
