"""What a command says at its end: what it made and what is next; by ``-q`` nothing."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from miniature import Project

from lightning_attr.artifacts import read_json
from lightning_attr.main import main
from lightning_attr.runs.following import FINE_TUNE, FROM_SCRATCH, next_command, stages_beside

Captured = pytest.CaptureFixture[str]


def ended(args: list[str]) -> int:
    with pytest.raises(SystemExit) as status:
        main(args)
    return int(str(status.value.code or 0))


@pytest.fixture
def fresh(stores: Project, tmp_path: Path) -> Project:
    """Stores and configs in a folder of their own."""
    for store in (stores.store, stores.val_store):
        shutil.copy(store, tmp_path)
    return Project(tmp_path)


def test_each_stage_names_the_next_command_and_that_one_runs(fresh: Project, capfd: Captured) -> None:
    train = fresh.args("train", trainer__max_steps=2)
    main(train)
    made, following = capfd.readouterr().out.splitlines()
    assert made == f"made: {fresh.checkpoint}"
    assert following == f"next: lightning-attr predict -c {fresh.root / 'sample.yaml'}"

    main(train)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "finished already" in printed.err

    main(shlex.split(following)[2:])
    made, following = capfd.readouterr().out.splitlines()
    assert made == f"made: {fresh.queries}"
    assert following == f"next: lightning-attr report {fresh.root}"

    assert ended(shlex.split(following)[2:]) == 0
    assert capfd.readouterr().out == f"made: {fresh.root / 'report.html'}\n"


def test_a_config_whose_values_refer_to_each_other(fresh: Project, capfd: Captured) -> None:
    config = yaml.safe_load((fresh.root / "train.yaml").read_text())
    config["vars"] = {"steps": 2}
    config["trainer"]["max_steps"] = "${vars.steps}"
    (fresh.root / "train.yaml").write_text(yaml.safe_dump(config))
    main(["fit", f"--config={fresh.root / 'train.yaml'}"])
    made, following = capfd.readouterr().out.splitlines()
    assert made == f"made: {fresh.checkpoint}"
    assert following == f"next: lightning-attr predict -c {fresh.root / 'sample.yaml'}"


def test_metrics_are_whole_on_a_narrow_terminal(project: Project, tmp_path: Path, capfd: Captured) -> None:
    main(project.args("evaluate", tmp_path / "run"))
    lines = capfd.readouterr().out.splitlines()
    metrics = read_json(tmp_path / "run/metrics.json")["metrics"]
    assert len(metrics) > 3
    for name, value in metrics.items():
        assert any(name in line and line.endswith(f" {value['mean']:.4g}") for line in lines), name


@pytest.mark.slow
def test_quiet_stages(project: Project, tmp_path: Path, capfd: Captured) -> None:
    train = project.args("train", tmp_path / "run", trainer__max_steps=4)
    main([*project.args("train", tmp_path / "run", trainer__max_steps=2), "-q"])
    main(["fit", "-q", *train[1:]])
    main([*train, "--quiet"])
    main([*project.args("evaluate", tmp_path / "evaluate"), "-q"])
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "evaluate/metrics.json").exists()
    assert "quiet" not in yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    main(train)
    assert "finished already" in capfd.readouterr().err


def test_the_stages_that_follow_are_those_of_the_default_method() -> None:
    for folder, stage in (("shapes", "virtual_steps"), ("finetune", "curvature_ekfac"), ("demo", "curvature_ekfac")):
        config = Path("configs") / folder / "sample.yaml"
        stages = FINE_TUNE if stage == "curvature_ekfac" else FROM_SCRATCH
        assert [Path(names[0]).stem for _, names in stages_beside(config)] == ["sample", stage, "attribute"]
        assert stages_beside(config) == stages


def test_a_stage_is_next_when_it_has_all_and_has_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, folder, run = tmp_path / "train.yaml", tmp_path / "of attribution", tmp_path / "train"
    beside, method = tmp_path / "attribute.yaml", tmp_path / "methods/default.yaml"
    inputs = {"queries": "${vars.run}/queries.lmdb", "checkpoints": ["${vars.run}/last.ckpt"]}
    task = {"class_path": "lightning_attr.tasks.Attribution", "init_args": inputs}
    beside.write_text(yaml.safe_dump({"vars": {"run": str(run)}, "model": task}))
    method.parent.mkdir()
    method.write_text(yaml.safe_dump({"trainer": {"default_root_dir": str(folder)}}))
    run.mkdir()
    (run / "queries.lmdb").touch()
    assert next_command([str(config)], run) == f"lightning-attr report {tmp_path}"
    (run / "last.ckpt").touch()
    assert next_command([str(config)], run) == f"lightning-attr predict -c {beside} -c {method}"
    folder.mkdir()
    (folder / "manifest.json").touch()
    assert next_command([str(config)], run) == f"lightning-attr report {tmp_path}"
    assert next_command([str(config)], Path("run")) == "lightning-attr report run"
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    monkeypatch.syspath_prepend(tmp_path)
    for broken in (
        "[",
        "- 1",
        "just words",
        "trainer: 3",
        "trainer: {default_root_dir: '${none}'}",
        "model: {class_path: broken.Task}",
        "model: {init_args: [1]}",
    ):
        method.write_text(broken)
        assert next_command([str(config)], run) == f"lightning-attr report {run}"
    assert next_command([], run) == f"lightning-attr report {run}"
