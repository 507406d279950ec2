"""`python -m tools.sweep`; a package, so that worker processes do not import the command."""

from lightning_attr.console import run
from tools.sweep.command import main

if __name__ == "__main__":
    run(main)
