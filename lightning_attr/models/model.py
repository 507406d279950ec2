"""The model: a denoiser, its process, its null conditions, and where it came from.

Shapes: B samples, C x H x W a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from datamodules.store import Store
from lightning_attr.artifacts.provenance import check_made_from
from lightning_attr.encoders import check_encoders
from lightning_attr.errors import UserError, expect_within
from lightning_attr.models.build import build_class
from lightning_attr.models.denoiser import ADAPTER, Conditions, Denoiser
from lightning_attr.models.process import Diffusion
from lightning_attr.models.unet import UNet

#: The families, by what diffusers calls their networks.
FAMILIES: Mapping[str, type[Denoiser]] = {family.class_name: family for family in (UNet,)}


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


@dataclass
class Model:
    """A text-to-image diffusion model.

    Attributes:
        denoiser: The network behind its calling convention.
        process: How samples are noised and what is predicted.
        null: The conditions of the empty caption, without the batch axis, by name; empty where they are not known.
        configs: ``denoiser`` and ``scheduler``, as given to :func:`build`; of a fine-tuned model also ``base``.
        path: The checkpoint or folder; empty where the model is of none.
        digest: Of what lies there; empty likewise.
        made_from: The digests of the ``store`` that it was trained on and of the ``encoders`` of that, where known.
        base: Where the model lies that it was fine-tuned from, where its checkpoint holds what was trained alone.
    """

    denoiser: Denoiser
    process: Diffusion
    null: Mapping[str, Tensor] = field(default_factory=dict)
    configs: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    digest: str = ""
    made_from: Mapping[str, str] = field(default_factory=dict)
    base: str = ""

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
        return replace(self, null={name: value.to(device) for name, value in self.null.items()})

    def chosen(self, pattern: str | None) -> str:
        """Return a pattern of weights; None is the adapter's where there is one, which alone was trained, else K/V."""
        return pattern if pattern is not None else ADAPTER if self.denoiser.adapter else "cross_kv"

    def select(self, pattern: str | None) -> dict[str, nn.Parameter]:
        """Return the weights that a pattern selects, see :meth:`chosen` and :meth:`Denoiser.select`."""
        return self.denoiser.select(self.chosen(pattern))

    def accepts(self, store: Store) -> None:
        """Check that the samples of a store have all that the model needs and fit it, see :meth:`Denoiser.accepts`.

        Raises:
            UserError: They do not, or were made with other encoders than those that it was trained on.
        """
        self.denoiser.accepts(store.schema, store.path)
        check_encoders(store, self.made_from.get("encoders"), f"the model {self.path}".rstrip())

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

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """Return the prediction, see :meth:`Denoiser.predict`."""
        return self.denoiser.predict(noisy, timesteps, conditions)

    def losses(
        self, latent: Tensor, conditions: Conditions, timesteps: Tensor, noise: Tensor, region: Tensor | None = None
    ) -> Tensor:
        """Return the loss of every sample, [B]: the mean squared error of the prediction over C, H and W.

        Args:
            latent: Clean latents, [B, C, H, W].
            conditions: By name, [B, ...] each.
            timesteps: Int64 [B].
            noise: [B, C, H, W].
            region: How much each place counts, [H, W]; the mean is weighted by it. None is all alike.
        """
        noisy, target = self.process.noised(latent, noise, timesteps)
        return mean_square(self.predict(noisy, timesteps, conditions) - target, region)

    def squared_outputs(
        self, latent: Tensor, conditions: Conditions, timesteps: Tensor, noise: Tensor, region: Tensor | None = None
    ) -> Tensor:
        """Return the mean square of every sample's prediction, [B]: the output function of D-TRAK (section 3).

        The arguments are those of :meth:`losses`; the target plays no part.
        """
        noisy, _ = self.process.noised(latent, noise, timesteps)
        return mean_square(self.predict(noisy, timesteps, conditions), region)

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
        generators, like = seeded_generators(seeds), next(iter(conditions.values()))
        noise = initial_noise(generators, (self.latent_shape[0], *size)).to(like.device)
        if guidance != 1 and not self.null:
            raise UserError(f"model {self.path}: found no null conditions, which guidance {guidance:g} needs")
        null = {name: value.to(conditions[name]).expand_as(conditions[name]) for name, value in self.null.items()}

        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            at = timestep.to(noisy.device).expand(len(noisy))
            if guidance == 1:
                return self.predict(noisy, at, conditions)
            doubled = {name: torch.cat([null.get(name, value), value]) for name, value in conditions.items()}
            both = self.predict(torch.cat([noisy, noisy]), torch.cat([at, at]), doubled)
            unconditional, guided = both[: len(noisy)], both[len(noisy) :]
            return unconditional + guidance * (guided - unconditional)

        return self.process.sampled(predict, noise, generators, steps)


def build(denoiser: Mapping[str, Any], scheduler: Mapping[str, Any], seed: int = 0) -> Model:
    """Build a model from configs, with initial weights that depend on ``seed`` alone.

    Args:
        denoiser: Of the network, as in a diffusers ``config.json``; ``_class_name`` defaults to
            ``UNet2DConditionModel``.
        scheduler: See :class:`~lightning_attr.models.process.Diffusion`.
        seed: Of the weights.

    Raises:
        UserError: A class or one of its arguments does not exist, or the family is not known.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _built(denoiser, scheduler, "cpu")


def unfilled(denoiser: Mapping[str, Any], scheduler: Mapping[str, Any]) -> Model:
    """Build a model as :func:`build` does, on the device ``meta``: its weights have shapes, and no memory yet.

    Raises:
        UserError: As of :func:`build`.
    """
    return _built(denoiser, scheduler, "meta")


def _built(denoiser: Mapping[str, Any], scheduler: Mapping[str, Any], device: str) -> Model:
    named = {"_class_name": UNet.class_name, **denoiser}
    kind = family("model.denoiser", named)
    for name, value in named.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int | float):
                expect_within(f"model.denoiser.{name}", number, 0)
    with torch.device(device):
        network = build_class("model.denoiser", named, ModelMixin)
    return Model(kind(network), Diffusion(scheduler), configs={"denoiser": denoiser, "scheduler": scheduler})


def family(key: str, config: Mapping[str, Any]) -> type[Denoiser]:
    """Return the family of a network.

    Raises:
        UserError: It is none of :data:`FAMILIES`, or one of its class that needs other conditions.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"{key}: found a network of class {name!r}, expected one of {', '.join(FAMILIES)}")
    FAMILIES[name].check_config(key, config)
    return FAMILIES[name]


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
