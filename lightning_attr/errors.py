"""Errors that a user can act on: one message, which names the file or key, what was found and what was expected."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import yaml


class UserError(ValueError):
    """A user's mistake. The command line prints its one message, without a traceback, and exits with status 1."""


class StoreError(UserError):
    """A store cannot be read or written: it is missing, unfinished, damaged, in use, or lacks what is asked of it."""


def one_line(error: BaseException) -> str:
    """Return the message of an error of another library on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def check_yaml(args: list[str]) -> None:
    """Check that configs are YAML: jsonargparse does not say in which file a mistake is.

    Raises:
        UserError: One is not; the message has the line.
    """
    for option, path in pairwise(args):
        if option in ("-c", "--config") and Path(path).is_file():
            try:
                yaml.safe_load(Path(path).read_text())
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise UserError(f"{path}: not YAML: {one_line(error)}") from error


def plain(message: str) -> str:
    """Reduce jsonargparse's account of a union of types to the line that names the key and what is wrong with it."""
    noise = ("Does not validate", "Subtypes:", "Errors:", "Given value", "- Expected a <class 'NoneType'>")
    lines = [line.strip() for line in message.splitlines()]
    return " ".join(line.removeprefix("- ") for line in lines if line and not line.startswith(noise))
