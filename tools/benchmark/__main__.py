"""``python -m tools.benchmark``."""

from lightning_attr.console import run
from tools.benchmark.command import main

if __name__ == "__main__":
    run(main)
