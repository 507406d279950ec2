"""``lightning-attr fit|validate|test|predict -c CONFIG``."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from pydoc import locate
from typing import Any

import lightning.pytorch as pl
from jsonargparse import set_parsing_settings
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

import lightning_attr.tasks  # noqa: F401 (makes the tasks known by their class names)
from callbacks import TopImages
from lightning_attr.console import Stopped, ending, made, note, out, summary
from lightning_attr.errors import UserError, expect_within
from lightning_attr.options import check_values, check_yaml, config_files, user_errors
from lightning_attr.runs.checkpoints import AtomicCheckpointIO, RunCheckpoint, read_to_resume
from lightning_attr.runs.folder import RunFolder
from lightning_attr.runs.following import next_command
from lightning_attr.runs.lock import locked
from lightning_attr.runs.ranks import (
    OneProcess,
    begin_ranks,
    check_ranks,
    ending_together,
    follow_parent,
    one_speaker,
    starts_ranks,
    this_rank,
)
from lightning_attr.runs.stopping import GracefulStop
from lightning_attr.runs.whole import check_trainer

#: What Lightning says about choices that are ours, not the user's.
QUIET = (
    ".*does not have many workers.*",
    ".*`training_step` returned `None`.*",
    ".*predict returned None.*",
    ".*no `validation_step`.*",
    ".*returned `None`, this fit will run with no optimizer.*",
    ".*is smaller than the logging interval.*",
    ".*in eval mode at the start of training.*",
    ".*LeafSpec.*",
    ".*Total length of `list` across ranks is zero.*",
    ".*but have no `val_dataloader`.*",
    ".*args parameter is intended to run.*",
    ".*GPU available but not used.*",
    ".*WeightAveraging callback, but loading a checkpoint outside.*",
    ".*Unable to serialize instance.*",
)

#: What a task must have for each verb.
STEPS = {"fit": "training_step", "validate": "validation_step", "test": "test_step", "predict": "predict_step"}

#: The class of the settings under ``checkpoint``.
CHECKPOINT = f"{RunCheckpoint.__module__}.{RunCheckpoint.__name__}"

#: Groups of settings without a class of their own: a list in their place would be taken for none.
GROUPS = ("checkpoint", "trainer")

#: What is said of a run that a signal stopped.
SAVED = "stopped and saved; the same command goes on from here"

#: Seconds to wait for another process that has the run's folder: it may be saving, or dying.
PATIENCE = 5.0


class FinishedError(Exception):
    """The run is finished already."""


class AttributionCLI(LightningCLI):
    """LightningCLI with one folder per run, which the same command resumes.

    Args:
        verb: The one that is asked for: the options of all four take four times as long to learn.
        until_end: What is entered here is left when the run has ended.
        settings: Those of ``LightningCLI``, which runs the verb at once.
    """

    def __init__(self, verb: str, until_end: ExitStack, **settings: Any) -> None:
        self.verb = verb
        self.until_end = until_end
        super().__init__(**settings)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the verb that is asked for, or all of them where it is none of them."""
        verbs = LightningCLI.subcommands()
        return {self.verb: verbs[self.verb]} if self.verb in verbs else verbs

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``-q``; ``vars``, free values for interpolation; and ``checkpoint``, how often to save."""
        parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
        parser.add_argument("--vars", type=dict[str, Any] | None, help="Free values that ${vars.NAME} refers to.")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.link_arguments("trainer.default_root_dir", "checkpoint.dirpath", compute_fn=checkpoint_folder)

    def _parse_ckpt_path(self) -> None:
        """Keep config and command line in force: Lightning would let a checkpoint's hyperparameters override them."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Note whether this program is what the user's command line started."""
        self.from_python = args is not None
        super().parse_arguments(parser, args)

    def _set_seed(self) -> None:
        """Check the seed before Lightning does."""
        if not isinstance(seed := self._get(self.config, "seed_everything"), bool):
            expect_within("seed_everything", seed, 0, 2**32 - 1)
        super()._set_seed()

    @property
    def folder(self) -> RunFolder:
        """Return the folder of this run."""
        path = self._get(self.config, "trainer").default_root_dir
        if not path or "://" in str(path):
            found = f"found {path}" if path else "missing"
            raise UserError(f"trainer.default_root_dir: {found}, expected the folder of this run, such as runs/NAME")
        return RunFolder(path)

    def before_instantiate_classes(self) -> None:
        """Compare the run's folder with the config, and find the checkpoint to resume from."""
        out.quiet = out.quiet or self._get(self.config, "quiet")
        for key, value in self.config[self.subcommand].as_dict().items():
            check_values(key, {"class_path": CHECKPOINT, "init_args": value} if key == "checkpoint" else value)
        begin_ranks(self._get(self.config, "trainer"))
        self._check_verb()
        if self.subcommand == "validate":
            self._resume(must_exist=True)
            return
        self._dump_config()
        config = {key: value for key, value in self.config_dump.items() if key not in ("config", "quiet", "vars")}
        if not self._start(config):
            raise FinishedError(f"{self.folder.path}: finished already, nothing to do")
        if self.subcommand == "fit":
            self._resume(must_exist=self.config.fit.ckpt_path == "last")

    def _check_verb(self) -> None:
        """Check that the task does what the verb asks for.

        Raises:
            UserError: It is a task of another verb, and the message says of which.
        """
        path = self._get(self.config, "model").class_path
        task = locate(path)
        able = [
            verb for verb, step in STEPS.items() if getattr(task, step, None) is not getattr(pl.LightningModule, step)
        ]
        if self.subcommand not in able:
            found = f"{path.rpartition('.')[2]}, a task to {' and '.join(able) or 'do nothing'}"
            raise UserError(f"model: found {found}, expected one to {self.subcommand}")

    def _start(self, config: dict[str, Any]) -> bool:
        """Return whether there is anything to do. The folder is rank 0's: others only read it."""
        if this_rank() > 0:
            return not self.folder.finished(config)
        self.until_end.enter_context(locked(self.folder.path, PATIENCE))
        return self.folder.start(str(self.subcommand), config)

    def _resume(self, must_exist: bool) -> None:
        """Continue from the run's last checkpoint where the user names no other one."""
        config = self.config[self.subcommand]
        if config.ckpt_path not in (None, "last"):
            if not Path(config.ckpt_path).is_file():
                raise UserError(f"ckpt_path: found {config.ckpt_path}, expected last or a file that is there")
            return
        last = self.folder.last_checkpoint
        if last.exists():
            config.ckpt_path = str(last)
        elif must_exist:
            raise UserError(f"{last}: no such checkpoint; {self.subcommand} expects the one of a run")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Add what every run has: TensorBoard in its folder, safe checkpoints, a graceful stop, a progress bar."""
        config = self._get(self.config_init, "trainer")
        check_trainer(str(self.subcommand), config)
        if config.logger in (None, True) and self.subcommand != "validate":
            kwargs["logger"] = self._tensorboard()
        plugins = config.plugins if isinstance(config.plugins, list) else [config.plugins] if config.plugins else []
        kwargs["plugins"] = [AtomicCheckpointIO(self.subcommand == "fit"), *plugins]
        if not begin_ranks(config) and not any(isinstance(each, ClusterEnvironment) for each in plugins):
            kwargs["plugins"].append(OneProcess())
        terminal = sys.stderr.isatty() and not out.quiet
        kwargs["enable_progress_bar"] = terminal and config.enable_progress_bar is not False
        trainer = super().instantiate_trainer(**kwargs)
        check_ranks(trainer, config.strategy)
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        callbacks.insert(0, GracefulStop())
        if self.subcommand == "predict" and not any(isinstance(callback, TopImages) for callback in callbacks):
            callbacks.append(TopImages())
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the verb on this rank, and the other ranks with it."""
        if starts_ranks(self.trainer) and self.from_python:
            raise UserError(
                f"trainer.devices: found {self.trainer.world_size} ranks, expected 1 where a program runs the stage "
                "itself: further ranks would start that program again; run the command lightning-attr instead"
            )
        if subcommand in ("validate", "test"):
            self.config_init[subcommand].verbose = False  # Lightning's own table cuts names off
        try:
            with ending_together(self.trainer):
                super()._run_subcommand(subcommand)
            if subcommand in ("validate", "test") and self.trainer.is_global_zero:
                metrics = self.trainer.callback_metrics
                summary(subcommand, [(name, f"{float(value):.4g}") for name, value in sorted(metrics.items())])
        except SystemExit as end:
            if isinstance(end.__context__, KeyboardInterrupt):  # a second Ctrl-C, which Lightning makes a status 1
                raise end.__context__ from None
            raise

    def _tensorboard(self) -> TensorBoardLogger:
        checkpoint = self._get(self.config, "ckpt_path") if self.subcommand == "fit" else None
        step = 0
        if checkpoint is not None:
            step = int(read_to_resume(checkpoint)["global_step"])
            note(f"resuming from {checkpoint}, step {step}")
        # Points that a killed run wrote after its last checkpoint are dropped, so that the curves stay single. The
        # batch that makes step n + 1 is point n.
        return TensorBoardLogger(self.folder.path, name="", version="", default_hp_metric=False, purge_step=step)

    def _finish(self) -> None:
        if self.trainer.is_global_zero:
            self.folder.finish(getattr(self.model, "makes", ()))

    after_fit = after_test = after_predict = _finish


