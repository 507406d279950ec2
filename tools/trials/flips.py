"""Damaged files: a bit, a cut, bytes too many, a block of zeros, another file of the kind; then what reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from tools.trials import halves, known, own
from tools.trials.contents import Digests
from tools.trials.process import Ended
from tools.trials.project import PACK, stages
from tools.trials.trial import LIMIT, Bench, Trial, outcome
from tools.trials.verdict import Outcome, Verdict

#: Where a reader writes.
TRIAL = "runs/trial"


@dataclass(frozen=True)
class Reader:
    """A command that reads a file.

    Attributes:
        args: Of ``lightning-attr``.
        makes: Its results; none where what it prints is the result.
        removed: What must not be there when it starts, for it to read at all.
    """

    args: tuple[str, ...]
    makes: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        files: Patterns below the project.
        readers: The names of what reads it, in ``readers``.
        weight: How many trials it gets, relative to others.
        sealed: Whether the project knows what the file should hold. Where it does not, because others wrote it, damage
            that leaves it valid makes it another input.
        half: The name of an interrupted run, in ``halves``, whose folder is put in place first.
        own: Whether it is a finished result of what reads it, which need not read all of it: then damage that the next
            reader finds is harmless.
    """

    files: tuple[str, ...]
    readers: tuple[str, ...]
    weight: int = 1
    sealed: bool = True
    half: str | None = None
    own: bool = False


#: Where the commands over what a user brings put what they make in a trial.
OWN = dict.fromkeys(own.COMMANDS, f"{TRIAL}.lmdb") | {"explain": TRIAL, "prepare_model": TRIAL}

#: What commands over customised models make in a trial.
KNOWN = {"abc_make": ("runs/t/set",), "abc_read": ("runs/t",), "shares_fit": ("runs/t.safetensors",)}


def readers() -> Mapping[str, Reader]:
    """Return what reads files."""
    every = stages()
    anew = {
        name: Reader((*stage.args, "--trainer.default_root_dir", TRIAL), (TRIAL,))
        for name, stage in every.items()
        if stage.args[0] in ("fit", "predict", "test")
    }
    again = {f"{name} again": Reader(stage.args, stage.makes) for name, stage in every.items()}
    return {
        **anew,
        **again,
        "train on": Reader((*every["train"].args, "--trainer.max_steps", "8"), ("runs/train",)),
        "validate": Reader(("validate", *every["train"].args[1:])),
        "inspect": Reader(every["inspect"].args),
        "list": Reader(every["sweep_list"].args),
        "pack": Reader(every["sweep"].args, PACK, removed=PACK),
        "evaluate pack": Reader((*every["evaluate_pack"].args, "--json", "runs/trial.json"), ("runs/trial.json",)),
        "unpack": Reader(("evaluate", PACK[0], "--unpack", TRIAL), (TRIAL,)),
        "report": Reader(every["report"].args, every["report"].makes),
        "original": Reader(
            (*every["others"].args[:-1], TRIAL, "--model.init_args.checkpoints", '["runs/unpacked/original.ckpt"]'),
            (TRIAL,),
        ),
        "prepare_coco anew": Reader(every["prepare_coco"].args, ("runs/coco.lmdb",), ("runs/coco.lmdb",)),
        **{f"{name} anew": Reader((*every[name].args, "--out", trial), (trial,)) for name, trial in OWN.items()},
        **{f"{name} anew": Reader(tuple(known.ANEW[name].split()), made) for name, made in KNOWN.items()},
        "encoders": Reader(
            (*every["prepare_coco"].args, "--text_encoder", "CLIPText", "--text_encoder.source", "others/text",
             "--image_encoder", "AutoencoderKLEncoder", "--image_encoder.source", "others/vae",
             "--out", "runs/trial.lmdb"),
            ("runs/trial.lmdb",),
        ),
    }  # fmt: skip


