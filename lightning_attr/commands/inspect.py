"""Say what a store holds, and whether it is undamaged: ``lightning-attr inspect STORE [--verify]``."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from datamodules.store import Store
from datamodules.store.weights import WEIGHT
from lightning_attr.console import out, print_table, progress, summary
from lightning_attr.errors import shortened
from lightning_attr.options import parsed, parser

LONGEST = 1000
"""How many characters of a caption are shown."""


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    of = parser("inspect", __doc__)
    of.add_argument("store", type=Path)
    of.add_argument("--verify", action="store_true", help="read everything and check every checksum")
    of.add_argument("--captions", type=int, default=3, help="samples whose captions are shown")
    args = parsed(of, arguments)
    with Store(args.store) as store:
        _describe(args.store, store)
        _show_fields(store)
        _show_captions(store, args.captions)
        if args.verify:
            _verify(store)


def _describe(path: Path, store: Store) -> None:
    """Print counts, size, digest and encoders."""
    per_sample = Counter(int(count) for count in store.caption_counts)
    rows: list[tuple[str, object]] = [
        ("samples", len(store)),
        ("ids", f"{store.ids[0]} to {store.ids[-1]}" if len(store) else "none"),
        ("captions", int(sum(store.caption_counts))),
        ("captions per sample", ", ".join(f"{count} in {per_sample[count]:,}" for count in sorted(per_sample))),
        ("size", f"{path.stat().st_size / 1e6:,.1f} MB"),
        ("digest", store.digest),
        *store.notes.items(),
    ]
    for name, config in store.schema.encoders.items():
        state = store.encoder_state(name)
        fitted = "" if state is None else f", state of {len(state):,} bytes"
        rows.append((f"{name} encoder", json.dumps(config) + fitted))
    summary(str(path), rows)


def _show_fields(store: Store) -> None:
    """Print the role, shape, type and bytes of each field."""
    table = Table("field", "role", "shape", "type", "bytes a sample", title="fields", title_justify="left")
    for name, field in store.schema.fields.items():
        size = store.read(name, [0]).nbytes if len(store) else 0
        table.add_row(name, field.role or "", " x ".join(map(str, field.shape)), str(field.dtype), f"{size:,}")
    print_table(table)


def _show_captions(store: Store, count: int) -> None:
    """Print the captions of samples evenly spread over the store."""
    shown = min(count, len(store))
    for i in range(shown):
        position = i * len(store) // shown
        meta = store.meta(position)
        rows = [("key", meta.key), *(("caption", caption) for caption in meta.captions)]
        rows += [("licence", meta.licence), ("source", meta.source)]
        if "groups" in meta.attributes:
            rows.append(("groups", str(meta.attributes["groups"])))
        if WEIGHT in store.schema.fields:
            rows.append((WEIGHT, str(store.weights[position])))
        summary(f"sample {meta.id}", [(name, shortened(value, LONGEST)) for name, value in rows if value])


def _verify(store: Store) -> None:
    """Check every checksum; damage is raised as a ``StoreError``."""
    with progress("records") as bar:
        task = bar.add_task("verify", total=None)
        store.verify(lambda done, total: bar.update(task, completed=done, total=total))
    out.print(f"verified: every checksum of {len(store):,} samples is right")
