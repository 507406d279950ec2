"""What to do after a run: the next stage of its experiment, or the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lightning_attr.console import command
from lightning_attr.runs.identity import declared_paths

Stages = Sequence[tuple[str, Sequence[str]]]
"""Verbs, and configs that lie beside each other or one folder above."""

#: The stages that lead to scores by the default method.
FROM_SCRATCH: Stages = (
    ("predict", ["sample.yaml"]),
    ("fit", ["virtual_steps.yaml"]),
    ("predict", ["attribute.yaml", "methods/default.yaml"]),
)
#: The same of a model that starts from a base.
FINE_TUNE: Stages = (
    ("predict", ["sample.yaml"]),
    ("fit", ["curvature_ekfac.yaml"]),
    ("predict", ["attribute.yaml", "methods/adapter.yaml"]),
)


def next_command(configs: Iterable[str], run: Path) -> str:
    """Return the first stage beside a run's configs that has not begun and has all that it reads; else the report.

    The report is of the folder that the stages share; of the run alone where there are no others.
    """
    folders = [run]
    for config in configs:
        for verb, names in stages_beside(Path(config)):
            files = [_found(Path(config).parent, name) for name in names]
            if (stage := _read(files)) is None:
                continue
            folder, inputs = stage
            if all(Path(path).exists() for path in inputs) and not (folder / "manifest.json").exists():
                return command(verb, *(word for file in files for word in ("-c", file)))
            if folder.parent in run.parents:
                folders.append(folder.parent)
    return command("report", min(folders, key=lambda folder: len(folder.parts)))


def stages_beside(config: Path) -> Stages:
    """Return the stages of a config's experiment: a fine-tune's where the training beside it starts from a base."""
    try:
        base = OmegaConf.select(OmegaConf.load(config.with_name("train.yaml")), "model.init_args.base")
    except Exception:  # as below
        return FROM_SCRATCH
    return FROM_SCRATCH if base is None else FINE_TUNE


def _found(folder: Path, name: str) -> Path:
    above = folder.parent / name
    return above if above.is_file() and not (folder / name).is_file() else folder / name


def _read(files: Sequence[Path]) -> tuple[Path, list[str]] | None:
    """Return the folder and the inputs of a stage; None where a file of the user's is no stage of ours."""
    try:
        merged = OmegaConf.merge(*(OmegaConf.load(file) for file in files))
        config: Any = OmegaConf.to_container(merged, resolve=True)
        inputs = declared_paths([config.get("model"), config.get("data")])
        return Path(config["trainer"]["default_root_dir"]), [path for _, path in inputs]
    except Exception:  # whatever it is, or the modules that it names do: the run that asks is done
        return None
