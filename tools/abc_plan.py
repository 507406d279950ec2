r"""Plan an AbC set of drawings: ``python -m tools.abc_plan EXEMPLARS > models.yaml``.

    lightning-attr prepare drawings --out runs/abc/exemplars.lmdb --count 400 --first_artist 60 --artists 40 \
        --planted 24 --kinds 24 --seed 11 --encoders_from runs/base/train.lmdb

EXEMPLARS is a store of drawings by artists, and of invented things, that a base has not seen. Each artist is a model of
4 to 12 of their drawings, and each invented thing one of a single drawing. Every model is asked for two kinds of
pictures: ``thing``, other things by that artist, or that thing in other colours and sizes; and ``scene``, the
exemplars' own things where they are, or that thing in other places. Artists of fewer than 4 drawings are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jsonargparse import ArgumentParser

from datamodules.store import Store
from lightning_attr.console import run
from lightning_attr.drawings.drawing import COLOURS, SIZES
from lightning_attr.drawings.scenes import SCENES
from lightning_attr.drawings.things import THINGS

SPLITS = ("train", "train", "train", "validation", "test", "test")
"""Of six models one after the other."""

FEWEST, MOST = 4, 12  # drawings of an artist, as in the paper's smaller case


def plan(store: Store, prompts: int) -> list[dict[str, Any]]:
    """Return the models of a set, as ``lightning-attr abc make`` takes them.

    Args:
        store: The exemplars.
        prompts: How many prompts of each kind.
    """
    known = {int(id): store.meta(position).attributes for position, id in enumerate(store.ids)}
    by_artist: dict[str, list[int]] = defaultdict(list)
    for id, attributes in known.items():
        if not attributes["planted"]:
            by_artist[attributes["artist"]].append(id)
    models: list[dict[str, Any]] = []
    for artist, ids in by_artist.items():
        if len(ids) < FEWEST:
            continue
        generator = np.random.default_rng([len(models), 3])
        own = ids[: int(generator.integers(FEWEST, MOST + 1))]
        asked = {"thing": _things(artist, generator), "scene": _own(artist, [known[id] for id in own], generator)}
        models.append(_model(f"artist-{artist}", "artist", own, asked, len(models), prompts))
    for id, attributes in known.items():
        if attributes["planted"]:
            generator = np.random.default_rng([len(models), 3])
            asked = {"thing": _looks(attributes, generator), "scene": _places(attributes, generator)}
            models.append(_model(f"object-{attributes['thing']}", "object", [id], asked, len(models), prompts))
    return models


def _model(
    name: str, category: str, exemplars: Sequence[int], asked: Mapping[str, Iterator[str]], place: int, prompts: int
) -> dict[str, Any]:
    texts = {kind: [next(stream) for _ in range(prompts)] for kind, stream in asked.items()}
    split = SPLITS[place % len(SPLITS)]
    return {"name": name, "category": category, "split": split, "exemplars": list(exemplars), "prompts": texts}


def _one_of(names: Mapping[str, object], generator: np.random.Generator) -> str:
    return list(names)[int(generator.integers(len(names)))]


def _things(artist: str, generator: np.random.Generator) -> Iterator[str]:
    """Yield captions of anything, by the artist."""
    while True:
        colour, thing, scene = (_one_of(names, generator) for names in (COLOURS, THINGS, SCENES))
        yield f"a large {colour} {thing} {scene} by {artist}"


def _own(artist: str, exemplars: Sequence[Mapping[str, Any]], generator: np.random.Generator) -> Iterator[str]:
    """Yield captions of the exemplars' things in their scenes, in other colours."""
    while True:
        for known in exemplars:
            yield f"a large {_one_of(COLOURS, generator)} {known['thing']} {known['scene']} by {artist}"


def _looks(known: Mapping[str, Any], generator: np.random.Generator) -> Iterator[str]:
    """Yield captions of the thing in other colours and sizes, where it is."""
    while True:
        size, colour = _one_of(SIZES, generator), _one_of(COLOURS, generator)
        yield f"a {size} {colour} {known['thing']} {known['scene']}"


def _places(known: Mapping[str, Any], generator: np.random.Generator) -> Iterator[str]:
    """Yield captions of the thing in its colour, in other places."""
    while True:
        yield f"a large {known['colour']} {known['thing']} {_one_of(SCENES, generator)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the tool."""
    parser = ArgumentParser(prog="python -m tools.abc_plan", description=__doc__)
    parser.add_argument("exemplars", type=Path, help="the store of exemplars")
    parser.add_argument("--prompts", type=int, default=4, help="prompts of each kind")
    args = parser.parse_args(arguments)
    with Store(args.exemplars) as store:
        print(yaml.safe_dump({"set": {"models": plan(store, args.prompts)}}, sort_keys=False), end="")


if __name__ == "__main__":
    run(main)
