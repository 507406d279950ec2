"""Make an AbC set: ``lightning-attr abc make -c PLAN``.

Every model is customised by an ordinary ``fit`` over the base, and makes its queries by an ordinary ``predict``, each
in a run folder of its own. The same command goes on after a stop, and ends with the same bits. The plan may be in
several files, such as one that lists the models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datamodules.store import Store
from lightning_attr.abc.set import GALLERY, QUERIES, RECORD, AbcSet, CustomModel, write_set
from lightning_attr.commands.abc.plan import Plan, planned, stages, with_checkpoint
from lightning_attr.commands.abc.stores import Part, join
from lightning_attr.console import command, made, note, summary
from lightning_attr.options import parsed, parser


def main(arguments: Sequence[str]) -> None:
    """Run the action."""
    of = parser("abc make", __doc__)
    of.add_class_arguments(Plan, "set")
    plan: Plan = parsed(of, arguments).set
    models = planned(plan)
    finished = (plan.set_folder / RECORD).exists()
    _gallery(plan, models)
    for stage in stages(plan, models):
        stage.run()
    _queries(plan, models)
    whole = write_set(plan.set_folder, [with_checkpoint(plan, model) for model in models])
    if finished:
        note(f"{plan.set_folder}: finished already, nothing to do")
    else:
        _report(whole)
        scores = command("abc", "table", "scores.safetensors", "--set", plan.set_folder)
        made([plan.set_folder], f"score its queries over {GALLERY} by any method, then {scores}")


def _gallery(plan: Plan, models: Sequence[CustomModel]) -> None:
    """Write the gallery: all distractors, and the exemplars that a model has."""
    distractors, exemplars = Store(plan.distractors), Store(plan.exemplars)
    ids = sorted({exemplar for model in plan.models for exemplar in model.exemplars})
    made_from = {"distractors": distractors.digest, "exemplars": exemplars.digest, "ids": ids}
    parts = [
        Part(distractors, np.arange(len(distractors)), 0, {}),
        Part(exemplars, exemplars.positions(ids), int(distractors.ids[-1]) + 1, {}),
    ]
    join(plan.set_folder / GALLERY, parts, made_from)


def _queries(plan: Plan, models: Sequence[CustomModel]) -> None:
    """Write the queries of all models into one store; each says who made it, by what kind of prompt."""
    parts = []
    for model in models:
        store = Store(plan.queries_of(model))
        kinds = {query: kind for kind, ids in model.queries.items() for query in ids}
        attributes = {query: {"model": model.name, "prompts": kind} for query, kind in kinds.items()}
        parts.append(Part(store, np.arange(len(store)), model.query_ids[0], attributes))
    made_from = {"queries": {model.name: part.store.digest for model, part in zip(models, parts, strict=True)}}
    join(plan.set_folder / QUERIES, parts, made_from)


def _report(whole: AbcSet) -> None:
    rows: list[tuple[str, object]] = [("models", len(whole.models)), ("queries", len(whole.queries))]
    rows += [("exemplars", len(whole.gallery) - len(whole.distractors)), ("distractors", len(whole.distractors))]
    summary(whole.gallery.path.removesuffix(f"/{GALLERY}"), rows)
