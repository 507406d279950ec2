"""`python -m lightning_attr.commands.prepare.coco`.

A package with this file rather than a module: decoding processes import the module that was run, but no `__main__.py`
of a package, and so start without torch.
"""

from lightning_attr.commands.prepare.coco.command import main
from lightning_attr.console import run

if __name__ == "__main__":
    run(main)
