"""Synthesize the queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.store import Store
from datamodules.store.records import Field, Meta, Sample, Schema
from datamodules.store.writer import StoreWriter
from lightning_attr.artifacts.inputs import InputPath
from lightning_attr.encoders import ENCODER_STATES, jpeg, store_image_encoder, store_text_encoder
from lightning_attr.errors import UserError, expect_within
from lightning_attr.noise import keyed_generator
from lightning_attr.runs.ranks import gather
from lightning_attr.tasks.analysis import AnalysisTask


@dataclass(frozen=True)
class Prompt:
    """What a query is made from; its id is its place in the list."""

    text: str
    seed: int


class Sampler(AnalysisTask):
    """Seeded sampling with classifier-free guidance. Writes ``queries.lmdb``.

    Every query keeps its latent, prompt, conditions, thumbnail, seed and initial noise, so that a retrained model
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

    makes = ("queries.lmdb",)

    def __init__(
        self,
        checkpoint: InputPath,
        store: InputPath,
        prompts: list[str] | None = None,
        prompt_store: InputPath | None = None,
        count: int = 8,
        seed: int = 0,
        steps: int = 50,
        guidance: float = 7.5,
        batch_size: int = 16,
    ) -> None:
        super().__init__(checkpoint)
        if (prompts is None) == (prompt_store is None):
            raise UserError("model: give either prompts or prompt_store")
        expect_within("model.count", count, 1)
        expect_within("model.seed", seed, 0, 2**62)  # and a query's is that and its id
        expect_within("model.steps", steps, 1, 10_000)
        expect_within("model.batch_size", batch_size, 1)
        expect_within("model.guidance", guidance, 0, 1000)
        self.store = store
        texts = prompts if prompts is not None else choose_captions(Store(str(prompt_store)), count, seed)
        if not texts:
            raise UserError("model.prompts: found none, expected at least one")
        self.prompts = [Prompt(text, seed + index) for index, text in enumerate(texts)]
        self.steps = steps
        self.guidance = guidance
        self.batch_size = batch_size
        self.writer: StoreWriter | None = None

    def setup(self, stage: str) -> None:
        """Open the encoders and the query store, which continues where a killed run left it."""
        store = Store(self.store)
        self.model.accepts(store)
        self.image_encoder = store_image_encoder(store)
        self.text_encoder = store_text_encoder(store)
        if not self.model.made_from:  # of a folder, whose null conditions may be of another number of tokens
            self.model.null = self.model.denoiser.null(self.text_encoder)
        fields = store.schema.fields
        shape = fields["latent"].shape[1:]
        self.sizes = self._size_conditions(shape)
        made = {**self.text_encoder.conditions, **self.sizes}
        if missing := [name for name in self.model.denoiser.conditions if name not in made]:
            raise UserError(
                f"store {self.store}: its text encoder makes {', '.join(self.text_encoder.conditions)}, "
                f"expected {missing[0]} as well, which the model needs"
            )
        self.schema = Schema(
            fields={
                "latent": Field((1, *shape), "float32", "latent"),
                **{
                    name: replace(fields[name], shape=(1, *fields[name].shape[1:]))
                    for name in store.schema.conditions
                    if name in made
                },
                "noise": Field(shape, "float32"),
            },
            encoders=store.schema.encoders,
        )
        if self.trainer.is_global_zero and (writer := self._open()) is not None:
            self.writer = writer
            for name in ENCODER_STATES:
                if (state := store.encoder_state(name)) is not None:
                    writer.put_encoder_state(name, state)

    def _size_conditions(self, shape: Sequence[int]) -> dict[str, Tensor]:
        """Return what the model is told of the size of an image whose latent has this shape."""
        if not self.model.denoiser.of_size(1, 1):
            return {}
        height, width = self.image_encoder.decode(torch.zeros(1, *shape)).shape[1:3]
        return self.model.denoiser.of_size(height, width)

    def _open(self) -> StoreWriter | None:
        """Open the query store; None if it is complete already, by a run that was killed right after."""
        path = self.run / "queries.lmdb"
        return None if path.exists() else StoreWriter(str(path), self.schema)

    def predict_dataloader(self) -> DataLoader[list[int]]:
        """Return this rank's batches of ids, from the last unfinished one on: the bits of a query depend on its batch.

        Ranks take turns; where the batches run out, some get an empty one, for all ranks gather at every step.
        """
        written = len(self.prompts) if self.writer is None else min(len(self.writer), len(self.prompts) - 1)
        written = self.trainer.strategy.broadcast(written)  # rank 0 is the one that writes
        start = written // self.batch_size * self.batch_size if written < len(self.prompts) else written
        ids = range(len(self.prompts))
        batches = [list(ids[first : first + self.batch_size]) for first in range(start, len(ids), self.batch_size)]
        ranks = self.trainer.world_size
        batches += [[]] * (-len(batches) % ranks)
        return DataLoader(batches[self.trainer.global_rank :: ranks], batch_size=None)  # type: ignore[arg-type]

    def predict_step(self, ids: list[int], batch_idx: int) -> None:
        """Sample a batch of queries on each rank and write those of them that a killed run has not written."""
        parts = gather(self.trainer, self._samples(ids))
        if self.writer is None:
            return
        for sample in (sample for part in parts for sample in part):
            if sample.meta.id >= len(self.writer):
                self.writer.write(sample)
        self.writer.flush()

    def _samples(self, ids: list[int]) -> list[Sample]:
        """Sample queries together."""
        if len(ids) == 0:
            return []
        prompts = [self.prompts[index] for index in ids]
        encoded = self.text_encoder.encode([prompt.text for prompt in prompts])
        encoded |= {name: value.expand(len(ids), *value.shape) for name, value in self.sizes.items()}
        conditions = {name: encoded[name].to(self.device) for name in self.schema.conditions}
        seeds = [prompt.seed for prompt in prompts]
        model = self.model.to(self.device)
        size = self.schema.fields["latent"].shape[-2:]
        latents, noises = model.generate(conditions, seeds, size=size, steps=self.steps, guidance=self.guidance)
        images = self.image_encoder.decode(latents.cpu())
        samples = []
        for row, (index, prompt) in enumerate(zip(ids, prompts, strict=True)):
            rows = {name: value[row : row + 1] for name, value in {"latent": latents, **conditions}.items()}
            arrays = {**rows, "noise": noises[row]}
            samples.append(self._sample(index, prompt, arrays, jpeg(images[row].numpy())))
        return samples

    def _sample(self, index: int, prompt: Prompt, arrays: Mapping[str, Tensor], thumb: bytes) -> Sample:
        attributes = {"seed": prompt.seed, "steps": self.steps, "guidance": self.guidance}
        meta = Meta(id=index, captions=(prompt.text,), licence=None, source="synthesized", attributes=attributes)
        fields = self.schema.fields
        values = {name: value.cpu().numpy().astype(np.dtype(fields[name].dtype)) for name, value in arrays.items()}
        return Sample(meta, values, thumb)

    def on_predict_end(self) -> None:
        """Make the query store complete."""
        if self.writer is not None:
            self.writer.finish()

    def teardown(self, stage: str) -> None:
        """Let go of the query store; what a stopped run wrote is kept."""
        if self.writer is not None:
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