KINDS: Mapping[str, Kind] = {
    "store": Kind(
        ("runs/train.lmdb",), ("attribute/trak", "attribute/similarity_pixel", "inspect", "train"), 8
    ),
    "validation store": Kind(("runs/val.lmdb",), ("train", "validate"), 2),
    "query store": Kind(("runs/sample/queries.lmdb",), ("attribute/trak", "unlearn/0", "pack"), 4),
    "coco store": Kind(("runs/coco.lmdb",), ("prepare_coco again",), 1, own=True),
    "checkpoint": Kind(("runs/train/checkpoints/last.ckpt",), ("attribute/trak", "train on", "validate", "sample"), 10),
    "curvature": Kind(("runs/curvature/curvature.safetensors",), ("attribute/influence_diagonal", "unlearn/0"), 3),
    "K-FAC": Kind(("runs/curvature_kfac/curvature.safetensors",), ("attribute/kfac",), 2),
    "EK-FAC": Kind(("runs/curvature_ekfac/curvature.safetensors",), ("attribute/influence_ekfac_per_draw",), 2),
    "factors": Kind(("others/factors_ekfac/*",), ("attribute/factors",), 3),
    "losses": Kind(("runs/base_losses.safetensors",), ("unlearn/0", "report"), 2),
    "scores": Kind(
        ("runs/attribute/trak/scores.safetensors",), ("leave_k_out", "evaluate pack", "evaluate", "report"), 4
    ),
    "top scores": Kind(("runs/attribute/top/scores.safetensors",), ("report",), 1),
    "unlearned weights": Kind(("runs/unlearn/*/weights.safetensors",), ("attribute/unlearning",), 2),
    "mirrored weights": Kind(("runs/mirrored/*/weights.safetensors",), ("attribute/mucs",), 2),
    "retraining": Kind(("runs/leave_k_out/retraining.safetensors",), ("evaluate", "report"), 2),
    "entry results": Kind(("runs/sweep/entries/**/retraining.safetensors",), ("pack",), 3),
    "entry files": Kind(
        ("runs/sweep/entries/**/entry.yaml", "runs/sweep/entries/**/config.yaml", "runs/sweep/entries/**/status.json",
         "runs/sweep/entries/**/manifest.json"),
        ("pack", "list"), 6,
    ),
    "sweep.json": Kind(("runs/sweep/sweep.json",), ("pack", "list", "report"), 2),
    "AbC set": Kind((f"{known.SET}/*",), ("abc_table again", "shares_check again"), 3),
    "customised model": Kind((f"{known.MODELS}/*/train/checkpoints/last.ckpt",), ("abc_make again", "abc_scores again"),
                             1, own=True),
    "scores of a set": Kind((known.SCORES,), ("abc_table again", "shares_fit anew"), 2),
    "ranks": Kind((known.RANKS,), ("abc_kept again",), 2),
    "shares": Kind((known.SHARES,), ("shares_check again",), 1),
    "clusters": Kind((known.CLUSTERS,), ("near again",), 1),
    "published layout": Kind((f"{known.LAYOUT}/**/*.*",), ("abc_read anew",), 2, sealed=False),
    "pack": Kind(PACK, ("evaluate pack", "unpack"), 6),
    "manifest": Kind(("runs/*/manifest.json", "runs/attribute/*/manifest.json"), ("report",), 5),
    "own manifest": Kind(
        ("runs/train/manifest.json", "runs/train/config.yaml", "runs/train/hparams.yaml"), ("train again",), 2
    ),
    "metrics": Kind(("runs/evaluate/metrics.json", "runs/packed/metrics.json"), ("report",), 5),
    "events": Kind(("runs/train/events.out*",), ("train on", "report"), 1),
    "network of others": Kind(("others/unet/*", "others/scheduler/*"), ("others",), 4, sealed=False),
    "vision of others": Kind(("others/vision/*",), ("attribute/vision",), 2, sealed=False),
    "encoders of others": Kind(("others/text/*", "others/vae/*"), ("encoders",), 3, sealed=False),
    "images": Kind(("coco/images/*",), ("prepare_coco anew",), 3, sealed=False),
    "captions": Kind(("coco/captions.json",), ("prepare_coco anew",), 3, sealed=False),
    "configs": Kind(
        ("configs/train.yaml", "configs/attribute_trak.yaml", "configs/sweep.yaml"),
        ("train", "attribute/trak", "list"), 2, sealed=False,
    ),
    "half a store": Kind(("runs/coco.lmdb.partial",), ("prepare_coco again",), 3, half="prepare_coco"),
    "half a training": Kind(("runs/train/**/*",), ("train again",), 4, half="train"),
    "half an attribution": Kind(("runs/attribute/trak/**/*",), ("attribute/trak again",), 4, half="attribute/trak"),
    "half a curvature": Kind(("runs/curvature_ekfac/**/*",), ("curvature_ekfac again",), 3, half="curvature_ekfac"),
    "half a loss sweep": Kind(
        ("runs/unlearn/0/**/*", "runs/base_losses*/**/*"), ("unlearn/0 again",), 4, half="unlearn/0"
    ),
    "half a retraining": Kind(("runs/leave_k_out/**/*",), ("leave_k_out again",), 3, half="leave_k_out"),
}  # fmt: skip

#: How many trials a weight of one is, of all that there are; the command takes a share of them.
PER_WEIGHT = 40

Damage = Callable[[bytes, Random], bytes]


