"""No arrow runs back up: who may import whom, read from the imports themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("lightning_attr", "datamodules", "callbacks", "tools")

#: From the ground up; a module belongs to the longest prefix of its name.
LAYERS = {
    "lightning_attr.errors": 0,
    "lightning_attr.console": 0,
    "lightning_attr.artifacts": 0,
    "datamodules": 1,
    "lightning_attr": 2,
    "callbacks": 3,
    "lightning_attr.cli": 4,
    "lightning_attr.commands": 5,
    "lightning_attr.main": 5,
    "tools": 6,
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def layer(module: str) -> int:
    return LAYERS[max((name for name in LAYERS if f"{module}.".startswith(f"{name}.")), key=len)]


def imports(module: str) -> Iterator[str]:
    """Our modules that one imports, also within its functions."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found = [name if name in MODULES else node.module for name in names]
        else:
            continue
        yield from (name for name in found if name in MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_imported_from_above(module: str) -> None:
    above = [name for name in imports(module) if layer(name) > layer(module)]
    assert above == []


def test_there_are_no_circles() -> None:
    arrows = {
        module: {
            name
            for name in imports(module)
            # A package gathers what its modules have; a module names its package as a place alone.
            if name != module and not name.startswith(f"{module}.")
        }
        for module in MODULES
    }
    left = dict(arrows)
    while free := [module for module, names in left.items() if not names & left.keys()]:
        for module in free:
            del left[module]
    assert sorted(left) == []
