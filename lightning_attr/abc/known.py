"""Scores of a set's queries over their galleries: what shares are fitted on and checked with.

Shapes: Q queries of a model, N samples of its gallery, P shares of all queries and entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_attr.abc.set import AbcSet, CustomModel
from lightning_attr.artifacts.provenance import check_made_from
from lightning_attr.artifacts.scores import Scores
from lightning_attr.errors import UserError
from lightning_attr.shares import Known, SoftAttribution


def read_scores(abc: AbcSet, paths: Sequence[str]) -> dict[str, Scores]:
    """Read the scores of one method over a set, from one file or several.

    Raises:
        UserError: They are of several methods or settings, or of other stores.
    """
    found = {path: Scores.load(path) for path in paths}
    first_path, first = next(iter(found.items()), ("", None))
    if first is None:
        raise UserError("scores: found none, expected at least one file")
    for path, scores in found.items():
        check_made_from(path, scores.settings, "store", abc.gallery.digest, abc.gallery.path)
        check_made_from(path, scores.settings, "queries", abc.queries.digest, abc.queries.path)
        if (scores.method, scores.of_method) != (first.method, first.of_method):
            raise UserError(f"{path}: found another method or other settings than in {first_path}, expected the same")
    return found


def known_queries(abc: AbcSet, scores: Mapping[str, Scores], split: str) -> list[Known]:
    """Return the scores of the queries of each model of a split over its gallery.

    Of a file with some of the gallery's distractors only, these are the gallery.

    Raises:
        UserError: A query is in no file, or an exemplar is not scored.
    """
    return [_of_model(abc, scores, model) for model in abc.of_split(split)]


def _of_model(abc: AbcSet, scores: Mapping[str, Scores], model: CustomModel) -> Known:
    for path, each in scores.items():
        rows = {query: row for row, query in enumerate(each.query_id.tolist())}
        if not rows.keys() >= set(model.query_ids):
            continue
        sample = each.sample_id
        exemplar = torch.isin(sample, torch.tensor(model.exemplars))
        if int(exemplar.sum()) < len(model.exemplars):
            raise UserError(f"{path}: found no scores of an exemplar of {model.name}, expected those of all")
        gallery = torch.isin(sample, torch.from_numpy(abc.gallery.ids[abc.gallery_of(model)]))
        own = each.scores[[rows[query] for query in model.query_ids]]
        if bool(own.isnan().any()):
            raise UserError(f"{path}: found NaN among the scores of {model.name}, expected numbers")
        if int((gallery & ~exemplar).sum()) < 2:
            raise UserError(f"{path}: found no two distractors for {model.name}, expected a gallery")
        return Known(own[:, gallery], exemplar[gallery])
    raise UserError(f"scores: found none of all queries of {model.name}, expected them in {', '.join(scores)}")


def against_truth(soft: SoftAttribution, known: Iterable[Known]) -> tuple[Tensor, Tensor, Tensor]:
    """Return shares, what is due, and the number of the model, [P] each, over galleries with and without exemplars.

    With them, each of k exemplars is due 1 / k; without them, "none of these" is due all. Entries that have no share,
    and are due none, are left out.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for number, block in enumerate(known):
        with_them, without = soft.shares(block.scores), soft.shares(block.without())
        due = torch.cat([block.exemplar.double() / block.exemplar.sum(), torch.zeros(1)])
        all_rest = torch.zeros_like(without[0])
        all_rest[-1] = 1
        for shares, truth in ((with_them, due), (without, all_rest)):
            truth = truth.expand_as(shares)
            kept = (shares > 0) | (truth > 0)
            parts.append((shares[kept], truth[kept], torch.full((int(kept.sum()),), number)))
    shares, truth, unit = (torch.cat(each) for each in zip(*parts, strict=True))
    return shares, truth, unit
