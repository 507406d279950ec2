"""The style of docstrings that ruff does not check."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("lightning_attr", "datamodules", "callbacks", "tools")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

#: A Sphinx role, or code in double backticks: what may hold backticks.
MARKUP = re.compile(r":\w+(?::\w+)?:`[^`]+`|``.+?``", re.DOTALL)


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """All strings that stand alone: those of modules, classes, functions, attributes and constants."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield node.lineno, text


def faults(source: str) -> Iterator[tuple[int, str]]:
    tree = ast.parse(source)
    for line, text in docstrings(tree):
        if "`" in MARKUP.sub("", text):
            yield line, "code stands in double backticks"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(
            ast.unparse(each).endswith("property") for each in node.decorator_list
        ):
            text = ast.get_docstring(node)
            if text is not None and not text.startswith("Return "):
                yield node.lineno, "the docstring of a property begins with Return"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_keep_the_style(path: Path) -> None:
    assert list(faults(path.read_text())) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('"""Take `x`."""', ["code stands in double backticks"]),
        ('"""Take ``x`` as :func:`~a.b` and :py:class:`C` do; ``two\nlines``."""', []),
        (
            'class A:\n    @property\n    def b(self):\n        """The value."""',
            ["the docstring of a property begins with Return"],
        ),
        ('class A:\n    @cached_property\n    def b(self):\n        """Return the value."""', []),
    ],
)
def test_faults_are_found(source: str, found: list[str]) -> None:
    assert [what for _, what in faults(source)] == found
