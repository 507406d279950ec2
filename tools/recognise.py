r"""Say whether generated drawings can be recognised: ``python -m tools.recognise``.

    lightning-attr prepare drawings --out runs/base/reader.lmdb --count 30000 --seed 7 \
        --encoders_from runs/base/train.lmdb
    lightning-attr predict -c configs/base/sample.yaml
    python -m tools.recognise

A small network learns to read the thing, the colour and the artist from the latents of real drawings. It then reads
real drawings that it has not seen, and drawings that a model has made of captions that name all three. The first line
is needed where there is no reader yet: one is kept in ``benchmarks/base``.

Shapes: B drawings, C x h x w a latent, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from rich.table import Table
from torch import Tensor, nn

from datamodules.store import Store
from lightning_attr.artifacts import load_tensors, save_tensors, write_json
from lightning_attr.console import print_table, progress, run
from lightning_attr.drawings.artists import artist_name
from lightning_attr.drawings.drawing import COLOURS, PLURALS
from lightning_attr.drawings.things import THINGS
from lightning_attr.encoders.store import check_encoders, encoders_digest

ARTISTS = 60
KIND = "reader"
CLASSES: Mapping[str, tuple[str, ...]] = {
    "thing": tuple(THINGS),
    "colour": tuple(COLOURS),
    "artist": tuple(artist_name(number) for number in range(ARTISTS)),
}
"""What is read, and what it may be."""
SINGLE = "thing, of one"
"""What the accuracy of reading the thing is called for drawings of a single one."""

_SINGULAR = {plural: noun for noun, plural in PLURALS.items()} | {f"{noun}s": noun for noun in THINGS}


class Reader(nn.Module):
    """Reads latents [B, C, h, w] with a small convolutional network; one head for each of ``CLASSES``."""

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        wide = [channels, width, width, 2 * width, 2 * width, 4 * width]
        strides = [1, 1, 2, 1, 2]
        layers: list[nn.Module] = []
        for (before, after), stride in zip(pairwise(wide), strides, strict=True):
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleDict(
            {name: nn.Sequential(nn.Dropout(0.3), nn.Linear(8 * width, len(kinds))) for name, kinds in CLASSES.items()}
        )

    def forward(self, latents: Tensor) -> dict[str, Tensor]:
        """Return the logits [B, K] of each head."""
        seen = self.body(latents)
        pooled = torch.cat([seen.mean((2, 3)), seen.amax((2, 3))], dim=1)
        return {name: head(pooled) for name, head in self.heads.items()}


class Drawings(NamedTuple):
    """Drawings and what their first captions say."""

    latents: Tensor
    """[B, C, h, w]."""
    classes: dict[str, Tensor]
    """What they name, by head, each [B]."""
    single: Tensor
    """Whether of one thing, not two or three, bool [B]."""


def read_store(path: Path) -> Drawings:
    """Read all drawings of a store."""
    with Store(path) as store:
        latents = torch.from_numpy(np.asarray(store.read("latent", range(len(store))))).float()[:, 0]
        captions = [store.meta(position).captions[0] for position in range(len(store))]
    named = [classes_of(caption) for caption in captions]
    classes = {name: torch.tensor([each[name] for each in named]) for name in CLASSES}
    return Drawings(latents, classes, torch.tensor([caption.split()[0] in ("a", "an") for caption in captions]))


def classes_of(caption: str) -> dict[str, int]:
    """Return the place of a caption's thing, colour and artist among ``CLASSES``."""
    words = [_SINGULAR.get(word, word) for word in caption.split()]
    return {name: next(kinds.index(word) for word in words if word in kinds) for name, kinds in CLASSES.items()}


def train(drawings: Drawings, epochs: int, batch_size: int = 128) -> Reader:
    """Train a reader."""
    torch.manual_seed(0)
    latents, classes = drawings.latents, drawings.classes
    reader = Reader(latents.shape[1])
    steps = epochs * (len(latents) // batch_size)
    optimizer = torch.optim.AdamW(reader.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    with progress("steps") as bar:
        task = bar.add_task("train", total=steps)
        for _ in range(epochs):
            for rows in _batches(len(latents), batch_size):
                logits = reader(latents[rows])
                loss = torch.stack([F.cross_entropy(logits[name], classes[name][rows]) for name in CLASSES]).sum()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                bar.advance(task)
    return reader.eval()


def kept(path: Path, store: Path, epochs: int) -> Reader:
    """Read a reader, or train one on a store and keep it."""
    if not path.exists():
        made = train(read_store(store), epochs)
        settings = {"encoders": encoders_digest(Store(store)), "store": Store(store).digest, "epochs": epochs}
        save_tensors(path, KIND, made.state_dict(), settings)
    tensors, _ = load_tensors(path, KIND)
    reader = Reader(tensors["body.0.weight"].shape[1])
    reader.load_state_dict(tensors)
    return reader.eval()


def _batches(count: int, size: int) -> Iterator[Tensor]:
    """Yield the rows of full batches in a random order."""
    order = torch.randperm(count)
    for start in range(0, count - size + 1, size):
        yield order[start : start + size]


@torch.no_grad()
def accuracies(reader: Reader, drawings: Drawings) -> dict[str, float]:
    """Return the share of drawings that are read rightly, by head, and of the thing where there is only one."""
    logits = reader(drawings.latents)
    right = {name: (logits[name].argmax(1) == drawings.classes[name]).float() for name in CLASSES}
    return {name: each.mean().item() for name, each in right.items()} | {
        SINGLE: right["thing"][drawings.single].mean().item()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the tool."""
    parser = ArgumentParser(prog="python -m tools.recognise", description=__doc__)
    parser.add_argument(
        "--reader", type=Path, default=Path("benchmarks/base/reader.safetensors"), help="made if missing"
    )
    parser.add_argument("--train", type=Path, default=Path("runs/base/reader.lmdb"), help="drawings to learn from")
    parser.add_argument("--real", type=Path, default=Path("runs/base/val.lmdb"), help="drawings to be read")
    parser.add_argument("--generated", type=Path, default=Path("runs/base/sample/queries.lmdb"), help="and these")
    parser.add_argument("--epochs", type=int, default=8, help="of training")
    parser.add_argument("--json", type=Path | None, default=None, help="write the accuracies to this file as well")
    args = parser.parse_args(arguments)
    reader = kept(args.reader, args.train, args.epochs)
    for store in (args.real, args.generated):
        check_encoders(Store(store), load_tensors(args.reader, KIND)[1]["encoders"], str(args.reader))
    real, generated = (accuracies(reader, read_store(store)) for store in (args.real, args.generated))
    table = Table("read", "real", "generated", "generated / real")
    for name in real:
        share = f"{generated[name] / real[name]:.3f}" if real[name] else "-"
        table.add_row(name, f"{real[name]:.3f}", f"{generated[name]:.3f}", share)
    print_table(table)
    if args.json is not None:
        write_json(args.json, {"real": real, "generated": generated})


if __name__ == "__main__":
    run(main)