def checkpoint_folder(root: Any) -> str | None:
    """Return the folder of a run's checkpoints."""
    return None if root is None else str(RunFolder(root).last_checkpoint.parent)


def run_stage(args: list[str] | None) -> AttributionCLI:
    """Run the stage that the arguments name, in this process.

    Raises:
        FinishedError: The run is finished already.
        UserError: The config, a file or the data are not what the stage needs.
        SIGTERMException: The run was stopped, after saving a checkpoint.
    """
    quiet()
    begin_ranks()
    follow_parent()
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    with one_speaker(no_error=FinishedError), user_errors():
        check_yaml(sys.argv[1:] if args is None else args, GROUPS)
        return _run(args)


def _run(args: list[str] | None) -> AttributionCLI:
    with ExitStack() as until_end:
        return _cli(args, until_end)


def _cli(args: list[str] | None, until_end: ExitStack) -> AttributionCLI:
    words = sys.argv[1:] if args is None else args
    return AttributionCLI(
        words[0] if words else "",
        until_end,
        args=args,
        seed_everything_default=0,
        save_config_callback=None,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False, "allow_abbrev": False},
        trainer_defaults={
            "use_distributed_sampler": False,  # LatentDataModule shards by itself, exactly
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
        },
    )


def main(args: list[str] | None = None) -> None:
    """Run a stage and exit with a status: 0 done, 1 the user's mistake, 130 for Ctrl-C, 143 for SIGTERM."""
    out.quiet = False  # until -q is read
    with ending("the same command goes on from the last checkpoint"):
        try:
            _say_made(run_stage(args), config_files(sys.argv[1:] if args is None else args))
        except FinishedError as finished:
            note(str(finished))
        except SIGTERMException as stopped:
            status = int(stopped.code or 128 + signal.SIGTERM)
            raise Stopped(status, SAVED) from None


def _say_made(cli: AttributionCLI, configs: Sequence[str]) -> None:
    """Say which files of its folder the run made."""
    folder = cli.folder.path
    files = [folder / name for name in getattr(cli.model, "makes", ()) if (folder / name).exists()]
    if files and cli.subcommand != "validate" and cli.trainer.is_global_zero:
        made(files, next_command(configs, folder))


def quiet() -> None:
    """Silence what Lightning says about its own defaults; its warnings about the user's run stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in QUIET:
        warnings.filterwarnings("ignore", message)


if __name__ == "__main__":
    main()
