"""Errors that a user can act on: one message, which names the file or key, what was found and what was expected."""

import math


class UserError(ValueError):
    """A user's mistake. The command line prints its one message, without a traceback, and exits with status 1."""


class StoreError(UserError):
    """A store cannot be read or written: it is missing, unfinished, damaged, in use, or lacks what is asked of it."""


def expect_within(key: str, value: float | None, low: float, high: float = math.inf) -> None:
    """Check a number that a user has set; None is none.

    Raises:
        UserError: It is below ``low``, above ``high``, infinite, or not a number.
    """
    if value is not None and not (low <= value <= high and math.isfinite(value)):
        expected = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
        raise UserError(f"{key}: found {value}, expected {expected}")


def shortened(text: str, most: int) -> str:
    """Return at most so many characters of a text of others, and how many there are where those are not all."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def quoted(value: object) -> str:
    """Return how a message says what was found in a file of others."""
    return shortened(repr(value), 80)


def one_line(error: BaseException) -> str:
    """Return the message of an error of another library on one line."""
    return " ".join(str(error).split()) or type(error).__name__
