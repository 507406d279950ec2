"""Make an AbC set of the published data: ``lightning-attr abc read FOLDER --json FILE... --out SET``.

FOLDER has ``exemplar``, ``synth`` and ``laion_subset``; a file such as ``FOLDER/json/test_bamfg.json`` says which model
made what of which exemplars. Images are encoded as for any store: by default, by the fitted autoencoder of this
project. Prompts are not in the data, so that captions are empty: a method that compares texts sees nothing. The weights
of the models are not either. A run that was killed goes on with the same command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser, Namespace

from datamodules.hashing import shuffled
from lightning_attr.abc import CustomModel, write_set
from lightning_attr.abc.layout import DISTRACTORS, Tuned, read_layout
from lightning_attr.abc.set import GALLERY, QUERIES, check_models
from lightning_attr.commands.prepare.any_source import sized_encoders
from lightning_attr.commands.prepare.encode import Recipe, device, encoders_of
from lightning_attr.commands.prepare.images import Reading
from lightning_attr.commands.prepare.making import add_options, make_store
from lightning_attr.commands.targets import expect_own
from lightning_attr.console import command, made
from lightning_attr.errors import UserError
from lightning_attr.options import at_least, parsed, parser
from lightning_attr.sources.base import Faults, Record
from lightning_attr.sources.tree import IMAGES, leaves

READING = Reading(turned=True, quick=True)


def main(arguments: Sequence[str]) -> None:
    """Run the action."""
    args = parsed(_parser(), arguments)
    at_least(args, size=1, batch_size=1, workers=0, distractors=1)
    expect_own("--out", args.out, f"{GALLERY}*")
    tuned = [each for path in args.json for each in read_layout(args.folder, path)]
    faults = Faults(args.on_error == "skip")
    names = _distractors(args.folder, args.distractors, args.seed, faults)
    gallery = names + sorted({exemplar for each in tuned for exemplar in each.exemplars})
    queries = [query for each in tuned for files in each.queries.values() for query in files]
    models = _models(tuned, gallery, queries)
    check_models(models)
    image, text, size = sized_encoders(args)
    _store(args, GALLERY, gallery, Recipe(image, text, size, captions=1, flips=False), faults)
    image, text = encoders_of(args.out / GALLERY)
    image, text = image.to(device(args.device)), text.to(device(args.device))
    _store(args, QUERIES, queries, Recipe(image, text, size, captions=1, flips=False), faults)
    write_set(args.out, models)
    made([args.out], command("abc", "table", "scores.safetensors", "--set", args.out))


def _parser() -> ArgumentParser:
    of = parser("abc read", __doc__)
    of.add_argument("folder", type=Path, help="that of the published data")
    of.add_argument("--json", type=list[Path], required=True, help="which models: [FILE, ...] of the folder json")
    of.add_argument("--distractors", type=int | None, default=None, help="only so many at random, default all")
    of.add_argument("--seed", type=int, default=0, help="of the draw of distractors")
    of.add_argument("--model", type=Path | None, default=None, help="folder of the pipeline that encodes")
    of.add_argument("--size", type=int | None, default=None, help="side of the square images in pixels")
    add_options(of)
    return of


def _store(args: Namespace, name: str, files: Sequence[str], recipe: Recipe, faults: Faults) -> None:
    """Make a store of files of the folder."""
    records = [Record(key, args.folder / key, ("",), id=place) for place, key in enumerate(files)]
    settings = {"source": "abc", "turned": READING.turned}
    make_store(args.out / name, records, settings, READING, recipe, faults, args.workers, args.batch_size)


def _distractors(folder: Path, count: int | None, seed: int, faults: Faults) -> list[str]:
    """Return the names of the distractors within the folder, in order."""
    root = folder / DISTRACTORS
    if not root.is_dir():
        raise UserError(f"{root}: no such folder, expected the distractors")
    names = [f"{DISTRACTORS}/{leaf.key}" for leaf in leaves(root, faults) if leaf.suffix in IMAGES]
    if len(names) < (count or 1):
        raise UserError(f"{root}: found {len(names)} images, expected at least {count or 1}")
    if count is None:
        return names
    return [names[place] for place in sorted(shuffled(np.arange(len(names)), "distractors", seed)[:count].tolist())]


def _models(tuned: Sequence[Tuned], gallery: Sequence[str], queries: Sequence[str]) -> list[CustomModel]:
    """Return the models with the ids that their images get: places in the gallery and among the queries."""
    at = {name: place for place, name in enumerate(gallery)}
    models, first = [], 0
    for each in tuned:
        model = CustomModel(each.name, each.case, each.split, tuple(at[name] for name in each.exemplars), {})
        by_kind = {}
        for kind, files in each.queries.items():
            by_kind[kind] = tuple(range(first, first + len(files)))
            first += len(files)
        models.append(replace(model, queries=by_kind))
    assert first == len(queries)
    return models
