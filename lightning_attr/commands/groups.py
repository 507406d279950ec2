"""Find the near-duplicates among the images of a store: ``lightning-attr groups STORE --out near.json``.

The file names clusters of images that are alike but for a slight crop, another compression or brightness. Whatever
takes a grouping takes it: ``explain`` and ``report`` by --grouping, ``exclude`` and sweeps by ``grouping``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from rich.table import Table
from rich.text import Text

from datamodules.grouping import Clusters
from datamodules.store import Store
from lightning_attr.commands.targets import expect_like
from lightning_attr.console import made, out, print_table, progress
from lightning_attr.encoders import thumb_images
from lightning_attr.errors import UserError, expect_within, shortened
from lightning_attr.near_duplicates import BITS, DISTANCE, TOLERANCE, clusters
from lightning_attr.options import parsed, parser

SHOWN = 10
"""How many clusters are printed."""
LONGEST = 200
"""How many characters of a name are printed."""


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    of = parser("groups", __doc__)
    of.add_argument("store", type=Path)
    of.add_argument("--out", type=Path, required=True, help="the file of clusters, such as runs/own/near.json")
    of.add_argument("--distance", type=int, default=DISTANCE, help=f"bits of {BITS} in which two alike differ at most")
    args = parsed(of, arguments)
    expect_within("--distance", args.distance, 0, BITS)
    if args.out.suffix != ".json":
        raise UserError(f"--out: found {args.out}, expected a file NAME.json")
    expect_like("--out", args.out, "clusters", Clusters.load)
    with Store(args.store) as store:
        found = clusters(_thumbs(store), store.ids.tolist(), args.distance)
        _show(store, found)
        settings = {"distance": args.distance, "bits": BITS, "tolerance": TOLERANCE}
        Clusters(store.digest, tuple(found), settings).save(args.out)
    made([args.out])


def _thumbs(store: Store) -> Iterator[Image.Image]:
    with progress("images") as bar:
        for sample in bar.track(store.ids.tolist(), description="hash"):
            yield from thumb_images(store, [sample])


def _show(store: Store, found: Sequence[Sequence[int]]) -> None:
    """Print how many there are, and the largest."""
    images = sum(map(len, found))
    out.print(f"{images:,} of {len(store):,} images are near-duplicates, in {len(found):,} clusters", soft_wrap=True)
    if not found:
        return
    table = Table("first image", "images", "others")
    for ids in sorted(found, key=lambda each: (-len(each), each))[:SHOWN]:
        first, *others = (_name(store, sample) for sample in ids[:4])
        more = f" and {len(ids) - 4} more" if len(ids) > 4 else ""
        table.add_row(Text(first), str(len(ids)), Text(", ".join(others) + more))
    print_table(table)


def _name(store: Store, sample: int) -> str:
    meta = store.meta(int(store.positions([sample])[0]))
    return shortened(meta.key or f"image {sample}", LONGEST)
