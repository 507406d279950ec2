"""Synthesize the queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.errors import UserError
from datamodules.records import Field, Meta, Sample, Schema
from datamodules.store import Store
from datamodules.writer import StoreWriter
from lightning_attr.diffusion import generate
from lightning_attr.encoders import ENCODER_STATES, jpeg, store_image_encoder, store_text_encoder
from lightning_attr.noise import keyed_generator
from lightning_attr.tasks.analysis import AnalysisTask


@dataclass(frozen=True)
class Prompt:
    """What a query is made from; its id is its place in the list."""

    text: str
    seed: int


class Sampler(AnalysisTask):
    """Seeded sampling with classifier-free guidance. Writes ``queries.lmdb``.

    Every query keeps its latent, prompt, text state, thumbnail, seed and initial noise, so that a retrained model
    regenerates the *same* query.

    Args:
        checkpoint: A checkpoint of ``LatentDiffusion``.
        store: The store that it was trained on; its encoders encode the prompts and decode the images.
        prompts: The prompts. Give these or ``prompt_store``.
        prompt_store: A store, such as the validation images', whose captions serve as prompts.
        count: How many captions of ``prompt_store``, chosen at random by ``seed``.
        seed: The query with id i is sampled from seed + i.
        steps: Sampling steps.
        guidance: Scale of the guidance; 1 means none.
        batch_size: Queries sampled together.
    """

    def __init__(
        self,
        checkpoint: str,
        store: str,
        prompts: list[str] | None = None,
        prompt_store: str | None = None,
        count: int = 8,
        seed: int = 0,
        steps: int = 50,
        guidance: float = 7.5,
        batch_size: int = 16,
    ) -> None:
        super().__init__(checkpoint)
        if (prompts is None) == (prompt_store is None):
            raise UserError("model: give either prompts or prompt_store")
        self.store = store
        texts = prompts if prompts is not None else choose_captions(Store(str(prompt_store)), count, seed)
        if not texts:
            raise UserError("model.prompts: found none, expected at least one")
        self.prompts = [Prompt(text, seed + index) for index, text in enumerate(texts)]
        self.steps = steps
        self.guidance = guidance
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Open the encoders and the query store, which continues where a killed run left it."""
        super().setup(stage)
        store = Store(self.store)
        self.image_encoder = store_image_encoder(store)
        self.text_encoder = store_text_encoder(store)
        text = store.schema.fields["text"]
        schema = Schema(
            fields={
                "latent": Field((1, *self.latent_shape), "float32"),
                "text": Field((1, *text.shape[1:]), text.dtype),
                "noise": Field(self.latent_shape, "float32"),
            },
            encoders=store.schema.encoders,
        )
        path = self.run / "queries.lmdb"
        self.finished = path.exists()  # by a run that was killed right after
        if self.finished:
            return
        self.writer = StoreWriter(str(path), schema)
        for name in ENCODER_STATES:
            if (state := store.encoder_state(name)) is not None:
                self.writer.put_encoder_state(name, state)

    def predict_dataloader(self) -> DataLoader[int]:
        """Return the ids of the queries from the last unfinished batch on: the bits of a query depend on its batch."""
        todo: Any = []
        if not self.finished:
            done = min(len(self.writer), len(self.prompts) - 1)
            todo = range(done // self.batch_size * self.batch_size, len(self.prompts))
        return DataLoader(todo, batch_size=self.batch_size)

    def predict_step(self, ids: Tensor, batch_idx: int) -> None:
        """Sample a batch of queries and write those of it that a killed run has not written."""
        prompts = [self.prompts[index] for index in ids.tolist()]
        text = self.text_encoder.encode([prompt.text for prompt in prompts]).to(self.device)
        seeds = [prompt.seed for prompt in prompts]
        latents, noises = generate(
            self.denoiser, self.scheduler, text, self.null_text, seeds, self.latent_shape,
            steps=self.steps, guidance=self.guidance,
        )  # fmt: skip
        images = self.image_encoder.decode(latents.cpu())
        for row, (index, prompt) in enumerate(zip(ids.tolist(), prompts, strict=True)):
            if index < len(self.writer):
                continue
            arrays = {"latent": latents[row : row + 1], "text": text[row : row + 1], "noise": noises[row]}
            self.writer.write(self._sample(index, prompt, arrays, jpeg(images[row].numpy())))
        self.writer.flush()

    def _sample(self, index: int, prompt: Prompt, arrays: Mapping[str, Tensor], thumb: bytes) -> Sample:
        attributes = {"seed": prompt.seed, "steps": self.steps, "guidance": self.guidance}
        meta = Meta(id=index, captions=(prompt.text,), licence=None, source="synthesized", attributes=attributes)
        fields = self.writer.schema.fields
        values = {name: value.cpu().numpy().astype(np.dtype(fields[name].dtype)) for name, value in arrays.items()}
        return Sample(meta, values, thumb)

    def on_predict_end(self) -> None:
        """Make the query store complete."""
        if not self.finished:
            self.writer.finish()

    def teardown(self, stage: str) -> None:
        """Let go of the query store; what a stopped run wrote is kept."""
        if not self.finished:
            self.writer.close()


def choose_captions(store: Store, count: int, seed: int) -> list[str]:
    """Return the first captions of ``count`` random samples, in the order of their ids.

    Raises:
        UserError: ``count`` is larger than the store.
    """
    if count > len(store):
        raise UserError(f"model.count: found {count}, expected at most {len(store)}, the size of {store.path}")
    positions = sorted(keyed_generator("prompts", seed).choice(len(store), count, replace=False).tolist())
    return [store.meta(position).captions[0] for position in positions]


def regeneration_settings(meta: Meta) -> dict[str, Any]:
    """Return the sampling settings that a query was made with: ``steps`` and ``guidance``."""
    return {"steps": int(meta.attributes["steps"]), "guidance": float(meta.attributes["guidance"])}
