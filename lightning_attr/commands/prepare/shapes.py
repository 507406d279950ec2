"""Make a store of generated, captioned shapes in seconds: ``lightning-attr prepare shapes --out STORE``.

A rare concept, a purple star, is planted in a few of the images, so that an attribution has a right answer:
``meta.attributes["planted"]`` tells which. With ``--val``, a second store holds held-out images and the same encoders.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace

from datamodules.store.records import Meta
from lightning_attr.commands.prepare.drawn import Drawn, make_drawn, planted_ids
from lightning_attr.commands.prepare.encode import Recipe
from lightning_attr.commands.prepare.scenes import Scene, captions, draw_scene, render
from lightning_attr.console import command, made
from lightning_attr.encoders import HashedWords, PatchPCA
from lightning_attr.errors import UserError
from lightning_attr.options import at_least, parsed, parser


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    args = parsed(_parser(), arguments)
    _check(args)
    image = PatchPCA(args.patch, args.channels)
    image.latent_shape(args.size)  # refuses sizes that do not fit before anything is drawn
    recipe = Recipe(image, HashedWords(args.tokens, args.dim), args.size, captions=3, flips=args.flips)
    # Held-out images have a seed and ids of their own: no id means two images.
    train = _drawn(_scenes(args.seed, range(args.count), args.planted), args.seed)
    held_out = range(args.count, args.count + args.val_count)
    image.fit(torch.from_numpy(pixels) for _, pixels in train.batches(args.size))
    # The encoder, and so the latents of both, is of the training images.
    made_from = {"source": "shapes", **{name: vars(args)[name] for name in ("count", "planted", "size", "seed")}}
    new = make_drawn(args.out, recipe, train, {**made_from, "held_out": 0})
    if args.val:
        rare = round(args.val_count * args.planted / args.count)
        val = _drawn(_scenes(args.seed + 1, held_out, max(rare, min(args.planted, 1))), args.seed + 1)
        new += make_drawn(args.val, recipe, val, {**made_from, "held_out": args.val_count})
    if new:
        made(new, command("inspect", new[0]))


def _parser() -> ArgumentParser:
    of = parser("prepare shapes", __doc__)
    of.add_argument("--out", type=Path, required=True, help="the store to make")
    of.add_argument("--val", type=Path | None, default=None, help="a held-out store to make as well")
    of.add_argument("--count", type=int, default=800, help="images")
    of.add_argument("--val_count", type=int, default=64, help="held-out images")
    of.add_argument("--planted", type=int, default=12, help="images of the rare concept among them")
    of.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    of.add_argument("--patch", type=int, default=4, help="side of a patch that becomes one latent pixel")
    of.add_argument("--channels", type=int, default=4, help="channels of a latent pixel")
    of.add_argument("--tokens", type=int, default=16, help="tokens of an encoded caption")
    of.add_argument("--dim", type=int, default=64, help="width of a token's state")
    of.add_argument("--flips", type=bool, default=False, help="store mirror images as well")
    of.add_argument("--seed", type=int, default=0, help="another seed is another set")
    return of


def _check(args: Namespace) -> None:
    at_least(args, count=1, val_count=1, planted=0, size=8, seed=0)
    if args.planted > args.count:
        raise UserError(f"--planted: found {args.planted}, expected at most --count, which is {args.count}")
    if args.val and args.val.absolute() == args.out.absolute():
        raise UserError(f"--val: found {args.val}, expected another path than --out")


def _scenes(seed: int, ids: range, planted: int) -> dict[int, Scene]:
    """Return scenes by id."""
    rare = set(planted_ids(seed, ids, planted))
    return {id: draw_scene(seed, id, id in rare) for id in ids}


def _drawn(scenes: dict[int, Scene], seed: int) -> Drawn:
    metas = {id: _meta(id, scene, seed) for id, scene in scenes.items()}
    return Drawn(metas, lambda id, size: render(scenes[id], size), thumbnail_scale=3)


def _meta(id: int, scene: Scene, seed: int) -> Meta:
    attributes = {"planted": scene.planted, "shape": scene.shape, "colour": scene.colour}
    return Meta(id, captions(scene), "CC0-1.0", f"generated: shapes, seed {seed}", attributes)
