"""Retrain several models at once, which is faster where a step is dominated by the overhead of its operations.

Shapes: G members, B samples, C x H x W a latent, L tokens of E features.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from datamodules.grouped import GroupedLatents, check_equal
from datamodules.store import Store
from lightning_attr.artifacts import write_atomically
from lightning_attr.artifacts.checkpoint_files import read_checkpoint, with_digests
from lightning_attr.artifacts.inputs import OutputPath
from lightning_attr.errors import UserError
from lightning_attr.models import Inputs
from lightning_attr.models.process import expand_right
from lightning_attr.noise import training_noise
from lightning_attr.runs.folder import RunFolder
from lightning_attr.tasks.analysis import require_one_rank
from lightning_attr.tasks.latent_diffusion import LatentDiffusion
from lightning_attr.tasks.retraining import Retraining

#: Training settings that the members of a group share.
SHARED = ("configs", "learning_rate", "weight_decay", "warmup_steps", "caption_dropout")


class GroupedRetraining(LatentDiffusion):
    """``Retraining`` runs trained together: the same models, up to rounding, as each of them alone.

    Their weights are stacked, and ``torch.func.vmap`` runs every operation once for all of them. Each member keeps its
    own samples, order, noise and seed. At the end each member's folder holds what its own run would have left there:
    the checkpoint (of the weights alone), ``retraining.safetensors``, and that it is finished. Run it by
    ``lightning-attr fit`` with :class:`~datamodules.GroupedLatents`, and in a folder of the group's own.

    Args:
        members: The task of each run, as in its own config.
        folders: The folder of each run.

    Raises:
        UserError: There are none, or their networks or training settings differ.
    """

    makes = ()  # in its own folder

    def __init__(self, members: list[Retraining], folders: list[OutputPath]) -> None:
        if not members or len(folders) != len(members):
            raise UserError(
                f"model: found {len(members)} members and {len(folders)} folders, expected one of each a run"
            )
        first = members[0]
        for name in SHARED:
            check_equal("model", name, [getattr(member, name) for member in members])
        begin = (
            {"base": first.base} if first.base else {name: first.configs[name] for name in ("denoiser", "scheduler")}
        )
        super().__init__(
            **begin,
            learning_rate=first.learning_rate,
            weight_decay=first.weight_decay,
            warmup_steps=first.warmup_steps,
            caption_dropout=first.caption_dropout,
            objective=first.model.objective,
        )
        check_no_dropout(self.denoiser)
        if any(member.gradient_checkpointing for member in members):
            raise UserError("model.members: found gradient_checkpointing, expected none in a group")
        self.denoiser = stacked([member.denoiser for member in members])
        self.model = self.model.over(self.denoiser)
        # Members are settings only; a tuple keeps them from being submodules, and their weights are here already.
        self.members = tuple(member.to("meta") for member in members)
        self.folders = [Path(folder) for folder in folders]
        self._unfinished: list[bool] = []

    @property
    def data(self) -> GroupedLatents:
        """Return the data of this group."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, GroupedLatents) or len(data.members) != len(self.members):
            found = f"{len(data.members)} members" if isinstance(data, GroupedLatents) else type(data).__name__
            raise UserError(f"data: found {found}, expected GroupedLatents with {len(self.members)} members")
        return data

    @property
    def store(self) -> Store:
        """Return the store that all members train on."""
        return Store(self.data.members[0].store)

    def setup(self, stage: str) -> None:
        """Check the trainer and every member, and begin each member's run."""
        require_one_rank(self)
        check_trainer(self.trainer)
        super().setup(stage)
        for member in self.members:
            member.tell_word(self.store)
            member.check(self.store)
        config = yaml.safe_load((Path(self.trainer.default_root_dir) / "config.yaml").read_text())
        configs = [member_config(config, index, folder) for index, folder in enumerate(self.folders)]
        self._unfinished = [RunFolder(f).start("fit", own) for f, own in zip(self.folders, configs, strict=True)]

    def forward(self, *inputs: Any) -> Tensor:
        """Return the losses of one member's samples, [B]; its weights are put in by :meth:`losses`."""
        return self.model.losses(*inputs)

    def losses(self, inputs: Inputs) -> Tensor:
        """Return the losses of all members' samples, [G, B], from inputs [G, B, ...]."""

        def of_one(weights: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
            return functional_call(self, dict(weights), tuple(inputs))  # type: ignore[no-any-return]

        # Fused attention cannot be vectorised on a CPU; it would run once a member.
        unfused = sdpa_kernel(SDPBackend.MATH) if inputs.latent.device.type == "cpu" else nullcontext()
        with unfused:
            weights = {f"denoiser.{name}": weight for name, weight in self.trained().items()}
            result: Tensor = vmap(of_one)(weights, inputs)
        return result

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the sum of the members' mean losses, which gives each member the gradient of its own."""
        noise, timesteps, uniform = (part.to(self.device) for part in self._added(batch))
        conditions = self.model.with_null(self.model.conditions_of(batch), uniform < self.caption_dropout)
        means = real_means(self.losses(Inputs(batch["latent"], conditions, timesteps, noise)), batch["batch_size"])
        for folder, loss in zip(self.folders, means.tolist(), strict=True):
            if not abs(loss) < float("inf"):
                raise UserError(
                    f"train/loss of {folder}: found {loss} at step {self.global_step}, expected a finite loss; lower "
                    "learning_rate of the members or set trainer.gradient_clip_val. The last checkpoint is kept."
                )
        self.log("train/loss", means.mean(), prog_bar=True)
        self.log("train/learning_rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return means.sum()

    def _added(self, batch: dict[str, Tensor]) -> Iterator[Tensor]:
        """Yield noises [G, B, C, H, W], timesteps and uniform numbers [G, B], each member's from its own seed."""
        shape, levels, sampling = batch["latent"].shape[2:], self.model.process.levels, self.model.sampling
        keys = zip(self.members, batch["epoch"].tolist(), batch["showing"].tolist(), strict=True)
        added = [training_noise(member.seed, epoch, ids, shape, levels, sampling) for member, epoch, ids in keys]
        return (torch.stack(parts) for parts in zip(*added, strict=True))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each member's gradient by its own norm."""
        if gradient_clip_val and gradient_clip_algorithm != "value":
            gradients = [weight.grad for weight in self.parameters() if weight.grad is not None]
            clip_each_norm(gradients, gradient_clip_val)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the weights are finite. A stack is no model that other stages could load."""
        super().on_save_checkpoint(checkpoint)
        del checkpoint["trained_model"]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare nothing but what is held: the run's folder has compared the configs."""
        self.complete(checkpoint)

    def on_fit_end(self) -> None:
        """Write into each member's folder what its own run would have left."""
        checkpoint = read_checkpoint(RunFolder(self.trainer.default_root_dir).last_checkpoint)
        runs = zip(self.members, self.data.members, self.folders, self._unfinished, strict=True)
        device = self.trainer.strategy.root_device
        originals: dict[tuple[Any, ...], dict[str, Tensor]] = {}  # most members ask the same of it
        for index, (member, data, folder, unfinished) in enumerate(runs):
            if unfinished:  # a group that was killed here goes on with the next member
                run = RunFolder(folder)
                own = self._member_checkpoint(checkpoint, index)
                write_checkpoint(run.last_checkpoint, own)
                held = own["state_dict"]
                member.export(folder, {name: held[f"denoiser.{name}"] for name in self.trained()})
                asked = (member.original, member.queries, member.evaluate, member.evaluation, member.regenerate)
                if (key := tuple(map(str, asked))) not in originals:
                    originals[key] = member.measured(member.original, device)
                member.record(folder, data, originals[key], device)
                run.finish(member.makes)

    def _member_checkpoint(self, checkpoint: Mapping[str, Any], index: int) -> dict[str, Any]:
        """Return what :func:`~lightning_attr.models.load` needs, and what Lightning needs to open it at all."""
        own = dict(checkpoint["state_dict"])  # buffers are the same for all, and not stacked
        own |= {name: own[name][index].clone() for name in (f"denoiser.{name}" for name in self.trained())}
        return {
            **{
                key: checkpoint[key]
                for key in ("global_step", "pytorch-lightning_version", "base")
                if key in checkpoint
            },
            "state_dict": own,
            "trained_model": self.trained_model(),
        }


def stacked(networks: Sequence[nn.Module]) -> nn.Module:
    """Return a network whose every parameter that is trained holds those of all networks, [G, ...]."""
    result = copy.deepcopy(networks[0])
    each = zip(*(network.parameters() for network in networks), strict=True)
    for parameter, values in zip(result.parameters(), each, strict=True):
        if parameter.requires_grad:
            parameter.data = torch.stack([value.detach() for value in values])
    return result


def check_no_dropout(denoiser: nn.Module) -> None:
    """Check that the network is a function of its inputs alone: its own random numbers could not be those of each run.

    Raises:
        UserError: It has dropout.
    """
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            raise UserError(f"model.denoiser: found dropout {module.p} in {name}, expected none in a group")


def real_means(losses: Tensor, sizes: Tensor) -> Tensor:
    """Return the mean over the first ``sizes`` [G] of each row of losses [G, B]: [G]."""
    real = torch.arange(losses.shape[1], device=losses.device) < sizes[:, None]
    return torch.where(real, losses, 0).sum(1) / sizes


def clip_each_norm(gradients: Sequence[Tensor], max_norm: float) -> None:
    """Scale gradients [G, ...] in place, so that the norm of each of the G over all of them is at most ``max_norm``.

    For each it is what ``torch.nn.utils.clip_grad_norm_`` does.
    """
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    factors = (max_norm / (norms + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(expand_right(factors, gradient))


def write_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint, as a whole or not at all."""
    file = io.BytesIO()
    torch.save(with_digests(checkpoint), file)
    write_atomically(path, file.getvalue())


def check_trainer(trainer: pl.Trainer) -> None:
    """Check that members' epochs, which differ in length, do not matter to the trainer.

    Raises:
        UserError: They do.
    """
    expected = {"max_epochs": -1, "accumulate_grad_batches": 1, "limit_train_batches": 1.0}
    if trainer.max_steps < 1:
        raise UserError(f"trainer.max_steps: found {trainer.max_steps}, expected the number of steps of every member")
    for name, value in expected.items():
        if (found := getattr(trainer, name)) != value:
            raise UserError(f"trainer.{name}: found {found}, expected {value}: members of a group count steps alone")


def member_config(config: Mapping[str, Any], index: int, folder: Path) -> dict[str, Any]:
    """Return the config of a member's own run, given the group's: the same but for task, data and folder."""
    return {
        **config,
        "trainer": {**config["trainer"], "default_root_dir": str(folder)},
        "checkpoint": {**config["checkpoint"], "dirpath": str(RunFolder(folder).last_checkpoint.parent)},
        "model": config["model"]["init_args"]["members"][index],
        "data": config["data"]["init_args"]["members"][index],
    }
