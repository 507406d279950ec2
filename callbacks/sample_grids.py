"""Sample grids in TensorBoard while a model trains."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from callbacks.pictures import SampleImage, image_grid, summary_writer
from lightning_attr.encoders import jpeg, store_image_encoder, store_text_encoder
from lightning_attr.errors import UserError, expect_within
from lightning_attr.tasks.latent_diffusion import LatentDiffusion


class SampleGrid(Callback):
    """After every validation, the same prompts from the same noise, so that progress shows.

    Args:
        prompts: What to sample.
        steps: Sampling steps.
        guidance: Scale of the classifier-free guidance.
        seed: The image of prompt i is sampled from seed + i.
    """

    def __init__(self, prompts: list[str], steps: int = 25, guidance: float = 5.0, seed: int = 0) -> None:
        if not prompts:
            raise UserError("callbacks.SampleGrid.prompts: found none, expected texts")
        expect_within("callbacks.SampleGrid.steps", steps, 1, 10_000)
        expect_within("callbacks.SampleGrid.guidance", guidance, 0, 1000)
        expect_within("callbacks.SampleGrid.seed", seed, 0, 2**62)
        self.prompts = prompts
        self.steps = steps
        self.guidance = guidance
        self.seed = seed

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Sample and log the grid after the last batch, while the averaged weights are still in place."""
        if batch_idx + 1 == trainer.num_val_batches[0] and not trainer.sanity_checking:
            self._log(trainer, pl_module)

    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        writer = summary_writer(trainer)
        if writer is None or not isinstance(pl_module, LatentDiffusion):
            return
        store = pl_module.store
        encoded = store_text_encoder(store).encode(self.prompts)
        conditions = {name: value.to(pl_module.device) for name, value in encoded.items()}
        seeds = [self.seed + index for index in range(len(self.prompts))]
        model = pl_module.model
        size = store.schema.fields["latent"].shape[-2:]
        latents, _ = model.generate(conditions, seeds, size=size, steps=self.steps, guidance=self.guidance)
        images = store_image_encoder(store).decode(latents.cpu())
        grid = [SampleImage(jpeg(image.numpy()), words) for image, words in zip(images, self.prompts, strict=True)]
        writer.add_figure("samples", image_grid(grid, f"Step {trainer.global_step}"), trainer.global_step)
