"""What a sweep retrains: its config, and the entries that follow from it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from xxhash import xxh3_64_intdigest

from datamodules.selection import Exclude, Subset, kept_positions
from datamodules.store import Store
from lightning_attr.artifacts.scores import load_scores
from lightning_attr.commands.sweep.left_groups import LeaveGroupOut, folder_of, left_groups
from lightning_attr.commands.sweep.score_files import files_by_query
from lightning_attr.errors import UserError, expect_within
from lightning_attr.ground_truth.pack import UNATTRIBUTED
from lightning_attr.noise import Draws
from lightning_attr.options import check_values, check_yaml, user_errors

Settings = Mapping[str, Any]

#: Callbacks that only watch the training of the original.
WATCHERS = ("callbacks.SampleGrid",)

#: The most models of a kind: of more, not even the names could be listed.
MOST = 100_000


@dataclass(frozen=True)
class Top:
    """Leave-K-out: for each method, query and K models trained without the K highest-scored samples.

    Args:
        scores: The scores of each method: a file, or a pattern such as ``runs/coco64/unlearn/*/scores.safetensors``
            where each query has its own.
        k: How many samples to remove.
        queries: Ids of the queries; None is all of the query store.
        seeds: Training seeds of each removal, as those of ``random``; the mean over them is what is compared.
    """

    scores: dict[str, str]
    k: list[int]
    queries: list[int] | None = None
    seeds: int = 1


@dataclass(frozen=True)
class Random:
    """Models trained without K random samples: what removal alone does, and the LDS at small removals.

    Args:
        k: How many samples to remove.
        count: Sets of samples for each K.
        seeds: Training seeds of each set. A model is compared with that of all samples and the same seed, so that
            ``full`` must have all but the original's.
    """

    k: list[int]
    count: int = 1
    seeds: int = 1


@dataclass(frozen=True)
class Subsets:
    """Models trained on random shares of the store, for the linear datamodelling score (LDS).

    Args:
        count: How many subsets.
        fraction: Share of the store in each.
        seeds: Training seeds of each subset; with two or more, the noise of the ground truth is known.
    """

    count: int
    fraction: float = 0.5
    seeds: int = 1


@dataclass(frozen=True)
class Full:
    """Models trained on everything with other seeds: the noise floor.

    Args:
        seeds: How many.
    """

    seeds: int


@dataclass(frozen=True)
class Sweep:
    """A sweep of retrainings.

    Args:
        folder: Where everything goes.
        train: The config files of the original's training, in order.
        original: Checkpoint of the original.
        queries: The query store.
        evaluation: The draws at which the queries' losses are measured.
        top: Leave-K-out entries.
        random: Random removals.
        subsets: Random subsets.
        full: Other seeds.
        groups: Leave-group-out entries.
        shared: Whether all models share the original's initial weights and noise, so that they differ by their data
            alone; else each entry has a seed of its own. Subsets and full entries with a further seed have that one.
        regenerate: Whether removals make the queries again, which the generation deviation is of; subsets never do.
    """

    folder: str
    train: list[str]
    original: str
    queries: str
    evaluation: Draws = field(default_factory=lambda: Draws(timesteps=100))
    top: Top | None = None
    random: Random | None = None
    subsets: Subsets | None = None
    full: Full | None = None
    groups: LeaveGroupOut | None = None
    shared: bool = True
    regenerate: bool = True

    @property
    def patterns(self) -> list[str]:
        """Return the files of scores that say what is left out, each pattern once."""
        named = [part.scores for part in (self.top, self.groups) if part is not None and part.scores]
        return list(dict.fromkeys(pattern for scores in named for pattern in scores.values()))


@dataclass(frozen=True)
class Entry:
    """One retraining of a sweep.

    Args:
        name: Its folder below ``entries``.
        settings: What goes on top of the training config.
    """

    name: str
    settings: Settings = field(hash=False)


def entries(sweep: Sweep) -> list[Entry]:
    """Return all entries of a sweep, always in the same order.

    Raises:
        UserError: The sweep is empty, a file is missing, or more samples are to be removed than there are.
    """
    training = training_config(sweep.train)
    _check(sweep)
    common = _common(sweep, training)
    found = [
        Entry(name, merged(common, {"trainer": {"default_root_dir": str(entry_folder(sweep, name))}}, own))
        for name, own in _own_settings(sweep, training)
    ]
    if not found:
        raise UserError("sweep: found nothing to train, expected some of top, random, subsets, full and groups")
    name, times = Counter(entry.name for entry in found).most_common(1)[0]
    if times > 1:
        raise UserError(f"sweep: found {name} {times} times, expected each k and query once")
    return found


def _check(sweep: Sweep) -> None:
    """Check what would fail in the middle of the sweep otherwise."""
    check_values("sweep", {"class_path": f"{Sweep.__module__}.{Sweep.__name__}", "init_args": asdict(sweep)})
    store = Store(store_path(sweep))
    if sweep.top is not None:
        for method in sweep.top.scores:
            if method in UNATTRIBUTED or not re.fullmatch(r"[\w.+-]+", method):
                raise UserError(
                    f"top.scores: found method {method!r}, expected a name of letters, digits and .+-_ that is none of "
                    f"{', '.join(UNATTRIBUTED)}"
                )
        _expect_seeds("top.seeds", sweep.top.seeds, sweep)
        for k in sweep.top.k:
            expect_within("top.k", k, 1)
    if sweep.random is not None:
        expect_within("random.count", sweep.random.count, 1, MOST)
        _expect_seeds("random.seeds", sweep.random.seeds, sweep)
        for k in sweep.random.k:
            kept_positions(store, Exclude(random=k))
    if sweep.subsets is not None:
        expect_within("subsets.count", sweep.subsets.count, 1, MOST)
        expect_within("subsets.seeds", sweep.subsets.seeds, 1, MOST)
        kept_positions(store, subset=Subset(fraction=sweep.subsets.fraction))
    if sweep.groups is not None:
        expect_within("groups.random", sweep.groups.random, 0, MOST)
        _expect_seeds("groups.seeds", sweep.groups.seeds, sweep)
    if sweep.full is not None:
        expect_within("full.seeds", sweep.full.seeds, 1, MOST)


def _expect_seeds(key: str, seeds: int, sweep: Sweep) -> None:
    """Check that removals under several training seeds have models of all samples to be compared with."""
    expect_within(key, seeds, 1, MOST)
    full = 0 if sweep.full is None else sweep.full.seeds
    if seeds > 1 and not sweep.shared:
        raise UserError(f"{key}: found {seeds} with shared: false, expected 1: every model has a seed of its own then")
    if seeds - 1 > full:
        raise UserError(
            f"{key}: found {seeds}, but full.seeds is {full}; expected full.seeds of at least {seeds - 1}: a removal "
            "is compared with the model of all samples and the same seed"
        )


def entry_folder(sweep: Sweep, name: str) -> Path:
    """Return the run folder of an entry."""
    return Path(sweep.folder) / "entries" / name


def training_config(paths: list[str]) -> dict[str, Any]:
    """Read the training's config files, later ones on top of earlier ones, as ``fit`` reads them.

    Raises:
        UserError: One is missing or no config, or what ``${}`` refers to is not there.
    """
    result: dict[str, Any] = {}
    for path in paths:
        if not Path(path).is_file():
            raise UserError(f"train: found no file {path}")
        check_yaml(["-c", path])
        config = yaml.safe_load(Path(path).read_text()) or {}
        if not isinstance(config, dict):
            raise UserError(f"train: found no keys in {path}, expected the config of a training")
        result = merged(result, config)
    with user_errors():
        resolved = OmegaConf.to_container(OmegaConf.create(result), resolve=True)
    assert isinstance(resolved, dict)
    for part in ("model", "data"):
        if not isinstance(resolved.get(part), dict):
            raise UserError(f"train: found no {part} in {', '.join(paths)}, expected the config of a training")
    return resolved  # type: ignore[return-value]


def store_path(sweep: Sweep) -> str:
    """Return the store that the original was trained on."""
    path = ((training_config(sweep.train).get("data") or {}).get("init_args") or {}).get("store")
    if path is None:
        raise UserError(f"train: found no data.init_args.store in {', '.join(sweep.train)}")
    return str(path)


def _common(sweep: Sweep, training: Settings) -> dict[str, Any]:
    callbacks = (training.get("trainer") or {}).get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    return {
        "trainer": {"callbacks": [callback for callback in callbacks if _class_path(callback) not in WATCHERS]},
        "model": {
            "class_path": "lightning_attr.tasks.Retraining",
            "init_args": {
                "original": sweep.original,
                "queries": sweep.queries,
                "evaluation": dict(vars(sweep.evaluation)),
            },
        },
        "data": {"init_args": {"val_store": None}},
    }


def _class_path(callback: Any) -> str:
    """Return the class of a callback, which a config may give by its name alone."""
    return str(callback["class_path"] if isinstance(callback, Mapping) else callback)


def _own_settings(sweep: Sweep, training: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and what is particular of each entry."""
    if sweep.top is not None:
        rankings = list(_rankings(sweep, sweep.top))
        for seed in range(sweep.top.seeds):
            for method, path, query, k in rankings:
                without = {"exclude": {"scores": path, "query": query, "top": k}}
                name = _under(seed, f"top/{method}/query-{query}/k-{k}")
                yield _retraining(sweep, training, name, method, without, seed)
    groups: dict[str, int] = {}
    if sweep.groups is not None:
        grouping = sweep.groups.grouping
        groups = left_groups(sweep.groups, Store(store_path(sweep)), query_ids(sweep))
        for seed in range(sweep.groups.seeds):
            for name in groups:
                without = {"exclude": {"grouping": grouping, "group": name}}
                yield _retraining(sweep, training, _under(seed, folder_of(grouping, name)), "group", without, seed)
    for k, number, seed in _random_removals(sweep, groups.values()):
        left_out = {"exclude": {"random": k, "seed": number}}
        yield _retraining(sweep, training, _under(seed, f"random/k-{k}/{number}"), "random", left_out, seed)
    if sweep.subsets is not None:
        for subset in range(sweep.subsets.count):
            for seed in range(sweep.subsets.seeds):
                data = {"subset": {"fraction": sweep.subsets.fraction, "seed": subset}}
                yield _retraining(sweep, training, f"subset/{subset}/seed-{seed}", "subset", data, seed)
    if sweep.full is not None:
        for seed in range(1, sweep.full.seeds + 1):
            yield _retraining(sweep, training, f"full/seed-{seed}", "full", {}, seed)


def _under(seed: int, name: str) -> str:
    """Return the name of a removal under a training seed: of the original's seed without it."""
    return f"seed-{seed}/{name}" if seed else name


def _random_removals(sweep: Sweep, sizes: Iterable[int]) -> Iterator[tuple[int, int, int]]:
    """Yield K, number and training seed of removals of random samples: those asked for, then as many as groups have."""

    def each(ks: Iterable[int], count: int, seeds: int) -> list[tuple[int, int, int]]:
        return [(k, number, seed) for k in ks for seed in range(seeds) for number in range(count)]

    asked = [] if sweep.random is None else each(sweep.random.k, sweep.random.count, sweep.random.seeds)
    beside = [] if sweep.groups is None else each(dict.fromkeys(sizes), sweep.groups.random, sweep.groups.seeds)
    yield from asked
    known = set(asked)
    yield from (one for one in beside if one not in known)


def _rankings(sweep: Sweep, top: Top) -> Iterator[tuple[str, str, int, int]]:
    """Yield the method, scores file, query and K of every leave-K-out entry."""
    queries = query_ids(sweep) if top.queries is None else top.queries
    for method, pattern in top.scores.items():
        for query, path in files_by_query(f"sweep.top.scores.{method}", pattern, queries).items():
            # Refuses what cannot be removed before anything is trained.
            load_scores(path).top(query, max(top.k, default=0))
            yield from ((method, path, query, k) for k in top.k)


def query_ids(sweep: Sweep) -> list[int]:
    """Return the ids of all queries."""
    return [int(query) for query in Store(sweep.queries).ids]


def _retraining(
    sweep: Sweep, training: Settings, name: str, method: str, data: Settings, seed: int = 0
) -> tuple[str, dict[str, Any]]:
    settings = {"model": {"init_args": {"method": method}}, "data": {"init_args": dict(data)}}
    if method == "subset" or not sweep.regenerate:
        settings["model"]["init_args"]["regenerate"] = False  # an LDS is of losses alone
    if not sweep.shared:
        seed = xxh3_64_intdigest(name.encode()) % 2**31  # of the name, so that further entries do not change it
    if seed:
        for part in ("model", "data"):  # added to the original's, so that none of them is the original's
            settings[part]["init_args"]["seed"] = seed + training.get(part, {}).get("init_args", {}).get("seed", 0)
    return name, settings


def merged(*parts: Settings) -> dict[str, Any]:
    """Merge nested mappings; later values win, as for config files."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merged(result[key], value) if both else value
    return result
