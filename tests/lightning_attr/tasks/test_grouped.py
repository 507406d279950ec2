"""Models that are trained in a group are those that their own runs would have trained."""

from __future__ import annotations

import copy
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from damage import Refused, assert_says
from miniature import DENOISER, Project
from stopped import Moment, run
from torch import Tensor

from datamodules import Exclude, LatentDataModule, Subset
from datamodules.grouped import GroupedLoader
from datamodules.loading import LatentLoader
from lightning_attr.artifacts import load_tensors, read_json
from lightning_attr.artifacts.checkpoint_files import read_checkpoint
from lightning_attr.cli import main, run_stage
from lightning_attr.errors import UserError
from lightning_attr.models import Inputs, load
from lightning_attr.noise import training_noise
from lightning_attr.tasks import GroupedRetraining, Retraining
from lightning_attr.tasks.grouped import clip_each_norm, real_means

pytestmark = pytest.mark.slow

Config = dict[str, Any]

#: Of the 40 samples: 36, 14 and 40 are left, in batches of 8.
MEMBERS: Mapping[str, tuple[Config, Config]] = {
    "top": ({"method": "unlearning", "evaluate": [0]}, {"exclude": {"scores": "SCORES", "top": 4}}),
    "subset": ({"method": "subset"}, {"subset": {"fraction": 0.35, "seed": 3}}),
    "full": ({"method": "full", "seed": 5}, {"seed": 5}),
}


class Group:
    """The configs of a group and of its members' own runs, under a folder of their own."""

    def __init__(self, project: Project, root: Path) -> None:
        self.root = root
        self.base = project.configs()["train"]
        leave_k_out = project.configs()["leave_k_out"]["model"]
        for name, (task, data) in MEMBERS.items():
            settings = {**self.base["model"]["init_args"], **leave_k_out["init_args"], **task}
            data = yaml.safe_load(yaml.safe_dump(data).replace("SCORES", str(project.scores)))
            model = {"class_path": leave_k_out["class_path"], "init_args": settings}
            source = {**self.base["data"], "init_args": {**self.base["data"]["init_args"], **data}}
            self.write(name, model, source)
        models = [self.read(name)["model"] for name in MEMBERS]
        sources = [self.read(name)["data"] for name in MEMBERS]
        folders = [str(root / name) for name in MEMBERS]
        self.write(
            "group",
            {
                "class_path": "lightning_attr.tasks.GroupedRetraining",
                "init_args": {"members": models, "folders": folders},
            },
            {"class_path": "datamodules.GroupedLatents", "init_args": {"members": sources}},
        )

    def write(self, name: str, model: Config, data: Config) -> None:
        trainer = {**self.base["trainer"], "default_root_dir": str(self.root / name)}
        text = yaml.safe_dump({**self.base, "trainer": trainer, "model": model, "data": data}, sort_keys=False)
        self.root.mkdir(exist_ok=True)
        (self.root / f"{name}.yaml").write_text(text)

    def read(self, name: str) -> Config:
        config = yaml.safe_load((self.root / f"{name}.yaml").read_text())
        assert isinstance(config, dict)
        return config

    def args(self, name: str, *options: str) -> list[str]:
        return ["fit", "-c", str(self.root / f"{name}.yaml"), *options]


