"""``python -m tools.trials``."""

import os

# Processes are forked from this one, which must have no threads; set before torch is loaded.
os.environ["OMP_NUM_THREADS"] = "1"

# The first import is that of the command itself. Python keeps one order for unions of the same types, the first that it
# meets: by that a setting such as `limit_train_batches: 1` is a whole number or a share.
from lightning_attr import cli  # noqa: F401
from lightning_attr.console import run
from tools.trials.command import main

if __name__ == "__main__":
    run(main)
