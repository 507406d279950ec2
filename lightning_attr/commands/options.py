"""The one dialect of options: ``-c FILE``, ``--a.b VALUE``, ``--help``, ``--print_config``; and ``-q``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from lightning_attr.console import out
from lightning_attr.errors import UserError, check_yaml, plain


def parser(name: str, description: str | None) -> ArgumentParser:
    """Return the parser of ``lightning-attr NAME``."""
    made = ArgumentParser(
        prog=f"lightning-attr {name}", description=description, exit_on_error=False, allow_abbrev=False
    )
    made.add_argument("-c", "--config", action="config", help="options in a YAML file")
    made.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    return made


def parsed(of: ArgumentParser, arguments: Sequence[str]) -> Any:
    """Return the options, with the objects that they describe.

    Raises:
        UserError: They do not make sense.
    """
    words = list(arguments)
    check_yaml(words)
    try:
        options = of.instantiate_classes(of.parse_args(words))
    except ArgumentError as error:
        raise UserError(plain(str(error))) from None
    except ValueError as error:  # jsonargparse wraps what a constructor raises; the cause is what the user can act on
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        raise cause or error from None
    out.quiet = bool(options.quiet)
    return options


def at_least(options: Any, **least: int) -> None:
    """Raise ``UserError`` for a number below its least; None is no number."""
    for name, value in least.items():
        if (found := getattr(options, name)) is not None and found < value:
            raise UserError(f"--{name}: found {found}, expected at least {value}")