def state(folder: Path) -> dict[str, Tensor]:
    found = read_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"]
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def together(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Group:
    group = Group(project, tmp_path_factory.mktemp("together"))
    run_stage(group.args("group"))
    return group


@pytest.fixture(scope="module")
def apart(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Group:
    group = Group(project, tmp_path_factory.mktemp("apart"))
    for name in MEMBERS:
        run_stage(group.args(name))
    return group


@pytest.mark.parametrize("name", MEMBERS)
def test_weights_are_those_of_its_own_run(together: Group, apart: Group, name: str) -> None:
    ours, theirs = state(together.root / name), state(apart.root / name)
    assert ours.keys() == theirs.keys()
    others = [state(apart.root / other) for other in MEMBERS if other != name]
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=2e-5)
    assert all(any(not torch.allclose(ours[key], other[key], atol=1e-3) for key in ours) for other in others)


@pytest.mark.parametrize("name", MEMBERS)
def test_measurements_are_those_of_its_own_run(together: Group, apart: Group, name: str) -> None:
    (ours, our_settings), (theirs, their_settings) = (
        load_tensors(group.root / name / "retraining.safetensors") for group in (together, apart)
    )
    assert our_settings == their_settings
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["removed_id"], theirs["removed_id"])
    assert torch.equal(ours["query_id"], theirs["query_id"])
    for key in ("original_losses", "retrained_losses"):
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MEMBERS)
def test_its_own_command_finds_it_finished(
    together: Group, apart: Group, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    main(together.args(name))
    assert "finished already" in capfd.readouterr().err
    config = (together.root / name / "config.yaml").read_text()
    assert config == (apart.root / name / "config.yaml").read_text().replace(str(apart.root), str(together.root))
    ours, theirs = (read_json(group.root / name / "manifest.json") for group in (together, apart))
    # Models that are trained together are those of their own runs up to the rounding of sums.
    own = dict.fromkeys(("started", "finished", "results", "checksum"))
    assert {**ours, **own} == {**theirs, **own}
    assert load(together.root / name / "checkpoints/last.ckpt").latent_shape == (4, 8, 8)


def test_a_finished_member_does_not_go_on(together: Group, refused: Refused) -> None:
    message = refused(together.args("top", "--trainer.max_steps", "20"))
    assert_says(message, "weights alone", "GroupedRetraining", together.root / "top")


@pytest.mark.parametrize(
    "moment",
    [
        Moment("lightning_attr.tasks:GroupedRetraining.training_step", 8),
        Moment("lightning_attr.tasks:GroupedRetraining.training_step", 6, signal.SIGTERM),
        Moment("lightning_attr.tasks:Retraining.record", 2),
        Moment("lightning_attr.runs.folder:RunFolder.finish", 2),
    ],
    ids=["killed between epochs", "stopped", "killed between members", "killed before the mark"],
)
def test_resume(project: Project, together: Group, tmp_path: Path, moment: Moment) -> None:
    group = Group(project, tmp_path / "group")
    assert run(group.args("group"), tmp_path / "log", moment).status in (-signal.SIGKILL, 143)
    resumed = run(group.args("group"), tmp_path / "log")
    assert resumed.status == 0, resumed.stderr
    for name in (*MEMBERS, "group"):
        ours, theirs = state(group.root / name), state(together.root / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    for name in MEMBERS:
        ours, theirs = (load_tensors(each.root / name / "retraining.safetensors")[0] for each in (group, together))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        assert read_json(group.root / name / "manifest.json")["status"] == "finished"


def test_a_group_goes_on_with_a_higher_limit(project: Project, together: Group, tmp_path: Path) -> None:
    group = Group(project, tmp_path / "group")
    run_stage(group.args("group", "--trainer.max_steps", "7"))
    run_stage(group.args("group"))
    ours, theirs = state(group.root / "group"), state(together.root / "group")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def wrong(group: Group, name: str, **settings: Any) -> list[str]:
    """Arguments of a group of which the second member has other settings, or the whole for `trainer`."""
    config = group.read("group")
    if name == "trainer":
        config["trainer"] |= settings
    else:
        config[name]["init_args"]["members"][1]["init_args"] |= settings
    path = group.root / "wrong.yaml"
    path.write_text(yaml.safe_dump(config))
    return ["fit", "-c", str(path)]


@pytest.mark.parametrize(
    ("section", "settings", "words"),
    [
        ("model", {"learning_rate": 0.5}, ["model.members[1].learning_rate", "0.5", "0.001"]),
        ("model", {"caption_dropout": 0.5}, ["model.members[1].caption_dropout", "0.5", "0.1"]),
        ("data", {"batch_size": 4}, ["data.members[1].batch_size", "4", "8"]),
        ("trainer", {"max_steps": -1, "max_epochs": 2}, ["trainer.max_steps", "-1"]),
        ("trainer", {"max_epochs": 2}, ["trainer.max_epochs", "2", "-1"]),
        ("trainer", {"accumulate_grad_batches": 2}, ["trainer.accumulate_grad_batches", "2", "1"]),
    ],
)
def test_members_that_do_not_go_together(
    project: Project, refused: Refused, tmp_path: Path, section: str, settings: Config, words: list[str]
) -> None:
    assert_says(refused(wrong(Group(project, tmp_path / "group"), section, **settings)), *words)


def test_other_data_is_refused(project: Project, refused: Refused, tmp_path: Path) -> None:
    group = Group(project, tmp_path / "group")
    config = group.read("group")
    for data, found in [
        (group.read("top")["data"], "LatentDataModule"),
        ({**config["data"], "init_args": {"members": config["data"]["init_args"]["members"][:2]}}, "2 members"),
    ]:
        (group.root / "wrong.yaml").write_text(yaml.safe_dump({**config, "data": data}))
        message = refused(["fit", "-c", str(group.root / "wrong.yaml")])
        assert_says(message, "data", found, "GroupedLatents with 3 members")


def test_the_folder_of_another_run_is_refused(project: Project, refused: Refused, tmp_path: Path) -> None:
    group = Group(project, tmp_path / "group")
    config = group.read("group")
    config["model"]["init_args"]["folders"][2] = str(project.root / "leave_k_out")
    (group.root / "wrong.yaml").write_text(yaml.safe_dump(config))
    message = refused(["fit", "-c", str(group.root / "wrong.yaml")])
    assert_says(message, project.root / "leave_k_out", "another config", "model.init_args.seed")


def test_a_member_that_diverges_is_named(
    project: Project, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noise(seed: int, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        noise, timesteps, uniform = training_noise(seed, *rest)
        return (noise * torch.inf if seed == 5 else noise), timesteps, uniform

    monkeypatch.setattr("lightning_attr.tasks.grouped.training_noise", noise)
    group = Group(project, tmp_path / "group")
    assert_says(refused(group.args("group")), f"train/loss of {group.root / 'full'}", "nan", "step 0")


def test_losses_and_gradients_in_double_precision() -> None:
    """The only difference to separate models is rounding."""
    members = [Retraining("", "", denoiser=DENOISER, seed=seed) for seed in range(3)]
    separate = [copy.deepcopy(member.denoiser).double() for member in members]
    group = GroupedRetraining(members, ["a", "b", "c"]).double()
    latent, noise, text = (
        torch.randn(3, 5, 4, 8, 8).double(),
        torch.randn(3, 5, 4, 8, 8).double(),
        torch.randn(3, 5, 6, 16),
    )
    timesteps = torch.randint(1000, (3, 5))
    losses = group.losses(Inputs(latent, {"text": text.double()}, timesteps, noise))
    losses.mean(1).sum().backward()
    for index, network in enumerate(separate):
        alone = group.model.over(network).losses(
            latent[index], {"text": text[index].double()}, timesteps[index], noise[index]
        )
        alone.mean().backward()
        torch.testing.assert_close(losses[index], alone, rtol=1e-11, atol=1e-12)
        for ours, theirs in zip(group.denoiser.parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(ours.grad[index], theirs.grad, rtol=1e-9, atol=1e-12)


def test_dropout_is_refused() -> None:
    member = Retraining("", "", denoiser={**DENOISER, "dropout": 0.1})
    with pytest.raises(UserError, match=r"dropout 0\.1"):
        GroupedRetraining([member], ["a"])


def test_padding_does_not_count() -> None:
    losses = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, torch.nan]])
    assert real_means(losses, torch.tensor([3, 2])).tolist() == [3.0, 4.0]


def test_each_member_is_clipped_by_its_own_norm() -> None:
    gradients = [torch.randn(3, 4, 5), torch.randn(3, 2)]
    gradients[0][1] *= 1e-3
    gradients[1][1] *= 1e-3
    expected = []
    for index in range(3):
        own = [torch.nn.Parameter(gradient[index].clone()) for gradient in gradients]
        for parameter in own:
            parameter.grad = parameter.detach().clone()
        torch.nn.utils.clip_grad_norm_(own, 1.0)
        expected.append([parameter.grad for parameter in own])
    clip_each_norm(gradients, 1.0)
    for index in range(3):
        for gradient, own in zip(gradients, expected[index], strict=True):
            torch.testing.assert_close(gradient[index], own)


def loaders(path: Path) -> list[LatentLoader]:
    """Of 36, 14 and 40 samples."""
    sources = [
        LatentDataModule(str(path), 8, exclude=Exclude(random=4)),
        LatentDataModule(str(path), 8, subset=Subset(first=14)),
        LatentDataModule(str(path), 8, seed=5),
    ]
    return [source.train_dataloader() for source in sources]


def test_members_go_through_their_own_epochs(stores: Project) -> None:
    stacks = list(GroupedLoader(loaders(stores.store), 12))
    assert len(stacks) == 12
    assert [stack["epoch"].tolist() for stack in stacks[:7]] == [
        [0, 0, 0],
        [0, 0, 0],
        *[[0, 1, 0]] * 2,
        [0, 2, 0],
        [1, 2, 1],
        [1, 3, 1],
    ]
    sizes = [stack["batch_size"].tolist() for stack in stacks[:5]]
    assert sizes == [[8, 8, 8], [8, 6, 8], [8, 8, 8], [8, 6, 8], [4, 8, 8]]
    for member, loader in enumerate(loaders(stores.store)):
        own = []
        for epoch in range(6):
            loader.sampler.set_epoch(epoch)
            own += list(loader)
        for stack, batch in zip(stacks, own, strict=False):
            size = int(stack["batch_size"][member])
            assert size == len(batch["id"])
            for name in ("id", "latent", "text"):
                assert torch.equal(stack[name][member, :size], batch[name])


@pytest.mark.parametrize("handed_out", [0, 2, 3, 5, 10, 12])
def test_the_loader_goes_on_where_it_stood(stores: Project, handed_out: int) -> None:
    expected = list(GroupedLoader(loaders(stores.store), 12))
    stopped = GroupedLoader(loaders(stores.store), 12)
    for _, _ in zip(range(handed_out), stopped, strict=False):
        pass
    state = stopped.state_dict()
    resumed = GroupedLoader(loaders(stores.store), 12)
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert len(rest) == 12 - handed_out
    for ours, theirs in zip(rest, expected[handed_out:], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
