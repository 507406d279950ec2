"""Batches that tell apart what influenced an image and what did not: queries, their exemplars, and distractors.

Shapes: B queries, N samples of the gallery that they are compared with, M models.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.loading import Batch, Key, Keys, LatentLoader
from lightning_attr.abc.set import AbcSet, CustomModel, Ints
from lightning_attr.noise import keyed_generator


class Contrasts(Dataset[Batch]):
    """Queries of some models, with the exemplars of all models of the batch and distractors drawn for it.

    A batch is int64 "query" [B] and "sample" [N], positions in the two stores, and bool "positive" [B, N], which of the
    samples are the query's exemplars. What is drawn is a pure function of (seed, epoch, ids of the queries).

    Args:
        abc: The set.
        models: The models whose queries come.
        distractors: How many distractors a batch has; all where there are fewer.
        seed: Of the choice.
    """

    def __init__(self, abc: AbcSet, models: tuple[CustomModel, ...], distractors: int, seed: int) -> None:
        self.ids = np.array([query for model in models for query in model.query_ids])
        self._query = abc.queries.positions(self.ids)
        self._model = np.repeat(np.arange(len(models)), [len(model.query_ids) for model in models])
        self._exemplars = [abc.gallery.positions(model.exemplars) for model in models]
        self._distractors = abc.distractors
        self._count = min(distractors, len(abc.distractors))
        self._seed = seed

    def __getitem__(self, key: Key) -> Batch:
        """Return the batch of an epoch and places among the queries."""
        epoch, places = key
        generator = keyed_generator("contrasts", self._seed, epoch, *self.ids[places].tolist())
        drawn = generator.choice(self._distractors, self._count, replace=False)
        exemplars = [self._exemplars[model] for model in self._model[places]]
        samples = np.union1d(np.concatenate(exemplars), drawn)
        return {
            "query": torch.from_numpy(self._query[places]),
            "sample": torch.from_numpy(samples),
            "positive": torch.from_numpy(np.stack([np.isin(samples, own) for own in exemplars])),
        }

    def loader(self, batch_size: int) -> LatentLoader:
        """Return the batches of every epoch, shuffled anew in each; it resumes in the middle of one."""
        keys = Keys(self.ids, np.arange(len(self.ids)), batch_size, "shuffled", self._seed)
        return LatentLoader(self, keys)


def known(abc: AbcSet, model: CustomModel) -> tuple[Tensor, Tensor]:
    """Return the gallery of a model's queries, int64 [N] positions, and which of these are its exemplars, bool [N]."""
    gallery: Ints = abc.gallery_of(model)
    return torch.from_numpy(gallery), torch.from_numpy(np.isin(gallery, abc.gallery.positions(model.exemplars)))
