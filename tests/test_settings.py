"""Wrong settings of every verb are one line with status 1, before anything is trained; right ones work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from damage import Refused, assert_says
from miniature import Project

from lightning_attr.artifacts import read_json
from lightning_attr.artifacts.checkpoint_files import read_checkpoint
from lightning_attr.cli import main


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"check_val_every_n_epoch": 1, "val_check_interval": 100}, ["val_check_interval", "100"]),
        ({"val_check_interval": 0}, ["trainer.val_check_interval", "0"]),
        ({"limit_train_batches": 0.01}, ["limit_train_batches"]),
        ({"accumulate_grad_batches": 0}, ["trainer.accumulate_grad_batches", "0", "at least 1"]),
        ({"gradient_clip_val": ".nan"}, ["trainer.gradient_clip_val", "nan"]),
        ({"devices": "x"}, ["devices"]),
        ({"devices": 9999}, ["trainer.devices", "9999", "at most"]),
        ({"accelerator": "tpu"}, ["torch_xla"]),
        ({"strategy": "nonsense"}, ["strategy", "nonsense"]),
        ({"strategy": "ddp_fork"}, ["trainer.strategy", "ddp_fork", "expected auto or ddp"]),
        ({"logger": "WandbLogger"}, ["wandb"]),
        ({"precision": "16-mixed"}, ["trainer.precision", "16-mixed", "bf16-mixed"]),
        ({"precision": "bf16-true"}, ["trainer.precision", "bf16-true", "32-true"]),
        ({"max_steps": -1}, ["trainer", "an end"]),
        ({"overfit_batches": 2}, ["trainer.overfit_batches", "2"]),
        ({"default_root_dir": "s3://bucket/x"}, ["trainer.default_root_dir", "s3://bucket/x"]),
        ({"default_root_dir": "/dev/null/x"}, ["/dev/null"]),
        ({"callbacks": '[{"class_path": "callbacks.EMA", "init_args": {"decay": null}}]'}, ["decay", "null", "float"]),
    ],
)
def test_trainer(
    project: Project, tmp_path: Path, refused: Refused, settings: dict[str, object], words: list[str]
) -> None:
    trainer = {f"trainer__{name}": value for name, value in settings.items()}
    message = refused(project.args("train", tmp_path / "run", **trainer))
    assert_says(message, *words)
    assert len(message) < 600


@pytest.mark.parametrize(
    ("verb", "stage", "task"),
    [("predict", "train", "LatentDiffusion"), ("test", "curvature", "Curvature"), ("validate", "sample", "Sampler")],
)
def test_a_verb_of_another_task(
    project: Project, tmp_path: Path, refused: Refused, verb: str, stage: str, task: str
) -> None:
    args = project.args(stage, tmp_path / "run")
    assert_says(refused([verb, *args[1:]]), "model", task, f"expected one to {verb}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["", "[1]", "a: &a {b: *a}", "seed_everything: " + "9" * 5000, "[" * 1500])
def test_configs_that_are_none(tmp_path: Path, refused: Refused, text: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    assert_says(refused(["fit", "-c", str(config)]), config)


def test_a_config_that_would_take_all_memory(tmp_path: Path, refused: Refused) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    assert_says(refused(["fit", "-c", str(tmp_path / "config.yaml")]), "values", "expected fewer")


@pytest.mark.parametrize("name", ["best", "none.ckpt", "https://example.invalid/x.ckpt", "."])
def test_checkpoints_that_are_not_there(project: Project, tmp_path: Path, refused: Refused, name: str) -> None:
    assert_says(refused(project.args("train", tmp_path / "run", ckpt_path=name)), "ckpt_path", name, "expected last")


def test_a_checkpoint_of_weights_alone(project: Project, tmp_path: Path, refused: Refused) -> None:
    whole = read_checkpoint(project.checkpoint)
    weights = tmp_path / "weights.ckpt"
    torch.save({"state_dict": whole["state_dict"], "trained_model": whole["trained_model"]}, weights)
    message = refused(project.args("train", tmp_path / "run", ckpt_path=weights))
    assert_says(message, weights, "optimizer_states", "expected the checkpoint of a training")
    message = refused(["validate", *project.args("train", tmp_path / "run", ckpt_path=weights)[1:]])
    assert_says(message, weights, "pytorch-lightning_version")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(run / "checkpoints/last.ckpt")["state_dict"])


@pytest.mark.slow
def test_bf16_mixed_trains_clipped_and_resumes_bit_for_bit(project: Project, tmp_path: Path) -> None:
    settings = {"trainer__precision": "bf16-mixed", "model__init_args__learning_rate": 1e-3}
    main(project.args("train", tmp_path / "once", **settings))
    main(project.args("train", tmp_path / "twice", trainer__max_steps=5, **settings))
    main(project.args("train", tmp_path / "twice", **settings))
    once, twice, exact = weights(tmp_path / "once"), weights(tmp_path / "twice"), weights(project.root / "train")
    assert all(torch.equal(value, twice[name]) for name, value in once.items())
    assert all(value.dtype == exact[name].dtype for name, value in once.items())
    assert any(not torch.equal(value, exact[name]) for name, value in once.items())
    assert max(float((value.float() - exact[name].float()).abs().max()) for name, value in once.items()) < 0.02


@pytest.mark.parametrize("stage", ["sample", "curvature", "unlearn", "similarity", "leave_k_out"])
def test_bf16_mixed_of_other_stages(project: Project, tmp_path: Path, stage: str) -> None:
    main(project.args(stage, tmp_path / stage, trainer__precision="bf16-mixed"))
    assert read_json(tmp_path / stage / "manifest.json")["status"] == "finished"


VARIABLES = [
    {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0",
     "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "job", "SLURM_NODELIST": "localhost", "SLURM_STEP_ID": "0"},
    {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "job"},
    {"RANK": "1"},
    {"LOCAL_RANK": "1"},
    {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "x",
     "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "2"},
    {"JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2", "LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "none"},
    {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
]  # fmt: skip


@pytest.mark.parametrize("variables", VARIABLES)
def test_variables_of_a_scheduler_are_no_ranks(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    main(project.args("train", tmp_path / "run", trainer__max_steps=2))
    assert read_json(tmp_path / "run/manifest.json")["status"] == "finished"


@pytest.mark.parametrize("stage", ["sample", "curvature", "unlearn", "similarity", "evaluate"])
def test_a_task_of_a_job_is_a_run_of_its_own(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    for name, value in VARIABLES[0].items():
        monkeypatch.setenv(name, value)
    main(project.args(stage, tmp_path / "run"))
    assert read_json(tmp_path / "run/manifest.json")["status"] == "finished"


def test_a_link_at_the_name_of_a_temporary_file_is_not_followed(project: Project, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    folder = tmp_path / "run/checkpoints"
    folder.mkdir(parents=True)
    (folder / ".last.ckpt.tmp").symlink_to(precious)
    main(project.args("train", tmp_path / "run", trainer__max_steps=2))
    assert precious.read_text() == "precious"
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("name", ["config.yaml", "checkpoints/last.ckpt"])
def test_files_of_no_run_are_not_written_over(project: Project, tmp_path: Path, refused: Refused, name: str) -> None:
    precious = tmp_path / "home" / name
    precious.parent.mkdir(parents=True)
    precious.write_text("precious")
    message = refused(project.args("train", tmp_path / "home"))
    assert_says(message, tmp_path / "home", f"found {name} and no manifest.json of a run")
    assert precious.read_text() == "precious"


def test_a_log_in_the_folder_of_a_run_to_be_is_kept(project: Project, tmp_path: Path) -> None:
    log = tmp_path / "run/log.txt"
    log.parent.mkdir()
    log.write_text("submitted")
    main(project.args("train", tmp_path / "run", trainer__max_steps=2))
    assert log.read_text() == "submitted"


def test_a_folder_that_is_a_link_to_itself(project: Project, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "run")
    assert_says(refused(project.args("train", tmp_path / "run")), tmp_path / "run")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("checkpoint: []", ["more.yaml: checkpoint: found [], expected keys and values"]),
        (
            "model: {init_args: {method: {class_path: Trak, init_args: {output: []}}}}",
            ["model.method.output: found [], expected Output"],
        ),
        (
            "model: {init_args: {method: {class_path: Trak, init_args: {per_draw: null}}}}",
            ["model.method.per_draw: found null, expected bool"],
        ),
    ],
)
def test_values_in_a_config_that_its_reader_takes(
    project: Project, tmp_path: Path, refused: Refused, config: str, words: list[str]
) -> None:
    (tmp_path / "more.yaml").write_text(config)
    args = project.args("similarity", tmp_path / "run")
    assert_says(refused([*args, "-c", str(tmp_path / "more.yaml")]), *words)
