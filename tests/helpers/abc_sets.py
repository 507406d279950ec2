"""Small sets of the AbC benchmark with known contents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from small_stores import SCHEMA, sample

from datamodules import StoreWriter
from lightning_attr.abc.set import GALLERY, QUERIES, AbcSet, CustomModel, write_set
from lightning_attr.artifacts.scores import Scores

#: Two categories and all splits. Ids of the gallery are 0, 3, 6, ...; of queries 0, 1, 2, ...
MODELS = (
    CustomModel("a-1", "artist", "train", (3, 30, 33), {"thing": (0, 1), "scene": (2,)}, "digest of a-1"),
    CustomModel("a-2", "artist", "validation", (9, 42), {"thing": (3, 4), "scene": (5, 6)}),
    CustomModel("a-3", "artist", "test", (15, 51, 54), {"thing": (7, 8), "scene": (9, 10)}),
    CustomModel("o-1", "object", "test", (60,), {"thing": (11, 12), "scene": (13,)}),
    CustomModel("o-2", "object", "test", (60, 63), {"thing": (14,)}),
)


def write_stores(folder: Path, gallery: int = 30, queries: int = 15) -> None:
    for name, ids in ((GALLERY, range(0, 3 * gallery, 3)), (QUERIES, range(queries))):
        with StoreWriter(folder / name, SCHEMA) as writer:
            for number in ids:
                writer.write(sample(number))
            writer.finish()


def make_set(folder: Path, models: Sequence[CustomModel] = MODELS, gallery: int = 30) -> AbcSet:
    write_stores(folder, gallery)
    return write_set(folder, models)


def scores_of(
    made: AbcSet,
    method: str,
    skill: float = 0.0,
    models: Sequence[CustomModel] | None = None,
    distractors: int | None = None,
    **settings: object,
) -> Scores:
    """Random scores, in which the exemplars of a query's own model stand higher by a skill.

    Args:
        made: The set.
        method: Name of the method.
        skill: How much higher.
        models: Whose queries are scored; of one alone, its exemplars and so many distractors are.
        distractors: The first so many of the set.
        settings: Of the scores.
    """
    chosen = made.models if models is None else models
    queries = [query for model in chosen for query in model.query_ids]
    exemplars = [exemplar for model in chosen for exemplar in model.exemplars]
    some = made.gallery.ids[made.distractors[:distractors]].tolist()
    samples = sorted({*exemplars, *some}) if distractors is not None else made.gallery.ids.tolist()
    generator = torch.Generator().manual_seed(len(method))
    values = torch.randint(0, 40, (len(queries), len(samples)), generator=generator).float() / 10
    for row, query in enumerate(queries):
        (own,) = [model.exemplars for model in chosen if query in model.query_ids]
        values[row, [samples.index(exemplar) for exemplar in own]] += skill
    digests = {"store": made.gallery.digest, "queries": made.queries.digest, **settings.pop("digests", {})}  # type: ignore[dict-item]
    return Scores(values, torch.tensor(queries), torch.tensor(samples), method, {**settings, "digests": digests})
