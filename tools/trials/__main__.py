"""``python -m tools.trials``."""

import os

# Processes are forked from this one, which must have no threads; set before torch is loaded.
os.environ["OMP_NUM_THREADS"] = "1"

from lightning_attr.console import run
from tools.trials.command import main

if __name__ == "__main__":
    run(main)
