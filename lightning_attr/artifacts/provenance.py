"""What a file was made from: the digests that its settings keep, and whether they are those of the files at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_attr.errors import UserError, quoted


def digest_of(settings: Mapping[str, Any], role: str) -> str | None:
    """Return the digest that a file's settings keep of what it was made from, such as ``checkpoint``; None if none.

    Raises:
        UserError: It is no digest.
    """
    digests = settings.get("digests", {})
    found = digests.get(role) if isinstance(digests, Mapping) else digests
    if not isinstance(found, str | None):
        raise UserError(f"digests: found {quoted(found)} for {role}, expected what it was made from")
    return found


def differs(found: str | None, expected: str | None) -> bool:
    """Return whether two digests are known, and not the same."""
    return bool(found and expected and found != expected)


def check_made_from(what: str, settings: Mapping[str, Any], role: str, digest: str | None, path: str) -> None:
    """Check that a file was made from another one, as far as digests are known.

    Args:
        what: The file, in words.
        settings: Those that it keeps.
        role: What the other one was to it: ``checkpoint``, ``store`` or ``queries``.
        digest: Of the file at hand.
        path: Where that lies.

    Raises:
        UserError: It was made from another file.
    """
    if differs(found := digest_of(settings, role), digest):
        raise UserError(f"{what}: made from {role} of digest {found}, expected {digest} as {path} has it")
