"""`python -m lightning_attr.commands.sweep`; a package, so that worker processes do not import the command."""

from lightning_attr.commands.sweep.command import main
from lightning_attr.console import run

if __name__ == "__main__":
    run(main)
