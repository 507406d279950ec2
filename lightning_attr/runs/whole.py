"""A run that counts as finished has done all of its work."""

from __future__ import annotations

from typing import Any

from lightning_attr.errors import UserError


def check_whole(verb: str, trainer: Any) -> None:
    """Refuse settings by which a run would end with a part of its work, and count as finished, or never end.

    Args:
        verb: Of the run.
        trainer: The trainer's settings.

    Raises:
        UserError: There is one.
    """
    if trainer.max_time is not None:
        raise UserError(
            f"trainer.max_time: found {trainer.max_time}, expected none: a run that it cuts short would count as "
            "finished; stop it by SIGTERM instead (`timeout -s TERM 1h lightning-attr ...`), and give it again"
        )
    if trainer.fast_dev_run:
        raise UserError(
            f"trainer.fast_dev_run: found {trainer.fast_dev_run}, expected false: the run would count as finished; "
            "set trainer.max_steps and a folder of its own instead"
        )
    if verb in ("predict", "test"):
        expect_all_batches(f"trainer.limit_{verb}_batches", trainer[f"limit_{verb}_batches"])
    if verb == "fit":
        limits = {name: trainer[name] for name in ("max_steps", "max_epochs")}
        if 0 in limits.values() or set(limits.values()) == {-1}:
            raise UserError(f"trainer: found {limits}, expected at least one step, and an end")


def expect_all_batches(key: str, limit: float | None) -> None:
    """Check a limit of a trainer's batches, of which an integer is a number, and a fraction a share.

    Raises:
        UserError: It leaves batches out.
    """
    if limit is not None and (isinstance(limit, int) or limit != 1.0):
        raise UserError(f"{key}: found {limit}, expected all of them, 1.0: the rest would count as done")
