"""``lightning-attr VERB``: Lightning's verbs, and the commands beside them.

This module imports nothing slow at its top: processes that decode images import it anew, and must start in a moment.
"""

from __future__ import annotations

import os
import signal
import sys

#: The verbs of Lightning, each of which runs a stage from a config.
STAGES = {
    "fit": "train, fit a curvature, unlearn, retrain",
    "validate": "measure the validation loss of a checkpoint",
    "test": "evaluate attributions",
    "predict": "sample queries, score training images",
}

#: The other commands: the module of each, and what it does.
COMMANDS = {
    "explain": ("explain.command", "say which training images made an output, in one command"),
    "prepare": ("prepare", "make a store: prepare images, coco, drawings, shapes, queries, model"),
    "shares": ("shares", "turn scores into calibrated shares, and check them"),
    "inspect": ("inspect", "say what a store holds, and whether it is undamaged"),
    "groups": ("groups", "find the near-duplicates among the images of a store"),
    "sweep": ("sweep.command", "retrain many models to check attributions against"),
    "evaluate": ("evaluate", "check scores against the pack of a sweep"),
    "abc": ("abc", "check scores against images of customised models, whose influence is known"),
    "report": ("report.command", "make one HTML page of what a run found"),
    "init": ("init", "write the configs of an experiment where you are"),
}


def main(args: list[str] | None = None) -> None:
    """Run the command that the first word names, and exit with its status."""
    if args is None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _end_at_once)
    words = sys.argv[1:] if args is None else args
    if words and words[0] in STAGES:
        from lightning_attr.cli import main as run_stage

        run_stage(args)
    elif words and words[0] in COMMANDS:
        from importlib import import_module

        from lightning_attr.console import run

        command = import_module(f"lightning_attr.commands.{COMMANDS[words[0]][0]}")
        run(lambda: command.main(words[1:]))
    else:
        _explain(words)


def _end_at_once(number: int, frame: object) -> None:
    """End where no run has begun or all is done: libraries that are being imported would make it an error of theirs."""
    os.write(2, b"interrupted\n" if number == signal.SIGINT else b"stopped\n")
    os._exit(128 + number)


def _explain(words: list[str]) -> None:
    """Print all verbs; where a word is none of them, say so and exit with status 1."""
    asked = not words or words[0] in ("-h", "--help")
    if not asked:
        print(f"error: found {words[0]!r}, expected one of {', '.join([*STAGES, *COMMANDS])}", file=sys.stderr)
        sys.exit(1)
    lines = STAGES | {name: what for name, (_, what) in COMMANDS.items()}
    print("usage: lightning-attr VERB [-c CONFIG] [--KEY VALUE ...]\n")
    print("\n".join(f"  {name:<10}{words}" for name, words in lines.items()))
    print("\nlightning-attr VERB --help lists the options of a verb.")


if __name__ == "__main__":
    main()
