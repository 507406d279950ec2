"""Score an AbC set by a method that needs each model's own weights: ``lightning-attr abc scores -c CONFIG``.

For every model the stages that the config names are run, each in a run folder of its own, over its exemplars and the
distractors; the ranks of all exemplars go into one small file for ``abc table``. The same command goes on after a stop.
A method that does not look at the models, such as a similarity, needs one ``lightning-attr predict`` over the gallery.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_attr.abc import AbcRanks, AbcSet
from lightning_attr.abc.ranks import ScoreRun, method_ranks
from lightning_attr.abc.set import CustomModel
from lightning_attr.artifacts.scores import Scores
from lightning_attr.commands.abc.scoring import Scoring, check_scoring, stages
from lightning_attr.commands.targets import expect_like
from lightning_attr.console import command, made
from lightning_attr.options import parsed, parser
from lightning_attr.runs.folder import seconds_taken


def main(arguments: Sequence[str]) -> None:
    """Run the action."""
    of = parser("abc scores", __doc__)
    of.add_class_arguments(Scoring, "scores")
    scoring: Scoring = parsed(of, arguments).scores
    expect_like("scores.out", Path(scoring.out), "ranks", AbcRanks.load)
    whole = AbcSet.load(scoring.set)
    models = whole.of_split(scoring.split)
    check_scoring(scoring, whole)
    runs = [
        _score(scoring, whole, model, f"{model.name} ({place} of {len(models)})")
        for place, model in enumerate(models, 1)
    ]
    found = method_ranks(whole, scoring.method, runs)
    AbcRanks(whole.models, whole.digests, (found,)).save(scoring.out)
    made([scoring.out], command("abc", "table", scoring.out))


def _score(scoring: Scoring, whole: AbcSet, model: CustomModel, progress: str) -> ScoreRun:
    """Run the stages of a model."""
    seconds: list[float | None] = []
    for stage in stages(scoring, whole, model, progress):
        stage.run()
        seconds.append(seconds_taken(Path(stage.folder)))
    path = scoring.scores_of(model)
    total = None if None in seconds else sum(each for each in seconds if each is not None)
    return ScoreRun(str(path), Scores.load(path), total)
