"""Train a latent text-to-image diffusion model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from datamodules import LatentDataModule
from datamodules.store import Store
from lightning_attr.encoders import encoders_digest, store_text_encoder
from lightning_attr.errors import UserError, expect_within
from lightning_attr.losses import sample_losses
from lightning_attr.models import Objective, build, load
from lightning_attr.models.finetune import FILES, Base, begun, export, of_base
from lightning_attr.models.load import null_entries
from lightning_attr.models.new_word import check_said, encoder_of_words, tell
from lightning_attr.noise import Draws
from lightning_attr.samples import as_trained

#: Where checkpoints hold weights: with an average the current ones are the second.
STATES = frozenset({"state_dict", "current_model_state"})


class LatentDiffusion(pl.LightningModule):
    """Latent text-to-image diffusion with a diffusers network and noise scheduler.

    Args:
        denoiser: Config of the network, as in a diffusers ``config.json``; ``_class_name`` defaults to
            ``UNet2DConditionModel``. None where there is a base.
        scheduler: Config of the noise scheduler; ``_class_name`` defaults to ``DDPMScheduler``.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        warmup_steps: The learning rate rises linearly over as many steps.
        caption_dropout: Share of captions replaced by the empty one, which classifier-free guidance needs.
        validation: The draws at which ``val/loss`` is measured.
        seed: Of the initial weights and of the training noise.
        objective: What training minimises; what is not given is as is usual for the network's family.
        base: What to start from; training is then fine-tuning. The checkpoint holds what is trained, and of the base
            its digest, and the adapter is also written as diffusers reads it.
        gradient_checkpointing: Whether to compute activations again in the backward pass, which saves memory.
    """

    makes: tuple[str, ...] = ("checkpoints/last.ckpt", *FILES.values())
    """The files of its run's folder that others read; every task names them."""

    def __init__(
        self,
        denoiser: dict[str, Any] | None = None,
        scheduler: dict[str, Any] | None = None,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        caption_dropout: float = 0.1,
        validation: Draws = Draws(timesteps=10),
        seed: int = 0,
        objective: Objective = Objective(),
        base: Base | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        expect_within("model.learning_rate", learning_rate, 0)
        expect_within("model.weight_decay", weight_decay, 0)
        expect_within("model.warmup_steps", warmup_steps, 0)
        expect_within("model.caption_dropout", caption_dropout, 0, 1)
        expect_within("model.seed", seed, 0, 2**64 - 1)
        if (denoiser is None) is (base is None) or (base is not None and scheduler):
            found = "none" if denoiser is None and base is None else "a config"
            raise UserError(f"model.denoiser: found {found}, expected a config, or model.base alone")
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.caption_dropout = caption_dropout
        self.validation = validation
        self.seed = seed
        self.base = base
        self.gradient_checkpointing = gradient_checkpointing
        self.configs: dict[str, Any]
        if base is None:
            self.configs = {"denoiser": denoiser, "scheduler": scheduler or {}}
            self.model = build(self.configs["denoiser"], self.configs["scheduler"], seed, objective)
        else:
            self.model = begun(base, load, seed)
            objective = replace(self.model.objective, **objective.given)
            self.model = replace(self.model, objective=objective)
            self.configs = dict(self.model.configs)
            if base.adapter.kind != "full":
                self.configs["base"] = of_base(base, self.model)
        if objective.given:
            self.configs["objective"] = objective.given
        self.denoiser = self.model.network  # so that Lightning trains, moves and saves it
        if gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        self.validation_loss = MeanMetric()

    @property
    def store(self) -> Store:
        """Return the store that this run trains on."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, LatentDataModule):
            raise UserError(f"data: found {type(data).__name__}, expected LatentDataModule")
        return Store(data.store)

    def setup(self, stage: str) -> None:
        """Check the stores against the network and keep the null conditions."""
        store = self.store
        self.model.accepts(store)  # with the encoders of its base
        digests = {"store": store.digest, "encoders": encoders_digest(store), "base": self.model.digest or None}
        self.model.made_from = {role: digest for role, digest in digests.items() if digest is not None}
        val_store = getattr(self.trainer.datamodule, "val_store", None)  # type: ignore[attr-defined]
        for each in [store] if val_store is None else [store, Store(val_store)]:
            self.model.accepts(each)
        self.model.null = self.model.denoiser.null(store_text_encoder(store))
        self.tell_word(store)
        self.model = self.model.to(self.trainer.strategy.root_device)

    def tell_word(self, store: Store) -> None:
        """Tell the network, and what checkpoints say of the base, how a store's texts have the word that is trained.

        Raises:
            UserError: They do not have it, or their encoder is of a kind where no word can be trained.
        """
        if self.base is not None and (word := self.base.adapter.token) is not None:
            encoder = encoder_of_words(store_text_encoder(store))
            check_said(word, encoder, store)
            tell(self.model.network, word, encoder)
            self.configs["base"] = {**self.configs["base"], "texts": encoder.config()}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss of a batch at random timesteps and noises."""
        inputs = as_trained(self.model, batch, self.seed, self.current_epoch, self.caption_dropout)
        losses = self.model.losses(*inputs)
        # Ranks' batches may differ in size, and DDP takes the mean of their gradients: with this divisor that is the
        # gradient of the mean over all of their samples.
        local = torch.stack([losses.detach().sum(), losses.new_tensor(len(losses))])
        total, divisor = self.trainer.strategy.reduce(local, reduce_op="mean")
        loss = total / divisor
        if not torch.isfinite(loss):
            raise UserError(
                f"train/loss: found {loss.item()} at step {self.global_step}, expected a finite loss; "
                "lower model.learning_rate or set trainer.gradient_clip_val. The last checkpoint is kept."
            )
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/learning_rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        return losses.sum() / divisor  # type: ignore[no-any-return]

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log ``val/loss`` over the first view and caption of every sample, on fixed draws."""
        losses = sample_losses(self.model, batch, self.validation, views=1, captions=1)
        self.validation_loss.update(losses)
        # Lightning's own mean over ranks is wrong where their samples do not divide: it rounds the mean of the counts.
        self.log("val/loss", self.validation_loss, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with a linear warm-up."""
        optimizer = torch.optim.AdamW(
            list(self.trained().values()), self.learning_rate, weight_decay=self.weight_decay, fused=True
        )
        # Lightning refuses to clip gradients where the optimizer itself undoes the scaling of 16-mixed. Without this
        # sign it is undone before they are clipped, as for any other optimizer.
        optimizer._step_supports_amp_scaling = False
        warmup = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / (self.warmup_steps + 1))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what :func:`~lightning_attr.models.load` needs to rebuild the denoiser, and leave its base out."""
        if not all(bool(torch.isfinite(weight).all()) for weight in self.trained().values()):
            raise UserError(f"weights: not finite at step {self.global_step}; the last checkpoint is kept")
        checkpoint["trained_model"] = self.trained_model()
        if self.base is not None:
            checkpoint["base"] = str(Path(self.base.model).resolve())
        if "base" in self.configs:  # then not all weights are trained
            own = {f"denoiser.{name}" for name in self.trained()}
            for part in STATES & checkpoint.keys():
                held = checkpoint[part].items()
                checkpoint[part] = {name: value for name, value in held if name in own or name[:9] != "denoiser."}

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the weights that are trained, by name."""
        return {name: weight for name, weight in self.denoiser.named_parameters() if weight.requires_grad}

    def trained_model(self) -> dict[str, Any]:
        """Return what a checkpoint says of the model besides its weights."""
        own = {"latent_shape": list(self.model.latent_shape), "made_from": dict(self.model.made_from)}
        return {**self.configs, **own, **null_entries(self.model.null)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture, with the difference."""
        for part, expected in self.configs.items():
            found = checkpoint.get("trained_model", {}).get(part, {})
            for key in sorted({*found, *expected}):
                if found.get(key) != expected.get(key):
                    difference = f"found {found.get(key)}, expected {expected.get(key)}"
                    raise UserError(f"checkpoint of another architecture: {part}.{key}: {difference}")
        self.complete(checkpoint)

    def complete(self, checkpoint: dict[str, Any]) -> None:
        """Add to a checkpoint that is read what it does not hold of the base.

        Raises:
            UserError: It does not hold what is trained.
        """
        if "base" in self.configs:
            own = self.state_dict()
            for part in STATES & checkpoint.keys():
                missing = [name for name in self.trained() if f"denoiser.{name}" not in checkpoint[part]]
                if missing:
                    raise UserError(f"checkpoint of another adapter: {part}: found no {missing[0]}, expected it")
                checkpoint[part] = {**own, **checkpoint[part]}

    def on_fit_end(self) -> None:
        """Write the trained adapter as diffusers reads it."""
        if self.trainer.is_global_zero and self.base is not None:
            self.export(Path(self.trainer.default_root_dir), self.trained())

    def export(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write the adapter of a fine-tuning as diffusers reads it, see :func:`~lightning_attr.models.finetune.export`.

        Args:
            folder: Where to.
            weights: By name.
        """
        if self.base is not None:
            export(folder, self.base.adapter, self.denoiser, weights)
