"""The network behind one calling convention, whatever its family.

Shapes: B samples, C x H x W a latent.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datamodules.store import Schema
from lightning_attr.encoders import TextEncoder
from lightning_attr.errors import UserError, one_line
from lightning_attr.models.new_word import OFFSET
from lightning_attr.models.objective import Objective
from lightning_attr.models.process import Diffusion, Process

Conditions = Mapping[str, Tensor]
"""What the network is given beside the latent, by name."""


#: What the names of parameters have in them that an adapter lays over others.
LAID_OVER = (".lora_A.", ".lora_B.", OFFSET)

#: The name of the pattern that selects an adapter's weights.
ADAPTER = "adapter"


@dataclass(frozen=True)
class Denoiser(ABC):
    """A network and how it is called. A family is a subclass in a file of its own.

    Attributes:
        network: The network of diffusers.
        class_name: What diffusers calls the network.
        patterns: What the names of weights to work on mean for this family: regular expressions over parameter names.
        adapter: The names of the parameters that are an adapter's; empty where there is none.
        pipelines: What diffusers calls the pipelines that call the network so.
        process: How samples of this family are noised.
        usual: How networks of this family are usually trained.
        embeds_guidance: Whether the network is told the scale of guidance, as the condition ``guidance`` [B].
    """

    network: nn.Module
    adapter: Collection[str] = ()
    class_name: ClassVar[str]
    patterns: ClassVar[Mapping[str, str]]
    pipelines: ClassVar[Sequence[str]] = ()
    process: ClassVar[type[Process]] = Diffusion
    usual: ClassVar[Objective] = Objective(weighting="none", timesteps="uniform")
    embeds_guidance: ClassVar[bool] = False

    @classmethod
    def takes(cls, config: Mapping[str, Any]) -> bool:
        """Return whether a network of this class and config is of this family: some classes are of several."""
        return True

    @classmethod
    @abstractmethod
    def check_config(cls, key: str, config: Mapping[str, Any]) -> None:
        """Refuse the config of a network of this class that is called otherwise.

        Raises:
            UserError: It is; the message begins with ``key``.
        """

    @abstractmethod
    def predict(self, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """Return what the network predicts of noisy latents [B, C, H, W], [B, C, H, W].

        Args:
            noisy: Latents.
            times: What the network is told of their timesteps, [B], see :meth:`Process.times`.
            conditions: By name, [B, ...] each.
        """

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """Return C, H, W of the latents that the network was made for; it takes others of as many channels."""

    @property
    def multiple(self) -> int:
        """Return of what number H and W of a latent must be multiples."""
        return 1

    @property
    @abstractmethod
    def conditions(self) -> Mapping[str, tuple[int | None, ...]]:
        """Return the shapes of the conditions that the network needs, by name; None is a size that may be any."""

    def null(self, encoder: TextEncoder) -> dict[str, Tensor]:
        """Return those of an encoder's null conditions that the network needs, without the batch axis."""
        return {name: value.cpu() for name, value in encoder.null().items() if name in self.conditions}

    def of_size(self, height: int, width: int) -> dict[str, Tensor]:
        """Return the conditions of an image of so many pixels that was neither resized nor cropped, without the batch.

        They are those of :attr:`conditions` that no text encoder makes; most families have none.
        """
        return {}

    def steps(self, count: int, size: Sequence[int], scheduler: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the pipelines of this family give their scheduler to set its timesteps.

        Args:
            count: How many steps.
            size: H, W of the latents.
            scheduler: Settings of the scheduler.
        """
        return {"num_inference_steps": count}

    def check_null(self, null: Conditions) -> None:
        """Check that null conditions, without the batch axis, are some that the network takes.

        Raises:
            UserError: One is not; the message begins with its name.
        """
        for name, value in null.items():
            expected = self.conditions.get(name)
            if expected is None:
                raise UserError(f"{name}: found a null condition of that name, expected {', '.join(self.conditions)}")
            found = tuple(value.shape) if isinstance(value, Tensor) and value.layout == torch.strided else type(value)
            if not isinstance(found, tuple) or not _fits(found, expected) or not bool(value.isfinite().all()):
                raise UserError(f"{name}: found {found}, expected finite numbers of shape {_shown(expected)}")

    def accepts(self, schema: Schema, path: str) -> None:
        """Check that the samples of a store have the latents and conditions that the network takes.

        Raises:
            UserError: They do not; it names the store at ``path``.
        """
        inputs: Mapping[str, tuple[int | None, ...]] = {"latent": (self.latent_shape[0], None, None), **self.conditions}
        for name, expected in inputs.items():
            if name not in schema.inputs:
                raise UserError(f"store {path}: found {', '.join(schema.inputs)}, expected {name} among them")
            found = schema.fields[name].shape[1:]
            if not _fits(found, expected):
                raise UserError(
                    f"store {path}: found {name} of {_shown(found)}, expected {_shown(expected)} as the model has it"
                )
        height, width = schema.fields["latent"].shape[2:]
        if height % self.multiple or width % self.multiple:
            raise UserError(
                f"store {path}: found latents of {height} x {width}, expected multiples of {self.multiple}, by which "
                "the network makes them smaller"
            )

    @property
    def idle(self) -> tuple[str, ...]:
        """Return how the names of weights begin that no prediction depends on, which are never selected."""
        return ()

    @property
    def _config(self) -> Any:
        return self.network.config

    def select(self, pattern: str) -> dict[str, nn.Parameter]:
        """Return the parameters that ``pattern`` selects, by name.

        Args:
            pattern: ``adapter``, which leaves out the offset of a new word, as it is no matrix; a name of
                :attr:`patterns`, which but for ``all`` are of the base's weights; or a regular expression, searched in
                parameter names as they are without an adapter.

        Raises:
            UserError: The pattern is no regular expression, or it selects nothing.
        """
        names = [*self.patterns, *([ADAPTER] if self.adapter else [])]
        known = f"known names are {', '.join(names)}; others are regular expressions over parameter names"
        try:
            regex = re.compile(self.patterns.get(pattern, pattern))
        except re.error as error:
            raise UserError(f"weights: {pattern!r} is not a regular expression ({one_line(error)}); {known}") from error
        parameters = {
            name: weight for name, weight in self.network.named_parameters() if not name.startswith(self.idle)
        }
        if pattern == ADAPTER:
            selected = {name: weight for name, weight in parameters.items() if name in self.adapter and name != OFFSET}
        else:
            passed = LAID_OVER if self.patterns.get(pattern) else ()
            selected = {
                name: weight
                for name, weight in parameters.items()
                if regex.search(name.replace(".base_layer", "")) and not any(part in name for part in passed)
            }
        if not selected or not pattern:
            raise UserError(f"weights: {pattern!r} selects nothing; {known}")
        return selected


def check_sizes(key: str, config: Mapping[str, Any], names: Sequence[str], most: int = 100_000) -> None:
    """Check that entries of a network's config, where they are there, are positive numbers up to ``most``.

    Raises:
        UserError: One is not.
    """
    for name in names:
        value = config.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise UserError(f"{key}: found {name} {value!r}, expected a number from 1 to {most}")


def _shown(shape: Sequence[int | None]) -> str:
    return " x ".join("any" if size is None else str(size) for size in shape)


def _fits(found: Sequence[int], expected: Sequence[int | None]) -> bool:
    return len(found) == len(expected) and all(want in (None, size) for size, want in zip(found, expected, strict=True))
