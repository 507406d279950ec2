"""The network behind one calling convention, whatever its family.

Shapes: B samples, C x H x W a latent.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from datamodules.store import Schema
from lightning_attr.errors import UserError

Conditions = Mapping[str, Tensor]
"""What the network is given beside the latent, by name."""


@dataclass(frozen=True)
class Denoiser(ABC):
    """A network and how it is called. A family is a subclass in a file of its own.

    Attributes:
        network: The network of diffusers.
        class_name: What diffusers calls the network.
        patterns: What the names of weights to work on mean for this family: regular expressions over parameter names.
    """

    network: nn.Module
    class_name: ClassVar[str]
    patterns: ClassVar[Mapping[str, str]]

    @classmethod
    @abstractmethod
    def check_config(cls, key: str, config: Mapping[str, Any]) -> None:
        """Refuse the config of a network of this class that is called otherwise.

        Raises:
            UserError: It is; the message begins with ``key``.
        """

    @abstractmethod
    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """Return what the network predicts of noisy latents [B, C, H, W] at timesteps int64 [B], [B, C, H, W]."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """Return C, H, W of the latents that the network takes."""

    @property
    @abstractmethod
    def conditions(self) -> Mapping[str, tuple[int | None, ...]]:
        """Return the shapes of the conditions that the network needs, by name; None is a size that may be any."""

    def null(self, encode: Callable[[list[str]], Conditions]) -> dict[str, Tensor]:
        """Return the conditions of no caption, without the batch axis: of this family those of the empty one.

        Args:
            encode: Makes conditions [B, ...] of B texts.
        """
        return {name: value[0].cpu() for name, value in encode([""]).items()}

    def accepts(self, schema: Schema, path: str) -> None:
        """Check that the samples of a store have the latents and conditions that the network takes.

        Raises:
            UserError: They do not; it names the store at ``path``.
        """
        for name, expected in {"latent": self.latent_shape, **self.conditions}.items():
            if name not in schema.inputs:
                raise UserError(f"store {path}: found {', '.join(schema.inputs)}, expected {name} among them")
            found = schema.fields[name].shape[1:]
            if not _fits(found, expected):
                shown = " x ".join("any" if size is None else str(size) for size in expected)
                raise UserError(
                    f"store {path}: found {name} of {' x '.join(map(str, found))}, expected {shown} as the model has it"
                )

    def select(self, pattern: str) -> dict[str, nn.Parameter]:
        """Return the parameters that ``pattern`` selects, by name.

        Args:
            pattern: A name of :attr:`patterns` or a regular expression, searched in parameter names.

        Raises:
            UserError: The pattern is no regular expression, or it selects nothing.
        """
        known = f"known names are {', '.join(self.patterns)}; others are regular expressions over parameter names"
        try:
            regex = re.compile(self.patterns.get(pattern, pattern))
        except re.error as error:
            raise UserError(f"weights: {pattern!r} is not a regular expression ({error}); {known}") from error
        selected = {name: weight for name, weight in self.network.named_parameters() if regex.search(name)}
        if not selected:
            raise UserError(f"weights: {pattern!r} selects nothing; {known}")
        return selected


def _fits(found: Sequence[int], expected: Sequence[int | None]) -> bool:
    return len(found) == len(expected) and all(want in (None, size) for size, want in zip(found, expected, strict=True))
