"""The batches of several runs at once, for models that are trained together.

Shapes: G members, B samples of the largest of their batches; the rest as in :mod:`datamodules.loading`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from datamodules.latents import LatentDataModule
from datamodules.loading import Batch, LatentLoader
from lightning_attr.errors import UserError


class GroupedLatents(LightningDataModule):
    """What each of several runs would train on, side by side. There is no validation.

    Args:
        members: The data of each run. They may differ in ``exclude``, ``subset`` and ``seed``.

    Raises:
        UserError: There are none, or their stores or batch sizes differ.
    """

    def __init__(self, members: list[LatentDataModule]) -> None:
        super().__init__()
        if not members:
            raise UserError("data.members: found none, expected the data of each run")
        for name in ("store", "batch_size"):
            check_equal("data", name, [getattr(member, name) for member in members])
        self.members = members

    def setup(self, stage: str) -> None:
        """Open the store and choose each member's samples."""
        for member in self.members:
            member.setup(stage)

    def train_dataloader(self) -> GroupedLoader:
        """Return as many batches as the trainer makes steps."""
        assert self.trainer is not None
        return GroupedLoader([member.train_dataloader() for member in self.members], self.trainer.max_steps)


class GroupedLoader:
    """Stacks of the members' batches; each member goes through its own epochs, which differ in length.

    A batch is what the members' are, [G, B, ...] each, and int64 [G] "batch_size" and "epoch". Where a member's batch
    is shorter than the others', at the end of its epoch, its last sample is repeated: only its first "batch_size"
    samples count.

    It has a length, for Lightning reads ahead where there is none, and would save a place that is one batch too far.

    Args:
        loaders: Each member's batches of an epoch.
        length: Number of stacks in all.
    """

    def __init__(self, loaders: Sequence[LatentLoader], length: int) -> None:
        self.loaders = loaders
        self.length = length
        self._handed_out = 0

    def __len__(self) -> int:
        """Return the number of stacks in all, those before a resume included."""
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        """Yield stacks from where the loader stands."""
        streams = [endless(loader) for loader in self.loaders]
        while self._handed_out < self.length:
            batches = [next(stream) for stream in streams]
            self._handed_out += 1
            yield stacked(batches, [loader.sampler.epoch for loader in self.loaders])

    def state_dict(self) -> dict[str, Any]:
        """Return where every member stands."""
        return {"batches": self._handed_out, "members": [loader.state_dict() for loader in self.loaders]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state.

        Raises:
            UserError: A member's batches came in another order.
        """
        self._handed_out = state["batches"]
        for loader, member in zip(self.loaders, state["members"], strict=True):
            loader.sampler.set_epoch(member["epoch"])
            loader.load_state_dict(member)


def endless(loader: LatentLoader) -> Iterator[Batch]:
    """Yield the batches of one epoch after the other, from where the loader stands."""
    while True:
        yield from loader
        loader.sampler.set_epoch(loader.sampler.epoch + 1)


def stacked(batches: Sequence[Batch], epochs: Sequence[int]) -> Batch:
    """Stack one batch of each member, see :class:`GroupedLoader`."""
    longest = max(len(batch["id"]) for batch in batches)
    stack = {name: torch.stack([_padded(batch[name], longest) for batch in batches]) for name in batches[0]}
    sizes = torch.tensor([len(batch["id"]) for batch in batches])
    return {**stack, "batch_size": sizes, "epoch": torch.tensor(epochs)}


def _padded(values: Tensor, length: int) -> Tensor:
    """Repeat the last of the values [B, ...] until there are ``length``."""
    return values[torch.arange(length).clamp(max=len(values) - 1)]


def check_equal(section: str, name: str, values: Sequence[object]) -> None:
    """Check that all members of a group have the same value of a setting.

    Raises:
        UserError: One differs from the first.
    """
    for index, value in enumerate(values):
        if value != values[0]:
            raise UserError(
                f"{section}.members[{index}].{name}: found {value}, expected {values[0]} as the first member has it"
            )
