"""Errors that a user can act on: one message, which names the file or key, what was found and what was expected."""

import errno
import math
import re
import sys
from collections.abc import Iterator
from traceback import walk_tb


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


#: The longest that an error of another library may be in a message.
LONGEST = 500
#: Libraries that read the user's settings; whose errors are about them.
READERS = ("lightning", "lightning_utilities", "jsonargparse", "omegaconf")
#: Libraries that do as they are told, by settings or by us: of their errors it counts who called them.
TOOLS = ("torch", "numpy", "diffusers", "transformers", "torchmetrics", "fsspec", "yaml", "tensorboard")
#: Errors whose text says what happened without the name of their type.
SPEAKING = (ValueError, RuntimeError, ImportError, OSError)
#: What another library may advise that nobody should do: to trust the file.
_ADVICE = re.compile(r"weights_only|safe_globals|trusted source|trust the source|arbitrary code")


def one_line(error: BaseException) -> str:
    """Return the message of an error of another library: on one line, not too long, without control characters."""
    text = re.sub(r"\x1b\[[0-9;]*m|[^\s\x20-\x7e\xa0-\U0010ffff]", "", str(error))
    said = [each for each in re.split(r"(?<=[.!?:])\s+", " ".join(text.split())) if not _ADVICE.search(each)]
    line = " ".join(said) or type(error).__name__
    line = line if isinstance(error, SPEAKING) else f"{type(error).__name__}: {line}"
    return shortened(line, LONGEST)


def system_error(error: OSError, path: object = None) -> UserError:
    """Return what to tell of an error of the operating system.

    Args:
        error: As it was raised.
        path: What was written or read, where the error does not name it.
    """
    where = error.filename if path is None else path
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason = f"{error.strerror}; what was written before is kept, and the same command goes on when there is room"
    else:
        reason = error.strerror or one_line(error)
    return UserError(f"{where}: {reason}" if where is not None else reason)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it, the last first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def explained(error: Exception) -> UserError | None:
    """Return what to tell the user of an error that settings or the machine caused; None of a bug of ours.

    Settings reach other libraries, whose errors have no type in common. So it counts who raised an error: a library
    that reads settings (:data:`READERS`), or another that it called, is the user's matter. Once a training is under
    way Lightning calls whatever there is, and only its own errors are. What the system or the memory refuses always is.
    """
    chain = list(causes(error))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return UserError(f"out of memory: {one_line(error)}; expected a smaller batch_size or another device")
    if not isinstance(error, OSError | ModuleNotFoundError) and _library(error) not in READERS:
        return None
    if (told := next((each for each in chain if isinstance(each, UserError)), None)) is not None:
        return told
    first = next(
        (each for each in chain if _library(each) != "jsonargparse"), error
    )  # which it wraps in words on types
    return system_error(first) if isinstance(first, OSError) else UserError(f"settings: {one_line(first)}")


def _library(error: BaseException) -> str:
    """Return which package raised an error, or had one of :data:`TOOLS` raise it."""
    frames = [(str(frame.f_globals.get("__name__")), frame.f_code.co_name) for frame, _ in walk_tb(error.__traceback__)]
    names = [module.partition(".")[0] for module, _ in frames]
    if not any(module.startswith("lightning.pytorch.loops") and name == "advance" for module, name in frames):
        names = [name for name in names if name not in TOOLS and name not in sys.stdlib_module_names]
    return names[-1] if names else ""
