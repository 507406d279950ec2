"""What reaches the terminal of text that others wrote."""

from __future__ import annotations

import io

import pytest
from rich.table import Table
from rich.text import Text

from lightning_attr import console
from lightning_attr.console import Terminal, made, note, print_table, printable, progress, summary, warn
from lightning_attr.errors import quoted, shortened

HOSTILE = "a\x1b[2Jb\x1b]0;title\x07c\x9b31md\x00e\x08f\rg\u202eh\u2028i\ud800j"
SHOWN = "a\ufffd[2Jb\ufffd]0;title\ufffdc\ufffd31md\ufffde\ufffdf\ufffdg\ufffdh\ufffdi\ufffdj"
BRACKETS = "runs/[v2]/[/s]/[bold]x :smile: [link=file:///etc]y\\[z"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What both consoles write, as to a terminal with colours."""
    file = io.StringIO()
    for name in ("out", "err"):
        terminal = Terminal()
        terminal.file, terminal._force_terminal, terminal._width = file, True, 200
        monkeypatch.setattr(console, name, terminal)
    return file


def everything(text: str) -> None:
    """Print foreign text in all ways that there are."""
    made([text], then=text)
    note(text)
    warn(text)
    summary(text, [(text, text)])
    console.out.print(text, soft_wrap=True)
    console.out.print(Text(text))
    table = Table(text, title=text)
    table.add_row(text)
    console.out.print(table)
    console.out.width = 20
    print_table(table)
    console.out.width = 200
    with progress("images") as bar:
        bar.add_task(text, total=3)
        bar.print(text)


def test_no_character_of_others_commands_the_terminal(written: io.StringIO) -> None:
    everything(HOSTILE)
    printed = written.getvalue()
    for control in ("\x1b[2J", "\x1b]0", "\x07", "\x9b", "\x00", "\x08", "\u202e", "\u2028", "\ud800"):
        assert control not in printed
    assert printed.count("title") >= 12


def test_brackets_are_no_markup(written: io.StringIO) -> None:
    everything(BRACKETS)
    plain = written.getvalue().replace("\n", "")
    assert plain.count(BRACKETS) >= 10
    assert "]8;" not in plain


def test_printable() -> None:
    assert printable(HOSTILE) == SHOWN
    for text in ("caf\u00e9 \u4e2d\u6587 \U0001f468\u200d\U0001f469", "two\nlines\tand a tab", "a\u00a0b", ""):
        assert printable(text) == text


def test_what_was_found_is_shortened() -> None:
    assert quoted([1, "a"]) == "[1, 'a']"
    assert quoted("\x1b[2J") == r"'\x1b[2J'"
    assert len(quoted("x" * 1_000_000)) < 120
    assert shortened("abc", 3) == "abc"
    assert shortened("abcd", 3) == "abc... (4 characters)"
