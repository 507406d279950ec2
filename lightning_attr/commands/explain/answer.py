"""The answer: which images made each query, by the names of their files, and how far to trust that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from rich.table import Table
from rich.text import Text
from torch import Tensor

from datamodules.grouping import read_groups
from datamodules.store import Meta, Store
from lightning_attr.artifacts.scores import SIGN, Scores
from lightning_attr.commands.sweep.left_groups import folder_of
from lightning_attr.console import out, print_table
from lightning_attr.contributors import as_json, contributors
from lightning_attr.digests import file_digest
from lightning_attr.encoders import encoders_digest
from lightning_attr.ground_truth.retrained import load_retrained
from lightning_attr.groups import reduction_of
from lightning_attr.shares import Shares

#: How many images are named in the answer, and how many are shown.
NAMED, SHOWN = 100, 10


def answer(
    queries: Store,
    store: Store,
    scores: Mapping[str, Path],
    check: Mapping[str, tuple[Path, Path]],
    grouping: str | None = None,
    shares: Path | None = None,
) -> dict[str, Any]:
    """Return the answer as JSON holds it.

    Args:
        queries: The query store.
        store: The training images.
        scores: The files of scores by method; the first is the answer.
        check: The files of the check's retrainings by what they went without, and of those without as many random
            images; empty where there is none.
        grouping: What names the groups of the training images; None is no groups.
        shares: The file that turns scores into shares; where it was fitted for other ones, the answer says why it has
            none.
    """
    read = {name: Scores.load(path) for name, path in scores.items()}
    first = next(iter(read.values()))
    fitted = None if shares is None else Shares.load(shares)
    unfit = None if fitted is None else fitted.unfit(first, encoders_digest(store))
    parts = None if fitted is None or unfit is not None else fitted.soft.shares(first.scores)
    of_queries = [_of_query(queries, store, query, read, check) for query in first.query_id.tolist()]
    if parts is not None:
        for query, of_query in zip(of_queries, parts, strict=True):
            for each in query["top"]:
                each["share"] = float(of_query[int((first.sample_id == each["id"]).nonzero())])
            query["rest"] = float(of_query[-1])
    about = {} if fitted is None else {"shares": {"unused": unfit} if unfit else _about(fitted)}
    found = {
        "queries": of_queries,
        **about,
        "method": first.method,
        "sign": SIGN,
        "settings": dict(first.settings),
        "digests": {
            "store": store.digest,
            "queries": queries.digest,
            "scores": file_digest(next(iter(scores.values()))),
        },
    }
    own = None if parts is None else parts[:, :-1]
    return found if grouping is None else found | {"groups": _groups(store, grouping, read, check, own)}


def _groups(
    store: Store,
    grouping: str,
    scores: Mapping[str, Scores],
    check: Mapping[str, tuple[Path, Path]],
    shares: Tensor | None = None,
) -> dict[str, Any]:
    """Return the groups of the training images by what they did to all queries, and to each.

    Args:
        store: The training images.
        grouping: What names the groups.
        scores: By method; the first is the answer.
        check: The files of the check's retrainings.
        shares: The part of each image in each query, [Q, N].
    """
    method, *others = scores
    groups = read_groups(store, grouping, scores[method].sample_id.numpy())
    all_ids = scores[method].query_id.tolist()

    def of_queries(ids: Sequence[int]) -> list[dict[str, Any]]:
        of_others = {other: scores[other].of_queries(ids) for other in others}
        rows = None if shares is None else shares[[all_ids.index(query) for query in ids]]
        found = contributors(groups, scores[method].of_queries(ids), of_others, rows)
        return [
            as_json(each) | _check("group", ids, check.get(folder_of(grouping, each.group))) for each in found[:NAMED]
        ]

    return {
        "grouping": groups.grouping,
        "reduction": reduction_of(scores[method].method),
        "count": len(groups.names),
        "contributors": of_queries(all_ids),
        "queries": [{"id": query, "contributors": of_queries([query])} for query in all_ids],
    }


def _about(shares: Shares) -> dict[str, Any]:
    """Return what the shares were fitted on, which is not what they are shown of."""
    return {
        "calibration_error": shares.settings["calibration"]["error"],
        "gallery": shares.settings["gallery"],
        "digests": shares.settings["digests"],
    }


def name_of(meta: Meta) -> str:
    """Return by what name its source knows a sample, or its id."""
    return meta.key or str(meta.id)


def _of_query(
    queries: Store, store: Store, query: int, scores: Mapping[str, Scores], check: Mapping[str, tuple[Path, Path]]
) -> dict[str, Any]:
    meta = queries.meta(int(queries.positions([query])[0]))
    method, *others = scores
    ranked = scores[method].ranked(query, min(NAMED, scores[method].depth))
    top = []
    for sample, score in ranked:
        about = store.meta(int(store.positions([sample])[0]))
        top.append({"id": sample, "key": name_of(about), "caption": about.caption, "score": score})
    number = min(SHOWN, len(store))
    found = {
        "id": query,
        "key": name_of(meta),
        "prompt": meta.caption,
        "top": top,
        "agreement": {
            other: {
                "of": number,
                "common": len({*scores[method].top(query, number)} & {*scores[other].top(query, number)}),
                "by_chance": number * number / len(store),
            }
            for other in others
        },
    }
    return found | _check("top", [query], check.get(f"top-of-{query}"))


def _check(what: str, query_ids: Sequence[int], files: tuple[Path, Path] | None) -> dict[str, Any]:
    """Return by how much the loss of queries rose on average without something, and without as many random images."""
    if files is None:
        return {}
    changes, removed = {}, 0
    for name, file in ((what, files[0]), ("random", files[1])):
        tensors, _ = load_retrained(file)
        known = tensors["query_id"].tolist()
        rows = [known.index(query) for query in query_ids]
        changes[name] = float((tensors["retrained_losses"][rows] - tensors["original_losses"][rows]).mean())
        removed = len(tensors["removed_id"])
    return {"check": {"removed": removed, "loss_change": changes}}


def show(found: Mapping[str, Any]) -> None:
    """Print the images of every query, and how far to trust the answer."""
    for query in found["queries"]:
        table = Table(title=Text(f"{query['key']}: {shorten(query['prompt'], 60)}"), title_justify="left")
        share = ["share"] if "rest" in query else []
        for column in ("", "training image", "score", *share, "caption"):
            table.add_column(column)
        for place, each in enumerate(query["top"][:SHOWN], start=1):
            own = [f"{each['share']:.1%}"] if share else []
            caption = Text(shorten(each["caption"], 40))
            table.add_row(str(place), Text(each["key"]), f"{each['score']:.3g}", *own, caption)
        print_table(table)
        for sentence in [*of_shares(query, found.get("shares")), *trust(query)]:
            out.print(f"  {sentence}", soft_wrap=True)
    if "groups" in found:
        _show_groups(found["groups"], len(found["queries"]))


def _show_groups(groups: Mapping[str, Any], queries: int) -> None:
    """Print the first contributors to all queries."""
    of = f", mean over {queries} queries" if queries > 1 else ""
    title = f"Which contributors, how much, how sure ({groups['grouping']}{of})"
    table = Table(title=Text(title), title_justify="left")
    shown = groups["contributors"][:SHOWN]
    others = list(shown[0]["ranks"])
    first = ["first for"] if queries > 1 else []
    part = ["share"] if "share" in shown[0] else []
    ranked = [f"rank by {other}" for other in others]
    for column in ("group", "images", f"{groups['reduction']} of scores", *part, "beyond chance", *first, *ranked):
        table.add_column(column)
    for each in shown:
        ends = "" if each["interval"] is None else " [{:.3g}, {:.3g}]".format(*each["interval"])
        chance = "unknown" if each["beyond_chance"] is None else f"{each['beyond_chance']:+.1f} sd"
        counts = [f"{each['first']} of {queries}"] if queries > 1 else []
        ranks = [str(each["ranks"].get(other, "")) for other in others]
        own = [f"{each['share']:.1%}"] if part else []
        cells = [str(each["images"]), f"{each['score']:.3g}{ends}", *own, chance, *counts, *ranks]
        table.add_row(Text(each["group"]), *cells)
    print_table(table)
    out.print("  Beyond chance: standard deviations above as many random images.", soft_wrap=True)
    for each in shown:
        if "check" in each:
            where = f"these {queries} outputs, on average," if queries > 1 else "this output"
            out.print(Text(f"  {_in_words(each['check'], 'group', each['group'], where)}"), soft_wrap=True)


def of_shares(query: Mapping[str, Any], about: Mapping[str, Any] | None) -> Sequence[str]:
    """Return in words what the shares of a query leave, and what they were fitted on; or why there are none."""
    if about is None:
        return []
    if "unused" in about:
        return [f"No shares: {about['unused']}."]
    return [
        f"{query['rest']:.1%} is from none of these images.",
        f"Shares were fitted on customised models and {about['gallery']:,} images, with an error of "
        f"{about['calibration_error'][0]:.3f} there; on others nobody has measured it.",
    ]


def trust(query: Mapping[str, Any]) -> Sequence[str]:
    """Return in words how far to trust what was found for a query."""
    sentences = [
        f"{each['common']} of these {each['of']} are also among the {each['of']} that look most alike "
        f"({each['by_chance']:.1f} by chance)."
        for each in query["agreement"].values()
    ]
    if "check" not in query:
        rank = "" if "rest" in query else ": a ranking, not a share of the output"
        return [*sentences, f"Not checked by retraining{rank}."]
    removed = query["check"]["removed"]
    return [*sentences, _in_words(query["check"], "top", f"the first {removed}")]


def _in_words(check: Mapping[str, Any], what: str, name: str, where: str = "this output") -> str:
    """Return what a check found without something."""
    change, removed = check["loss_change"], check["removed"]
    return (
        f"Trained again without {name}, the model's loss at {where} changed by {change[what]:+.4f}; "
        f"without {removed} random images by {change['random']:+.4f}."
    )
