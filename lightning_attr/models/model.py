"""The model: a denoiser, its process, its null conditions, and where it came from.

Shapes: B samples, C x H x W a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from datamodules.store import Store
from lightning_attr.artifacts.provenance import check_made_from
from lightning_attr.encoders import check_encoders
from lightning_attr.errors import UserError, expect_within
from lightning_attr.models.denoiser import ADAPTER, Conditions, Denoiser
from lightning_attr.models.objective import Objective, Weighting
from lightning_attr.models.process import Process
from lightning_attr.noise import Sampling


class Inputs(NamedTuple):
    """What the loss of a batch is measured on.

    Attributes:
        latent: Clean latents, [B, C, H, W].
        conditions: By name, [B, ...] each.
        timesteps: Int64 [B].
        noise: [B, C, H, W].
    """

    latent: Tensor
    conditions: Conditions
    timesteps: Tensor
    noise: Tensor


class Later(Mapping[str, Tensor]):
    """Tensors by name that are made when one of them is asked for: to encode a text takes encoders of gigabytes."""

    def __init__(self, make: Callable[[], Mapping[str, Tensor]]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> Mapping[str, Tensor]:
        return self._make()

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor."""
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        """Return an iterator over the names."""
        return iter(self._made)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._made)


@dataclass
class Model:
    """A text-to-image diffusion model.

    Attributes:
        denoiser: The network behind its calling convention.
        process: How samples are noised and what is predicted.
        null: The conditions of no caption, without the batch axis, by name; empty where they are not known.
        configs: ``denoiser`` and ``scheduler``, as ``build`` takes them, and ``objective`` where one is;
            of a fine-tuned model also ``base``.
        path: The checkpoint or folder; empty where the model is of none.
        digest: Of what lies there; empty likewise.
        made_from: The digests of the ``store`` that it was trained on and of the ``encoders`` of that, where known.
        objective: What training minimised.
        base: Where the model lies that it was fine-tuned from, where its checkpoint holds what was trained alone.
        text_adapter: The digest of what its adapter has for the text encoders; empty where it has nothing.
    """

    denoiser: Denoiser
    process: Process
    null: Mapping[str, Tensor] = field(default_factory=dict)
    configs: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    digest: str = ""
    made_from: Mapping[str, str] = field(default_factory=dict)
    objective: Objective = field(default_factory=Objective)
    base: str = ""
    text_adapter: str = ""

    def __post_init__(self) -> None:
        """Refuse an objective of another process."""
        self.process.check_weighting(self.weighting)

    @property
    def weighting(self) -> Weighting:
        """Return how much losses at a timestep count."""
        return self.objective.weighting or self.denoiser.usual.weighting or "none"

    @property
    def sampling(self) -> Sampling:
        """Return how training draws timesteps."""
        return self.objective.timesteps or self.denoiser.usual.timesteps or "uniform"

    @property
    def network(self) -> nn.Module:
        """Return the network, whose parameters are the model's weights."""
        return self.denoiser.network

    @property
    def weights(self) -> dict[str, Tensor]:
        """Return what is kept of the network, by name: all of it, or what a fine-tuning has laid over its base."""
        state: dict[str, Tensor] = self.network.state_dict()
        return {name: state[name] for name in self.denoiser.adapter} if self.base else state

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Return C, H, W of the latents that the network was made for."""
        return self.denoiser.latent_shape

    def over(self, network: nn.Module) -> Model:
        """Return this model with another network of the same family, such as one whose weights are replaced."""
        return replace(self, denoiser=replace(self.denoiser, network=network))

    def with_adapter(self, names: Collection[str]) -> Model:
        """Return this model with the weights of these names known as an adapter's; it is frozen as the base is."""
        self.network.eval().requires_grad_(False)
        return replace(self, denoiser=replace(self.denoiser, adapter=names))

    def to(self, device: torch.device | str) -> Model:
        """Move the network to a device, and return the model with null conditions there."""
        self.network.to(device)
        return replace(self, null=Later(lambda: {name: value.to(device) for name, value in self.null.items()}))

    def chosen(self, pattern: str | None, otherwise: str = "cross_kv") -> str:
        """Return a pattern of weights.

        None is the adapter's where there is one, which alone was trained, else ``otherwise``.
        """
        return pattern if pattern is not None else ADAPTER if self.denoiser.adapter else otherwise

    def select(self, pattern: str | None) -> dict[str, nn.Parameter]:
        """Return the weights that a pattern selects, see :meth:`chosen` and :meth:`Denoiser.select`."""
        return self.denoiser.select(self.chosen(pattern))

    def accepts(self, store: Store) -> None:
        """Check that the samples of a store have all that the model needs and fit it, see :meth:`Denoiser.accepts`.

        Raises:
            UserError: They do not, or were made with other encoders than those that it was trained on.
        """
        self.denoiser.accepts(store.schema, store.path)
        if self.text_adapter and store.schema.encoders.get("text", {}).get("adapter_digest") != self.text_adapter:
            raise UserError(
                f"{store.path}: found texts that were encoded without the text part of the adapter of {self.path}, "
                f"expected those with it; prepare it with --model {self.path}"
            )
        check_encoders(store, self.made_from.get("encoders"), f"the model {self.path}".rstrip())

    @property
    def lineage(self) -> tuple[str, ...]:
        """Return its digest and that of its base: a curvature of the base's weights may stand for that of its own."""
        return tuple(digest for digest in (self.digest, self.made_from.get("base")) if digest)

    def was_trained_on(self, store: Store) -> None:
        """Check that a store is the one that the model was trained on, as far as that is known.

        Raises:
            UserError: It is another one, or the model does not accept it.
        """
        self.accepts(store)
        check_made_from(f"model {self.path}", {"digests": self.made_from}, "store", store.digest, store.path)

    def conditions_of(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return those entries of a batch that the network is given beside the latent, in its weights' precision."""
        dtype = next(self.network.parameters()).dtype
        own = {name: batch[name] for name in self.denoiser.conditions}
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in own.items()}

    def with_null(self, conditions: Conditions, dropped: Tensor) -> dict[str, Tensor]:
        """Return the conditions, and the null ones where ``dropped``, bool [B]; both may have more axes in front."""

        def where(name: str, value: Tensor) -> Tensor:
            mask = dropped.reshape(*dropped.shape, *[1] * (value.ndim - dropped.ndim))
            return torch.where(mask, self.null[name].to(value), value)

        return {name: where(name, value) if name in self.null else value for name, value in conditions.items()}

    def predict(self, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """Return the prediction, see :meth:`Denoiser.predict`; without a ``guidance``, at the one of training."""
        if self.denoiser.embeds_guidance and "guidance" not in conditions:
            given, usual = self.objective.guidance, self.denoiser.usual.guidance
            conditions = self._guided(conditions, usual if given is None else given)
        return self.denoiser.predict(noisy, times, conditions)

    def losses(
        self, latent: Tensor, conditions: Conditions, timesteps: Tensor, noise: Tensor, region: Tensor | None = None
    ) -> Tensor:
        """Return the loss of every sample as training has it, [B]: the mean squared error of the prediction, weighted.

        Args:
            latent: Clean latents, [B, C, H, W].
            conditions: By name, [B, ...] each.
            timesteps: Int64 [B].
            noise: [B, C, H, W].
            region: How much each place counts, [H, W]; the mean is weighted by it. None is all alike.
        """
        noisy, target = self.process.noised(latent, noise, timesteps)
        errors = self.predict(noisy, self.process.times(timesteps), conditions) - target
        return self.process.weighted(mean_square(errors, region), timesteps, self.weighting)

    def null_losses(self, latent: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """Return the loss of a network that predicts zero, [B]; the arguments are those of :meth:`losses`."""
        _, target = self.process.noised(latent, noise, timesteps)
        return self.process.weighted(mean_square(target), timesteps, self.weighting)

    def squared_outputs(
        self, latent: Tensor, conditions: Conditions, timesteps: Tensor, noise: Tensor, region: Tensor | None = None
    ) -> Tensor:
        """Return the mean square of every sample's prediction, [B]: the output function of D-TRAK (section 3).

        The arguments are those of :meth:`losses`; neither the target nor the weighting plays a part.
        """
        noisy, _ = self.process.noised(latent, noise, timesteps)
        return mean_square(self.predict(noisy, self.process.times(timesteps), conditions), region)

    @torch.no_grad()
    def generate(
        self,
        conditions: Conditions,
        seeds: Sequence[int],
        *,
        size: Sequence[int],
        steps: int,
        guidance: float,
        on_step: Callable[[], object] = lambda: None,
    ) -> tuple[Tensor, Tensor]:
        """Sample latents with classifier-free guidance; return them and their initial noise, both [B, C, H, W].

        All randomness comes from ``seeds``: another model given the same ones makes the *same* query.

        Args:
            conditions: Of the prompts, [B, ...] each.
            seeds: One seed a row.
            size: H, W of the latents, as the store has them.
            steps: Number of sampling steps.
            guidance: Scale of the guidance; 1 means none.
            on_step: Called after every step, for a progress bar.

        Raises:
            UserError: There is guidance, and the null conditions are not known.
        """
        latent = noise = initial_noise(seeded_generators(seeds), (self.latent_shape[0], *size))
        for _, stepped, _ in self._trajectory(conditions, seeds, size, steps, guidance):
            latent = stepped
            on_step()
        return latent, noise

    @torch.no_grad()
    def predicted_original(
        self, conditions: Conditions, seeds: Sequence[int], at: int, *, size: Sequence[int], steps: int, guidance: float
    ) -> Tensor:
        """Return the clean latent that sampling has in view at its step nearest to timestep ``at``, [B, C, H, W].

        The other arguments are those of :meth:`generate`.

        Raises:
            UserError: The scheduler predicts no clean latent.
        """
        nearest, result = None, None
        for timestep, _, original in self._trajectory(conditions, seeds, size, steps, guidance):
            if nearest is None or abs(timestep - at) < abs(nearest - at):
                nearest, result = timestep, original
        if result is None:
            raise UserError(f"scheduler: {self.process.name} predicts no clean latent, which JourneyTRAK needs")
        return result

    def _trajectory(
        self, conditions: Conditions, seeds: Sequence[int], size: Sequence[int], steps: int, guidance: float
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        expect_within("steps", steps, 1, self.process.levels)
        generators, like = seeded_generators(seeds), next(iter(conditions.values()))
        noise = initial_noise(generators, (self.latent_shape[0], *size)).to(like.device)
        schedule = self.denoiser.steps(steps, size, self.process.config)
        if self.denoiser.embeds_guidance:
            conditions, guidance = self._guided(conditions, guidance), 1
        if guidance != 1 and not self.null:
            raise UserError(f"model {self.path}: found no null conditions, which guidance {guidance:g} needs")

        def without_caption(name: str, value: Tensor) -> Tensor:
            if name not in self.null:
                return value
            if (null := self.null[name].to(value)).shape != value.shape[1:]:
                found, expected = (" x ".join(map(str, shape)) for shape in (null.shape, value.shape[1:]))
                raise UserError(
                    f"model {self.path}: found a null {name} of {found}, expected {expected} as of a prompt"
                )
            return null.expand_as(value)

        if guidance != 1:  # the network is called once for both
            pairs = {name: (without_caption(name, value), value) for name, value in conditions.items()}
            conditions = {name: torch.cat(both) for name, both in pairs.items()}

        def predict(noisy: Tensor, time: Tensor) -> Tensor:
            doubled = noisy if guidance == 1 else torch.cat([noisy, noisy])
            prediction = self.predict(doubled, time.to(noisy.device).expand(len(doubled)), conditions)
            if guidance == 1:
                return prediction
            unconditional, guided = prediction[: len(noisy)], prediction[len(noisy) :]
            return unconditional + guidance * (guided - unconditional)

        return self.process.sampled(predict, noise, generators, schedule)

    @staticmethod
    def _guided(conditions: Conditions, guidance: float | None) -> dict[str, Tensor]:
        """Return the conditions, and the scale of guidance that the network is told, [B]."""
        like = next(value for value in conditions.values() if value.is_floating_point())
        return {**conditions, "guidance": like.new_full([len(like)], guidance or 0.0)}


def mean_square(values: Tensor, region: Tensor | None = None) -> Tensor:
    """Return the mean of the squares of ``values`` [B, C, H, W] over all but the first axis, weighted by [H, W]."""
    squares = values.square()
    if region is None:
        return squares.flatten(1).mean(1)
    return (squares.mean(1) * region).flatten(1).sum(1) / region.sum()


def seeded_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return one CPU generator per seed, so that an image depends neither on its batch nor on the device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def initial_noise(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Return the noise from which each generator's image is sampled, float32 [B, *shape]."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])
