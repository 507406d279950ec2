"""Score every sample of a store for many queries: ``attribute``, and the steps that a run takes in the same way.

Shapes: Q queries, B samples of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.loading import Ints, PredictBatches
from datamodules.store import Store
from lightning_attr.artifacts.chunks import Passes
from lightning_attr.artifacts.scores import Scores
from lightning_attr.digests import file_digest, samples_used
from lightning_attr.encoders import check_encoders, encoders_digest
from lightning_attr.errors import UserError, expect_within
from lightning_attr.methods.base import Context, Method
from lightning_attr.methods.ensemble import Ensemble
from lightning_attr.models import Model


@torch.no_grad()
def attribute(
    method: Method,
    queries: Store,
    store: Store,
    *models: Model,
    query_ids: Sequence[int] | None = None,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
) -> Scores:
    """Return the scores of all samples, to the bit those of ``lightning-attr predict`` with the same settings.

    A pass that is stopped begins anew, and there is one device: for a long one, take the command.

    Args:
        method: The attribution method.
        queries: The query store.
        store: The samples.
        models: The models that made the queries, for methods that look at one; scores are the mean over them.
        query_ids: Ids of the queries to score for; None is all.
        batch_size: How many samples are measured together.
        device: Where to compute; the models move there.

    Raises:
        UserError: Queries, samples, models and method do not fit together, or a score is no finite number.
    """
    expect_within("batch_size", batch_size, 1)
    ids, positions, device = chosen_queries(queries, query_ids), np.arange(len(store)), torch.device(device)
    check_stores(queries, store, models)
    ensemble = Ensemble(method, [model.to(device) for model in models])
    ensemble.prepare(Context.of(queries, ids, store, device))
    batches = PredictBatches(store)
    with TemporaryDirectory() as folder:
        passes = Passes(Path(folder), ensemble.passes, {}, positions, batch_size, device)
        for index, chunk in passes.pending():
            ensemble.enter(index)
            read = (batches[0, each] for each in passes.passes[index].batches(chunk))
            moved = ({name: value.to(device) for name, value in batch.items()} for batch in read)
            passes.passes[index].write(chunk, torch.cat([ensemble.measure(batch) for batch in moved]))
        scores = torch.cat([scores for _, scores in scored(ensemble, passes, store, ids)], dim=1)
    settings = score_settings(method, queries, store, positions, models, "32-true")
    return Scores(scores, torch.tensor(ids), torch.from_numpy(store.ids[positions]), method.name, settings)


def chosen_queries(queries: Store, query_ids: Sequence[int] | None) -> list[int]:
    """Return the ids of the queries to score for; None is all.

    Raises:
        UserError: There is none, one comes twice, or one is not in the store.
    """
    if query_ids is None:
        return [int(query) for query in queries.ids]
    ids = list(query_ids)
    if not ids or len(set(ids)) < len(ids):
        raise UserError(f"model.query_ids: found {ids}, expected at least one id, each once")
    queries.positions(ids)
    return ids


def check_stores(queries: Store, store: Store, models: Sequence[Model]) -> None:
    """Check that queries, samples and models fit together.

    Raises:
        UserError: They do not.
    """
    for model in models:
        model.was_trained_on(store)
    check_encoders(queries, encoders_digest(store), store.path)
    needed = [name for model in models for name in ("latent", *model.denoiser.conditions)]
    for name in needed or store.schema.inputs:
        field, expected = queries.schema.fields.get(name), store.schema.fields[name].shape[1:]
        if (found := None if field is None else field.shape[1:]) != expected:
            raise UserError(f"queries {queries.path}: found {name} {found}, expected {expected} as {store.path} has it")


def scored(ensemble: Method, chunks: Passes, store: Store, query_ids: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ids [B] and scores float32 [Q, B] of the samples of each chunk.

    Raises:
        UserError: A score is no finite number.
    """
    weights = [torch.from_numpy(store.weights[positions]) for positions in chunks.positions]
    for positions, rows in zip(chunks.positions, ensemble.weighed(chunks, weights), strict=True):
        ids, scores = torch.from_numpy(store.ids[positions]), rows.detach().float().cpu()
        assert scores.shape == (len(query_ids), len(ids))
        for query, sample in (~scores.isfinite()).nonzero()[:1].tolist():
            raise UserError(
                f"scores: found {float(scores[query, sample])} for query {query_ids[query]} and sample "
                f"{int(ids[sample])}, expected finite numbers"
            )
        yield ids, scores


def score_settings(
    method: Method, queries: Store, store: Store, positions: Ints, models: Sequence[Model], precision: str
) -> dict[str, Any]:
    """Return all that scores depend on: the method's settings, the samples, and digests of what was read."""
    digests = {"store": store.digest, "queries": queries.digest}
    digests |= {name: file_digest(path) for name, path in method.inputs().items()}
    digests |= {f"checkpoints.{index}": model.digest for index, model in enumerate(models)}
    own = _with_weights(method.settings(), models)
    return {**own, "precision": precision, "samples": samples_used(store, positions), "digests": digests}


def _with_weights(settings: Any, models: Sequence[Model]) -> Any:
    """Return settings, nested ones included, with the weights that are meant where they are left to the model."""
    if isinstance(settings, list):
        return [_with_weights(each, models) for each in settings]
    if not isinstance(settings, dict):
        return settings
    result = {name: _with_weights(each, models) for name, each in settings.items()}
    if models and "weights" in result:
        result["weights"] = models[0].chosen(result["weights"])
    return result
