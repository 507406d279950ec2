"""What a file of ours must hold beyond its checksum."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from miniature import Project

from lightning_attr.artifacts import load_artifact, save_tensors, write_atomically
from lightning_attr.artifacts.scores import load_scores
from lightning_attr.curvature.files import load_curvature
from lightning_attr.errors import UserError
from lightning_attr.ground_truth.retrained import load_retrained

READ = {
    "unlearn/scores": load_scores,
    "curvature/curvature": load_curvature,
    "leave_k_out/retraining": load_retrained,
}

WRONG_TENSORS = {
    "missing": None,
    "a number": torch.tensor(3.0),
    "empty": torch.empty(0),
    "other axes": torch.ones(2, 3, 1, 5),
    "of bits": torch.ones(4, dtype=torch.bool),
    "infinite": torch.full((1,), torch.inf),
}


@pytest.mark.parametrize("wrong", WRONG_TENSORS)
@pytest.mark.parametrize("file", [name for name in READ if name != "curvature/curvature"])
def test_tensors_of_another_form_are_refused(project: Project, tmp_path: Path, file: str, wrong: str) -> None:
    """With a right checksum: written by someone else, or by a bug."""
    tensors, header = load_artifact(project.root / f"{file}.safetensors")
    path = tmp_path / "file.safetensors"
    for name in tensors:
        changed = {**tensors, name: WRONG_TENSORS[wrong]}
        kept = {key: value for key, value in changed.items() if value is not None}
        save_tensors(path, header.kind, kept, header.settings, **header.words)
        with pytest.raises(UserError, match=rf"{path}: found .*{name}"):
            READ[file](path)


@pytest.mark.parametrize("wrong", [None, [], 3, {"a": 1}, "text"])
@pytest.mark.parametrize(
    ("file", "names"),
    [("leave_k_out/retraining", ("method", "k")), ("curvature/curvature", ("kind",))],
)
def test_settings_of_another_form_are_refused(
    project: Project, tmp_path: Path, file: str, names: tuple[str, ...], wrong: Any
) -> None:
    tensors, header = load_artifact(project.root / f"{file}.safetensors")
    path = tmp_path / "file.safetensors"
    for name in names:
        if type(wrong) is not type(header.settings[name]):
            save_tensors(path, header.kind, tensors, {**header.settings, name: wrong})
            with pytest.raises(UserError, match=rf"{path}: found {name} of type"):
                READ[file](path)
    save_tensors(path, header.kind, tensors, {})
    with pytest.raises(UserError, match=f"{path}: found no"):
        READ[file](path)


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: found a device or a pipe"):
        write_atomically(tmp_path / "pipe", b"words")
    assert (tmp_path / "pipe").is_fifo()
