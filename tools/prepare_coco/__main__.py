"""`python -m tools.prepare_coco`.

A package with this file rather than a module: decoding processes import the module that was run, but no `__main__.py`
of a package, and so start without torch.
"""

from lightning_attr.console import run
from tools.prepare_coco.command import main

if __name__ == "__main__":
    run(main)
