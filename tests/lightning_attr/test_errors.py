"""What other libraries and the system refuse is told in one line; a bug of ours keeps its traceback."""

from __future__ import annotations

import errno

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from lightning_attr.errors import LONGEST, UserError, explained, one_line


def raised(call: object, *args: object, **kwargs: object) -> Exception:
    assert callable(call)
    with pytest.raises(Exception) as caught:  # noqa: PT011 (any)
        call(*args, **kwargs)
    return caught.value


def test_one_line_is_short_and_without_advice_to_trust_a_file() -> None:
    advice = "Load failed.\n\t(1) Set `weights_only`. \x1b[1mOnly if from a trusted source.\x1b[0m It is a list."
    assert one_line(ValueError(advice)) == "Load failed. It is a list."
    assert len(one_line(ValueError("x " * 9000))) < LONGEST + 40
    assert one_line(KeyError("name")) == "KeyError: 'name'"
    assert one_line(ValueError()) == "ValueError"


def test_settings_that_lightning_refuses_are_the_users() -> None:
    told = explained(raised(Trainer, accelerator="cpu", devices="x", logger=False))
    assert isinstance(told, UserError)
    assert "devices" in str(told)
    assert explained(raised(Trainer, max_epochs=-5, logger=False)) is not None


@pytest.mark.parametrize("error", [KeyError("a"), TypeError("b"), MisconfigurationException("c"), RuntimeError("d")])
def test_errors_that_our_own_code_raises_are_bugs(error: Exception) -> None:
    def ours() -> None:
        raise error

    assert explained(raised(ours)) is None


def test_what_the_system_refuses_is_told_with_its_path() -> None:
    assert str(explained(OSError(errno.EROFS, "Read-only file system", "a/b"))) == "a/b: Read-only file system"
    full = str(explained(OSError(errno.ENOSPC, "No space left on device", "a/b")))
    assert "No space left" in full
    assert "goes on when there is room" in full
    assert "batch_size" in str(explained(MemoryError()))
    assert "wandb" in str(explained(ModuleNotFoundError("No module named 'wandb'")))
