"""Which training images made this output: ``lightning-attr explain --model MODEL --images SOURCE --query FILE``.

MODEL is the folder of a diffusers pipeline or a checkpoint of this project; --lora names a fine-tune of it. SOURCE is
where the images lie that it was trained on: a folder, a table, shards, or a store. A query is an image that the model
made, a folder of them, a .jsonl, or a query store. All that is made goes into --out: the stores, a config of every
stage, the scores, report.html and answer.json. Started again after a stop, the same command goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from datamodules.grouping import NONE, read_groups
from datamodules.store import Store
from lightning_attr.artifacts import read_json, write_json
from lightning_attr.artifacts.scores import Scores
from lightning_attr.cli import SAVED, FinishedError, run_stage
from lightning_attr.commands.explain.answer import answer, show
from lightning_attr.commands.explain.estimate import Estimate, check_fits, estimated, free_memory, measured
from lightning_attr.commands.explain.plan import (
    CONFIGS,
    Question,
    Removal,
    Stage,
    check_files,
    configs,
    group_removal,
    measurements,
    random_removal,
    removals_of,
    retrainings,
    text,
    write,
    written_batch_size,
)
from lightning_attr.commands.prepare import main as prepare
from lightning_attr.commands.prepare.queries import read_queries
from lightning_attr.commands.report.command import main as report
from lightning_attr.commands.targets import expect_own
from lightning_attr.console import Stopped, as_steps, command, made, note, out, summary
from lightning_attr.contributors import contributors, own_grouping
from lightning_attr.curvature.sums import linear_layers
from lightning_attr.digests import file_digest
from lightning_attr.errors import UserError
from lightning_attr.models import Model, load
from lightning_attr.models.denoiser import ADAPTER
from lightning_attr.models.spec import write_spec
from lightning_attr.options import at_least, parsed, parser
from lightning_attr.shares import Shares
from lightning_attr.sources.auto import open_source
from lightning_attr.sources.base import Faults
from lightning_attr.sources.table import Columns


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    of = parser("explain", __doc__)
    of.add_argument("--model", type=Path, required=True, help="folder of a pipeline, or a checkpoint")
    of.add_argument("--lora", type=Path | None, default=None, help="its fine-tune: a LoRA file")
    of.add_argument("--alpha", type=float | None, default=None, help="of the LoRA, where its file lost it")
    of.add_argument("--variant", type=str | None, default=None, help="which weights of the folder, such as fp16")
    of.add_argument("--images", type=Path, required=True, help="the training images: a source or a store")
    of.add_argument("--query", action="append", required=True, help="an image to explain; may be given several times")
    of.add_argument("--prompt", type=str | None, default=None, help="by which they were made, where no file says it")
    of.add_argument("--out", type=Path, required=True, help="the folder of the answer")
    of.add_argument("--size", type=int | None, default=None, help="side of the images in pixels, default the model's")
    of.add_argument("--weights", type=str | None, default=None, help="which weights are looked at")
    of.add_argument("--draws", type=int, default=20, help="timesteps at which gradients are taken")
    of.add_argument("--check", type=int | None, default=None, help="retrain without so many images")
    of.add_argument("--train", type=Path | None, default=None, help="the config of the training, for --check")
    of.add_argument("--grouping", type=str | None, default=None, help="whose groups contribute: an attribute or a file")
    of.add_argument("--shares", type=Path | None, default=None, help="show shares: a file of lightning-attr shares fit")
    of.add_argument("--dry_run", "--dry-run", action="store_true", help="print the configs and an estimate")
    args = parsed(of, arguments)
    at_least(args, size=1, draws=1, check=1)
    expect_own("--out", args.out, "model.yaml", "train.lmdb*", "queries.lmdb*", f"{CONFIGS}/curvature.yaml")
    _check_uses(args)
    if args.shares is not None:
        Shares.load(args.shares).expect_calibrated(args.shares)
    recipe = _recipe(args) if args.check is not None else None
    samples, showings, queries = _counted(args)
    asked, model = _model(args)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = args.weights or (ADAPTER if model.denoiser.adapter else "attention")
    linear_layers(model.network, model.select(weights), "ekfac")  # refuses others before anything is made
    speed = measured(model.to(device), weights, written_batch_size(args.out))
    estimate = estimated(speed, samples, showings, queries, args.draws, free_memory(device))
    store = args.images if is_store(args.images) else args.out / "train.lmdb"
    query_store = Path(args.query[0]) if is_store(Path(args.query[0])) else args.out / "queries.lmdb"
    question = Question(args.out, asked, store, query_store, weights, args.draws, speed.batch_size, args.check, recipe)
    preparations = list(_preparations(question, args, device))
    if args.dry_run:
        _show_plan(question, range(queries), preparations, estimate)
        return
    check_fits(estimate, queries)
    if asked != args.model:
        _write_spec(asked, args)
    with as_steps():
        for words in preparations:
            prepare([*words, *(["-q"] if out.quiet else [])])
    removals = removals_of(question, [int(query) for query in Store(query_store).ids])
    write(configs(question, removals))
    with Store(store) as images:
        grouping = args.grouping or own_grouping(images)
        if grouping is not None:
            read_groups(images, grouping)  # a mistake shows before anything is measured
    finished = _run(measurements(question))
    if args.check is not None and args.grouping is not None:
        removals += first_group(question, args.grouping)
        write(configs(question, removals))
    finished = _run(retrainings(removals, question)) and finished
    _answer(question, check_files(question, removals), grouping, args.shares, finished)


def _run(stages: Sequence[Stage]) -> bool:
    """Run stages, and return whether all had been finished before."""
    finished = True
    for stage in stages:
        note(stage.name)
        try:
            with as_steps():
                run_stage([*stage.words, *(["-q"] if out.quiet else [])])
            finished = False
        except FinishedError:
            continue
        except SIGTERMException as stopped:
            raise Stopped(int(stopped.code or 143), SAVED) from None
    return finished


def first_group(question: Question, grouping: str) -> list[Removal]:
    """Return the removals of the first contributor and of as many random images; none where nothing would be left."""
    with Store(question.store) as store:
        scores = Scores.load(question.scores["influence"])
        first = contributors(read_groups(store, grouping, scores.sample_id.numpy()), scores)[0]
        if first.group == NONE or first.images == len(store):
            note(f"not checked without {first.group!r}: no other group has images to train on")
            return []
    own = group_removal(grouping, first.group, first.images)
    return [own] if first.images == question.check else [own, random_removal(first.images)]


def _answer(
    question: Question,
    check: Mapping[str, tuple[Path, Path]],
    grouping: str | None,
    shares: Path | None,
    finished: bool,
) -> None:
    """Write and show what came out of all stages; nothing is written where it is there."""
    target = question.run / "answer.json"
    with Store(question.queries) as queries, Store(question.store) as store:
        found = answer(queries, store, question.scores, check, grouping, shares)
    finished = finished and target.exists() and read_json(target) == found
    if not finished:
        write_json(target, found)
        shown = {"--grouping": grouping, "--shares": shares}
        words = [word for name, value in shown.items() if value is not None for word in (name, str(value))]
        with as_steps():
            report([str(question.run), *words, *(["-q"] if out.quiet else [])])
    show(found)
    if finished:
        note(f"{question.run}: finished already, nothing to do")
    else:
        made([target, question.run / "report.html"])


def _check_uses(args: Any) -> None:
    """Refuse options that nothing would look at.

    Raises:
        UserError: There is one.
    """
    unused = {
        "--prompt": args.prompt is not None and is_store(Path(args.query[0])),
        "--size": args.size is not None and is_store(args.images),
        "--alpha": args.alpha is not None and args.lora is None,
        "--variant": args.variant is not None and not args.model.is_dir(),
        "--train": args.train is not None and args.check is None,
    }
    for option, is_unused in unused.items():
        if is_unused:
            raise UserError(f"{option}: found it where nothing uses it, expected none")


def _recipe(args: Any) -> Path:
    """Return the config by which the model was trained: given, or kept beside a checkpoint of ours.

    Raises:
        UserError: It is not known.
    """
    kept = args.model.parent.parent / "config.yaml"
    recipe: Path = args.train or kept
    if args.train is None and (args.lora is not None or args.model.suffix != ".ckpt"):
        raise UserError(
            f"--check: found no recipe of {args.lora or args.model}, which was not trained here; expected --train with "
            "the config of its training"
        )
    if not recipe.is_file():
        raise UserError(f"--check: found no {recipe}, expected the config of the training; give --train")
    return recipe


def _model(args: Any) -> tuple[Path, Model]:
    """Return what names the model for all stages, a checkpoint itself or a spec in the folder of the answer; and it.

    Raises:
        UserError: The folder holds the answer of another model.
    """
    if args.model.suffix == ".ckpt" and args.lora is None:
        return args.model, load(args.model)
    spec: Path = args.out / "model.yaml"
    with TemporaryDirectory() as scratch:
        asked = _write_spec(Path(scratch) / spec.name, args)
        if spec.exists() and file_digest(spec) != file_digest(asked):
            raise UserError(f"{spec}: names another model or adapter, or other contents of them; choose another --out")
        return spec, load(asked)


def _write_spec(path: Path, args: Any) -> Path:
    write_spec(path, args.model, args.lora, args.alpha, args.variant)
    return path


def is_store(path: Path) -> bool:
    """Return whether a path is that of a store."""
    return path.is_file() and path.suffix == ".lmdb"


def _counted(args: Any) -> tuple[int, int, int]:
    """Return the numbers of training images, of their showings and of queries, before any of them is encoded.

    Raises:
        UserError: There are none.
    """
    if is_store(args.images):
        weights = [int(weight) for weight in Store(args.images).weights]
    else:
        faults = Faults(skip=True)
        records = open_source(str(args.images), None, None, Columns(), faults).records(faults)
        weights = [record.weight for record in records]
    paths = [Path(query) for query in args.query]
    if stores := [path for path in paths if is_store(path)]:
        if len(paths) > 1:
            raise UserError(f"--query: found {stores[0]} and others, expected one store, or images")
        return len(weights), sum(weights), len(Store(stores[0]))
    return len(weights), sum(weights), len(read_queries(paths, args.prompt))


def _preparations(question: Question, args: Any, device: torch.device) -> Iterator[list[str]]:
    """Yield the words of the commands that make the stores, where they are not given."""
    if question.store != args.images:
        size = [] if args.size is None else ["--size", str(args.size)]
        source = [str(args.images), "--out", str(question.store), "--model", str(question.model)]
        yield ["images", *source, *size, "--device", str(device)]
    if not is_store(Path(args.query[0])):
        prompt = [] if args.prompt is None else ["--prompt", args.prompt]
        source = [*args.query, "--out", str(question.queries), "--encoders_from", str(question.store)]
        yield ["queries", *source, *prompt, "--device", str(device)]


def _show_plan(
    question: Question, ids: Sequence[int], preparations: Sequence[Sequence[str]], estimate: Estimate
) -> None:
    """Print the configs, the commands and the estimate."""
    removals = removals_of(question, ids)
    for path, config in configs(question, removals).items():
        out.print(f"# {path}", soft_wrap=True)
        out.print(text(config), soft_wrap=True)
    stages = [*measurements(question), *retrainings(removals, question)]
    for words in [*(["prepare", *words] for words in preparations), *(stage.words for stage in stages)]:
        out.print(command(*words), soft_wrap=True)
    rows: list[tuple[str, object]] = [(name, f"{seconds:,.0f} s") for name, seconds in estimate.seconds.items()]
    rows += [
        ("memory", f"{estimate.memory / 1e9:.2f} GB of gradients, {estimate.free / 1e9:.2f} GB are free"),
        ("disk", f"{estimate.disk / 1e6:,.1f} MB"),
        ("batch", f"{question.batch_size} images"),
    ]
    summary("estimate, from the speed of this machine", rows)
