"""Which arguments of a class name files that it reads, or writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from inspect import signature, unwrap
from types import NoneType, SimpleNamespace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

InputPath = Annotated[str, "a file or folder that is read, or a pattern with *"]
"""The type of an argument that names what is read; a run records the digests of it, and may find it elsewhere later."""

OutputPath = Annotated[str, "a file or folder that is written"]
"""The type of an argument that says where something goes: no result depends on that."""

#: Both types, by their names.
PATHS: Mapping[str, Any] = {"InputPath": InputPath, "OutputPath": OutputPath}


def input_paths(owner: type, arguments: Mapping[str, Any], of: Any = InputPath) -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the value of every argument of a class, or of a dataclass in it, that is one.

    Args:
        owner: The class.
        arguments: Of its constructor, by name.
        of: ``InputPath`` or ``OutputPath``.
    """
    hints = _hints(owner)
    for name, value in arguments.items():
        kinds = _kinds(hints.get(name))
        if of in kinds:
            yield from _strings(name, value)
        elif isinstance(value, Mapping):
            for kind in kinds:
                if isinstance(kind, type) and is_dataclass(kind):
                    yield from ((f"{name}.{key}", path) for key, path in input_paths(kind, value, of))


def misfits(owner: type, arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, value and type of the arguments of a class, or of a dataclass in it, that have not that type.

    Only null and lists are looked at: of those jsonargparse takes what it should not.
    """
    hints = _hints(owner)
    inits = [vars(cls)["__init__"] for cls in reversed(owner.__mro__[:-1]) if "__init__" in vars(cls)]
    defaults = {name: each.default for init in inits for name, each in signature(init).parameters.items()}
    for name, value in arguments.items():
        hint = hints.get(name, Any)
        kinds = _kinds(hint)
        if value is None and defaults.get(name) is not None:
            if not any(kind in (Any, NoneType, None) for kind in kinds):
                yield name, value, hint
        elif isinstance(value, list):
            if not any(kind is Any or get_origin(kind) in (list, tuple, Sequence) for kind in kinds):
                yield name, value, hint
        elif isinstance(value, Mapping):
            for kind in kinds:
                if isinstance(kind, type) and is_dataclass(kind):
                    yield from ((f"{name}.{key}", *rest) for key, *rest in misfits(kind, value))


def _hints(owner: type) -> dict[str, Any]:
    """Return the types of the constructor's arguments, of base classes as well: they may be handed on."""
    hints: dict[str, Any] = {}
    for cls in reversed(owner.__mro__):
        init: Any = vars(cls).get("__init__")
        for name, hint in getattr(init, "__annotations__", {}).items():
            alone = SimpleNamespace(__annotations__={name: hint})
            try:
                hints |= get_type_hints(alone, unwrap(init).__globals__, include_extras=True)
            except NameError:  # of a name that is imported for type checkers alone
                hints[name] = next((list[path] for word, path in PATHS.items() if word in str(hint)), Any)  # type: ignore[valid-type]
    return hints


def _kinds(hint: Any) -> list[Any]:
    """Return a type and all that it is made of: of ``list[A] | None`` also ``A``."""
    return [hint, *(kind for part in get_args(hint) if hint not in PATHS.values() for kind in _kinds(part))]


def _strings(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _strings(f"{name}.{index}", each)
