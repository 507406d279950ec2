"""Setting the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lightning_attr.artifacts.scores import SIGN
from lightning_attr.commands.report.agreement import agreement
from lightning_attr.commands.report.checks import ground_truths
from lightning_attr.commands.report.contents import LOSS_DELTAS, Run
from lightning_attr.commands.report.contributors import Contributors
from lightning_attr.commands.report.sections import BESIDE, comparisons, query_views, retrievals, training_pictures
from lightning_attr.console import printable


def render(run: Run, grouping: str | None = None) -> str:
    """Return the report of a run as one HTML page that needs no other file and no network.

    Args:
        run: What was found.
        grouping: What names the groups of training images; None is what their source said, if it did.

    Raises:
        UserError: The store has no such groups.
    """
    # Captions and prompts are foreign text: all that is put into the page is escaped, and free of control characters.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_without_controls,
    )
    environment.filters["setting"] = write_setting
    queries = list(query_views(run))
    contributors = Contributors.of(run, grouping)  # takes note of what is missing
    return environment.get_template("page.html.jinja").render(
        name=run.path.resolve().name,
        run=run,
        queries=queries,
        pictures=training_pictures(queries),
        beside=BESIDE,
        agreement=agreement(run.rankings),
        contributors=contributors,
        comparisons=comparisons(run.retrained),
        ground_truths=ground_truths(run.packs),
        retrievals=list(retrievals(run.metrics)),
        loss_deltas=LOSS_DELTAS,
        sign=SIGN,
    )


def _without_controls(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def write_setting(value: Any) -> str:
    """Write a setting as configs do: ``null``, ``true``, plain words."""
    return value if isinstance(value, str) else json.dumps(value)