def _place(data: bytes, random: Random) -> int:
    """Return a place in a file: anywhere, or in its beginning or end, where formats have their tables."""
    size = len(data)
    start, length = random.choice([(0, size), (0, size), (0, min(size, 4096)), (max(0, size - 2048), min(size, 2048))])
    return start + random.randrange(length)


def bit(data: bytes, random: Random) -> bytes:
    """Flip one bit."""
    damaged = bytearray(data)
    damaged[_place(data, random)] ^= 1 << random.randrange(8)
    return bytes(damaged)


def cut(data: bytes, random: Random) -> bytes:
    """Keep the beginning only."""
    return data[: random.choice([0, 1, len(data) // 2, len(data) - 1, _place(data, random)])]


def longer(data: bytes, random: Random) -> bytes:
    """Append bytes."""
    return data + random.choice([b"\0", b"\n", b"x", bytes(4096), random.randbytes(100)])


def zeros(data: bytes, random: Random) -> bytes:
    """Zero a block of a disk."""
    size = random.choice([64, 512, 4096])
    start = _place(data, random) // size * size
    return data[:start] + bytes(len(data[start : start + size])) + data[start + size :]


#: Damage by its name; what stands there more often is done more often.
DAMAGES: Sequence[tuple[str, Damage]] = [
    *[("bit", bit)] * 16,
    ("cut", cut),
    ("longer", longer),
    ("zeros", zeros),
    ("zeros", zeros),
]


def trials(whole: Path) -> Iterator[Trial]:
    """Yield trials over all kinds of files.

    Args:
        whole: The project; interrupted runs and the results of undamaged files are kept in it.
    """
    halves.make(whole)
    known = readers()
    for name, kind in KINDS.items():
        for number in range(kind.weight * PER_WEIGHT):
            yield Trial(f"flips/{name}/{number}", partial(_try, f"flips/{name}/{number}", kind, known))


def _try(name: str, kind: Kind, known: Mapping[str, Reader], bench: Bench, random: Random) -> Outcome:
    reader_name = random.choice(kind.readers)
    reader = known[reader_name]
    expected, printed = _undamaged(bench, reader_name, reader, kind.half)
    if kind.half is not None:
        halves.put_in_place(bench, kind.half)
    files = sorted(
        {
            path
            for pattern in kind.files
            for path in bench.folder.glob(pattern)
            if path.is_file() and path.stat().st_size
        }
    )
    target = random.choice(files)
    how, damage = random.choice(DAMAGES)
    target.write_bytes(damage(target.read_bytes(), random))
    more = f"{how} in {target.relative_to(bench.folder)}, read by {reader_name}"
    ended = _read(bench, reader)
    same, judged = True, None
    if ended.status == 0:
        found = bench.contents(reader.makes)
        same = found == expected if reader.makes else ended.out == printed
        same = same or (
            kind.own and all(found.get(path) == digest or "Error" in found[path] for path, digest in expected.items())
        )
        if not same:
            more += f"; another result: {_differences(found, expected) or 'what it prints'}"
            judged = _judge_page(ended, bench, target, reader)
    if same and any(path.name.endswith(".tmp") for path in bench.folder.rglob("*")):
        more += "; left a temporary file"
    return outcome(name, reader.args, ended, same or not kind.sealed, judged, more)


def _judge_page(ended: Ended, bench: Bench, target: Path, reader: Reader) -> Verdict | None:
    """Return that a result says itself that a file is damaged: a report does."""
    texts = [
        ended.out,
        ended.err,
        *((bench.folder / path).read_text(errors="replace") for path in reader.makes if path.endswith(".html")),
    ]
    name = (
        str(target.relative_to(bench.folder / "runs")) if target.is_relative_to(bench.folder / "runs") else target.name
    )
    said = any(name in text and ("damaged" in text or "not JSON" in text) for text in texts)
    return "clear" if said else None


def _read(bench: Bench, reader: Reader) -> Ended:
    for path in reader.removed:
        (bench.folder / path).unlink(missing_ok=True)
    return bench.command(reader.args, LIMIT)


def _undamaged(bench: Bench, name: str, reader: Reader, half: str | None) -> tuple[Digests, str]:
    """Return what a reader makes and prints without damage."""

    def run() -> Ended:
        if half is not None:
            halves.put_in_place(bench, half)
        return _read(bench, reader)

    makes, printed, _ = bench.untouched(f"undamaged/{name}, {half}", reader.makes, run)
    return makes, printed


def _differences(found: Digests, expected: Digests) -> str:
    names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    return ", ".join(f"{name} ({found.get(name, 'missing')[:60]})" for name in names[:3])
