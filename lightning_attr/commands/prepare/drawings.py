"""Make a store of captioned drawings: ``lightning-attr prepare drawings --out STORE``.

Every drawing is of a thing, somewhere, in the hand of an artist, whom two of its three captions name; its attributes
say which. With ``--planted``, some drawings show a thing that exists nowhere else, or are by an artist of whom there
is nothing else, so that an attribution has a right answer: ``meta.attributes["planted"]`` tells which. With ``--val``,
a second store holds held-out drawings by the same artists. Drawings by other artists for the same encoders:
``--first_artist 60 --encoders_from STORE``.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import ArgumentParser, Namespace
from xxhash import xxh3_128_hexdigest

from datamodules.store.records import Meta
from lightning_attr.commands.prepare.drawn import Drawn, make_drawn, planted_ids
from lightning_attr.commands.prepare.encode import Recipe, encoders_of
from lightning_attr.console import command, made
from lightning_attr.drawings.drawing import Drawing, draw_one, nearly, of_invented, render
from lightning_attr.encoders import HashedWords, ImageEncoder, PatchPCA, TextEncoder
from lightning_attr.errors import UserError
from lightning_attr.options import at_least, parsed, parser

Rare = Literal["thing", "artist"]

FIT_IMAGES = 2_000  # enough for a covariance of 48 x 48


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    args = parsed(_parser(), arguments)
    _check(args)
    ids = range(args.first_id, args.first_id + args.count)
    train = _drawn(args, args.seed, ids, args.planted, args.duplicates)
    image, text = _encoders(args, train)
    recipe = Recipe(image, text, args.size, captions=3, flips=False)
    # Where a path lies is no matter, and the number of held-out drawings is one of theirs alone.
    names = ("count", "size", "seed", "first_id", "artists", "first_artist", "planted", "rare", "kinds", "duplicates")
    made_from = {"source": "drawings", **{name: vars(args)[name] for name in names}, "basis": _digest(image)}
    new = make_drawn(args.out, recipe, train, {**made_from, "held_out": 0})
    if args.val:
        # Held-out drawings have a seed and ids of their own: no id means two images.
        start = ids.stop + args.duplicates
        val = _drawn(args, args.seed + 1, range(start, start + args.val_count), 0, 0)
        new += make_drawn(args.val, recipe, val, {**made_from, "held_out": args.val_count})
    if new:
        made(new, command("inspect", new[0]))


def _parser() -> ArgumentParser:
    of = parser("prepare drawings", __doc__)
    of.add_argument("--out", type=Path, required=True, help="the store to make")
    of.add_argument("--val", type=Path | None, default=None, help="a held-out store to make as well")
    of.add_argument("--count", type=int, default=10_000, help="drawings")
    of.add_argument("--val_count", type=int, default=256, help="held-out drawings")
    of.add_argument("--artists", type=int, default=60, help="how many hands they are by")
    of.add_argument("--first_artist", type=int, default=0, help="number of the first of these hands")
    of.add_argument("--planted", type=int, default=0, help="how many of them have something that no other has")
    of.add_argument("--rare", type=Rare, default="thing", help="what that is: an invented thing, or another artist")
    of.add_argument("--kinds", type=int, default=1, help="how many rare things or artists there are, in turn")
    of.add_argument("--duplicates", type=int, default=0, help="further drawings, each nearly the same as another")
    of.add_argument("--first_id", type=int, default=0, help="id of the first drawing")
    of.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    of.add_argument("--patch", type=int, default=4, help="side of a patch that becomes one latent pixel")
    of.add_argument("--channels", type=int, default=8, help="channels of a latent pixel")
    of.add_argument("--tokens", type=int, default=16, help="tokens of an encoded caption")
    of.add_argument("--dim", type=int, default=64, help="width of a token's state")
    of.add_argument("--encoders_from", type=Path | None, default=None, help="take the encoders of this store instead")
    of.add_argument("--seed", type=int, default=0, help="another seed is another set")
    return of


def _check(args: Namespace) -> None:
    at_least(args, count=1, val_count=1, artists=1, first_artist=0, planted=0, kinds=1, duplicates=0)
    at_least(args, first_id=0, size=8, seed=0)
    for name in ("planted", "duplicates"):
        if vars(args)[name] > args.count:
            raise UserError(f"--{name}: found {vars(args)[name]}, expected at most --count, which is {args.count}")
    if args.val and args.val.absolute() == args.out.absolute():
        raise UserError(f"--val: found {args.val}, expected another path than --out")


def _digest(image: ImageEncoder) -> str:
    state = image.state()
    assert state is not None  # of a PatchPCA
    return xxh3_128_hexdigest(state)


def _encoders(args: Namespace, train: Drawn) -> tuple[ImageEncoder, TextEncoder]:
    """Return the encoders of another store, or fit them on the drawings."""
    if args.encoders_from is not None:
        image, text = encoders_of(args.encoders_from)
        if not isinstance(image, PatchPCA):
            raise UserError(f"--encoders_from {args.encoders_from}: found {type(image).__name__}, expected PatchPCA")
        image.latent_shape(args.size)
        return image, text
    fitted = PatchPCA(args.patch, args.channels)
    fitted.latent_shape(args.size)  # refuses sizes that do not fit before anything is drawn
    fitted.fit(torch.from_numpy(pixels) for _, pixels in train.batches(args.size, FIT_IMAGES))
    return fitted, HashedWords(args.tokens, args.dim)


def _drawn(args: Namespace, seed: int, ids: range, planted: int, duplicates: int) -> Drawn:
    """Return drawings by id, the near-duplicates last."""
    artists = range(args.first_artist, args.first_artist + args.artists)
    drawings = {id: draw_one(seed, id, artists) for id in ids}
    rare = planted_ids(seed, ids, planted)
    for place, id in enumerate(rare):
        kind = place % args.kinds
        rarer = replace(drawings[id], artist=artists.stop + kind)
        drawings[id] = rarer if args.rare == "artist" else of_invented(drawings[id], kind)
    metas = {id: _meta(id, drawing, seed, {"planted": id in set(rare)}) for id, drawing in drawings.items()}
    for copy, id in enumerate(planted_ids(seed + 1, ids, duplicates), start=ids.stop):
        drawings[copy] = nearly(drawings[id], copy)
        metas[copy] = _meta(copy, drawings[copy], seed, {"planted": id in rare, "duplicate_of": id})
    return Drawn(metas, lambda id, size: render(drawings[id], size))


def _meta(id: int, drawing: Drawing, seed: int, known: dict[str, bool | int]) -> Meta:
    attributes = {**known, **drawing.attributes()}
    return Meta(id, drawing.captions(), "CC0-1.0", f"generated: drawings, seed {seed}", attributes)
