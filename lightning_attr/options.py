"""The one dialect of options: ``-c FILE``, ``--a.b VALUE``, ``--help``, ``--print_config``; and ``-q``."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from pydoc import locate
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from omegaconf.errors import OmegaConfBaseException

from lightning_attr.artifacts.inputs import misfits
from lightning_attr.console import out
from lightning_attr.errors import UserError, expect_within, explained, one_line, quoted

#: More values than a config of anyone has; a few lines of YAML can stand for billions.
MOST_VALUES = 1_000_000

#: Settings that name a class: the package of ours, and the base class.
CLASSES = {
    "model": ("lightning_attr.tasks", "LightningModule"),
    "data": ("datamodules", "LightningDataModule"),
    "method": ("lightning_attr.methods", "Method"),
    "methods": ("lightning_attr.methods", "Method"),
    "feature": ("lightning_attr.features", "Feature"),
    "callbacks": ("callbacks", "Callback"),
}

#: What jsonargparse says of a name that is no class, or none of those that a setting may name.
_WRONG_CLASS = (
    r"class_path '((\w+)[^']*)':\s+(?:No module named '\2|module '\2.*' has no attribute)",  # not one that it imports
    r"Expected a dot import path string: (\S+)",
    r"^(?!.*given class_path).*Import path (\S+) does not correspond",
    r"^(?!.*given class_path).*Import path does not correspond.*Given value: (\S+)",
)
#: What it says of other readings of a setting than the one that was meant.
_NOISE = (
    "Does not validate", "Subtypes:", "Errors:", "Given value", "Expected a <class 'NoneType'>", "Not a valid subclass",
    "Import path", "Expected a path but", "Subclass types expect", "a class path (str)", "a dict with",
)  # fmt: skip


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
    with user_errors():
        found = of.parse_args(words)
        for key, value in found.as_dict().items():
            check_values(key, value)
        options = of.instantiate_classes(found)
    out.quiet = bool(options.quiet)
    return options


def files_first(arguments: Sequence[str]) -> list[str]:
    """Return the words with those files first that stand behind options, which jsonargparse would not take there."""
    files, options, words = [], [], iter(arguments)
    for word in words:
        if word.startswith("-"):
            options.append(word)
            if "=" not in word and word not in ("-q", "--quiet", "-h", "--help", "--print_config"):
                options.append(next(words, ""))
        else:
            files.append(word)
    return [*files, *options]


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn what other libraries and the system say about the user's settings into a ``UserError``."""
    try:
        yield
    except UserError:
        raise
    except ArgumentError as error:
        raise UserError(plain(str(error))) from None
    except OmegaConfBaseException as error:
        raise UserError(f"config: {one_line(error)}") from None
    except Exception as error:  # their errors have no type in common
        if (told := explained(error)) is None:
            raise
        raise UserError(plain(str(error))) if "Subtypes:" in str(error) else told from error


def at_least(options: Any, **least: int) -> None:
    """Raise ``UserError`` for a number below its least; None is no number."""
    for name, value in least.items():
        expect_within(f"--{name}", getattr(options, name), value)


def check_yaml(args: list[str], groups: Sequence[str] = ()) -> None:
    """Check that configs are YAML: jsonargparse does not say in which file a mistake is.

    Args:
        args: The words of a command, which name the configs.
        groups: The keys that hold keys and values.

    Raises:
        UserError: One is not; the message has the line.
    """
    for path in config_files(args):
        if Path(path).is_file():
            try:
                config = yaml.safe_load(Path(path).read_text())
                size = _values(config, {})
            except (yaml.YAMLError, ValueError, RecursionError) as error:
                raise UserError(f"{path}: not YAML: {one_line(error)}") from error
            if not isinstance(config, dict):
                raise UserError(f"{path}: found {quoted(config)}, expected keys and values")
            for key in groups:
                if not isinstance(config.get(key, {}), dict):
                    raise UserError(f"{path}: {key}: found {quoted(config[key])}, expected keys and values")
            if size > MOST_VALUES:
                raise UserError(f"{path}: found {size:,} values where each *name is written out, expected fewer")


def _values(value: Any, known: dict[int, int]) -> int:
    """Return how many values there are in nested mappings and lists, which YAML may have in several places at once."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = MOST_VALUES  # for as long as it is counted: should it hold itself, it has no end
        children = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_values(child, known) for child in children)
    return known[id(value)]


def check_values(key: str, value: Any) -> None:
    """Check for values that jsonargparse takes, and nothing else can.

    An argument of a class that is null or a list, and has a type without it; a text with a NUL, as no path can have;
    a number that is none, or a whole one of more than 64 bits.

    Args:
        key: Where the value is in the config.
        value: Of a config: classes, mappings, lists, plain values.

    Raises:
        UserError: One is.
    """
    if isinstance(value, str | Path) and "\0" in str(value):
        raise UserError(f"{key}: found {quoted(str(value))}, expected a text without NUL")
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"{key}: found nan, expected a number")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise UserError(f"{key}: found {quoted(value)}, expected a number of at most 64 bits")
    if isinstance(value, list):
        for index, each in enumerate(value):
            check_values(f"{key}.{index}", each)
    if isinstance(value, dict):
        if isinstance(owner := locate(str(value.get("class_path"))), type):
            for name, wrong, hint in misfits(owner, value.get("init_args") or {}):
                found = "null" if wrong is None else quoted(wrong)
                raise UserError(f"{key}.{name}: found {found}, expected {getattr(hint, '__name__', hint)}")
        for name, each in value.items():
            check_values(key if name == "init_args" else f"{key}.{name}", each)


def config_files(args: Sequence[str]) -> list[str]:
    """Return the configs that arguments name; the parser forgets them where values refer to each other."""
    pairs = [arg.split("=", 1) for arg in args if arg.startswith("--config=")] + list(map(list, pairwise(args)))
    return [path for option, path in pairs if option in ("-c", "--config")]


def plain(message: str) -> str:
    """Reduce jsonargparse's account of types to what names the key, what was found and, of classes, what is known."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    about = message.rpartition("Parser key")[2]
    found = next((match[1] for wrong in _WRONG_CLASS if (match := re.search(wrong, about, re.DOTALL))), None)
    if found is not None and keys and (expected := _known_classes(keys[-1].rpartition(".")[2], about)):
        return f"{'.'.join(keys)}: found {found!r}, expected one of {expected}"
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(_NOISE))


def _known_classes(key: str, about: str) -> str:
    """Return what a key may name, in words; nothing where that is not known."""
    if key not in CLASSES:
        return ", ".join(dict.fromkeys(re.findall(r"<class 'lightning_attr\.[\w.]*?(\w+)'>", about)))
    package, base = CLASSES[key]
    module = import_module(package)
    classes = [each for name in module.__all__ if isinstance(each := getattr(module, name), type)]
    names = [each.__name__ for each in classes if base in [parent.__name__ for parent in each.__mro__[1:]]]
    return f"{', '.join(names)}, or the import path of another {base}"


def first_word(name: str, arguments: Sequence[str], known: Collection[str]) -> str | None:
    """Return which of a command's own commands the first word names; None where help was asked for, and given.

    Raises:
        UserError: It names none.
    """
    word = arguments[0] if arguments else "nothing"
    if word in ("-h", "--help"):
        print(f"usage: lightning-attr {name} {{{','.join(known)}}} ...; each has its own --help")
        return None
    if word not in known:
        raise UserError(f"{name}: found {word!r}, expected one of {', '.join(known)}")
    return word
