"""Every shipped config is one that the command line takes, and that does its work on stores of its shapes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from damage import assert_says as says
from miniature import Project

from datamodules import Store
from lightning_attr.artifacts.scores import Scores
from lightning_attr.cli import run_stage
from lightning_attr.commands.abc import main as abc
from lightning_attr.commands.abc.plan import Plan
from lightning_attr.commands.abc.scoring import Scoring
from lightning_attr.commands.prepare.shapes import main as prepare_shapes
from lightning_attr.commands.sweep.command import parsed_options
from lightning_attr.features import Latent
from lightning_attr.features.tuned import Mappers, save_tuned
from lightning_attr.models import Diffusion
from lightning_attr.models.families import unfilled
from lightning_attr.models.unet import UNet
from lightning_attr.noise import Draws, draw_timesteps
from lightning_attr.options import parsed as parsed_words
from lightning_attr.options import parser

Work = Callable[..., Path]

CONFIGS = Path(__file__).parents[1] / "configs"
VERBS = dict.fromkeys(("sample", "attribute", "methods", "score", "similarity"), "predict") | {"evaluate": "test"}
#: Those that go below a method.
BELOW = ("attribute", "score", "similarity")
STAGES = (
    "train", "sample", "curvature", "curvature_ekfac", "unlearn", "mirrored", "virtual_steps", "attribute",
    "leave_k_out", "evaluate",
)  # fmt: skip
METHODS = sorted((CONFIGS / "methods").glob("*.yaml"))
DEFAULT = CONFIGS / "methods/default.yaml"
REPLAYED = CONFIGS / "methods/replayed_steps.yaml"


def command(config: Path, folder: str = "shapes") -> list[str]:
    """The command that a config is for; leave_k_out goes on top of train, a method and the default on attribute."""
    below = [CONFIGS / folder / "attribute.yaml"] if config in METHODS else []
    below += [config.with_name("train.yaml")] if config.stem == "leave_k_out" else []
    above = [DEFAULT] if config.stem in ("attribute", "score") else []
    above += [config.parent.parent / "methods/similarity_latent.yaml"] if config.stem == "similarity" else []
    verb = VERBS["methods"] if config in METHODS else VERBS.get(config.stem, "fit")
    return [verb, *(word for file in (*below, config, *above) for word in ("-c", str(file)))]


def given(config: Path, folder: str = "shapes") -> Any:
    """What a config says; a method's values are those of the attribute.yaml that it goes on top of."""
    values = yaml.safe_load((CONFIGS / folder / "attribute.yaml" if config in METHODS else config).read_text())
    text = config.read_text()
    for name, value in values.get("vars", {}).items():
        text = text.replace(f"${{vars.{name}}}", str(value))
    return yaml.safe_load(text)


def parsed(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The config that a command runs with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_stage([*args, "--print_config"])
    assert ended.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert isinstance(config, dict)
    return config


def test_every_folder_has_every_stage() -> None:
    for folder in ("shapes", "coco64", "mscoco"):
        assert {path.stem for path in (CONFIGS / folder).glob("*.yaml")} >= {*STAGES, "sweep"} - {"mirrored"}


def test_the_default_method_is_one() -> None:
    """Attributions of all folders differ in the number of draws only."""
    draws = {}
    for path in CONFIGS.glob("*/attribute.yaml"):
        assert "method" not in given(path)["model"]["init_args"]
        assert given(path)["vars"].keys() == {"run", "timesteps"}
        draws[path.parent.name] = given(DEFAULT, path.parent.name)["model"]["init_args"]["method"]["init_args"][
            "output"
        ]
    assert draws.keys() == {"demo", "coco64", "hands", "mscoco", "shapes", "finetune"}
    many = ("finetune", "hands", "shapes")
    assert all(output == {"draws": {"timesteps": 20 if name in many else 10}} for name, output in draws.items())


def test_a_method_is_needed(refused: Callable[[list[str]], str]) -> None:
    message = refused(["predict", "-c", str(CONFIGS / "shapes/attribute.yaml")])
    says(message, "lightning_attr.tasks.Attribution", "required: method")


def is_stage(config: Path) -> bool:
    """Whether a config is that of a run, and not of what runs many."""
    return "class_path" in yaml.safe_load(config.read_text()).get("model", {}) and config not in METHODS


STAGE_CONFIGS = sorted(path for path in CONFIGS.rglob("*.yaml") if is_stage(path))


@pytest.mark.parametrize("config", sorted(CONFIGS.rglob("sweep.yaml")), ids=lambda path: path.parent.name)
def test_a_sweep_parses(config: Path) -> None:
    stated = given(config)["sweep"]
    sweep = parsed_options(["-c", str(config)]).sweep
    assert all((CONFIGS.parent / path).is_file() for path in sweep.train)
    assert (sweep.folder, sweep.original, sweep.queries) == (stated["folder"], stated["original"], stated["queries"])
    for part, values in stated.items():
        if isinstance(values, dict):
            assert values.items() <= vars(getattr(sweep, part)).items()


def test_a_plan_of_abc_parses() -> None:
    of = parser("abc make", None)
    of.add_class_arguments(Plan, "set")
    plan = parsed_words(of, ["-c", str(CONFIGS / "abc/make.yaml")]).set
    assert [model.name for model in plan.models] == ["artist-1", "object-1"]
    assert all((CONFIGS.parent / path).is_file() for path in (*plan.train, *plan.sample))


@pytest.mark.parametrize("config", sorted((CONFIGS / "abc").glob("scores_*.yaml")), ids=lambda path: path.stem)
def test_scores_of_abc_parse(config: Path) -> None:
    of = parser("abc scores", None)
    of.add_class_arguments(Scoring, "scores")
    scoring = parsed_words(of, ["-c", str(config)]).scores
    files = [path for step in scoring.steps for path in step.configs]
    assert all((CONFIGS.parent / path).is_file() for path in files)
    assert scoring.out.startswith("runs/abc/scores/")


@pytest.mark.parametrize("config", STAGE_CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_parses(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stated, found = given(config), parsed(command(config), capsys)
    if config.stem not in BELOW:  # the method names the folder
        assert found["trainer"]["default_root_dir"] == stated["trainer"]["default_root_dir"]
    assert found["model"]["class_path"] == stated["model"]["class_path"]
    for name, value in stated["model"].get("init_args", {}).items():
        if not isinstance(value, dict):
            assert found["model"]["init_args"][name] == value


@pytest.mark.parametrize("config", METHODS, ids=lambda path: path.stem)
def test_a_method_goes_on_top(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that the config says is there; the scores have a folder of their own."""
    stated, whole = given(config)["model"]["init_args"]["method"], parsed(command(config), capsys)
    found = whole["model"]["init_args"]
    assert whole["trainer"]["default_root_dir"] == f"runs/shapes/attribute/{config.stem}"
    assert found["queries"] == "runs/shapes/sample/queries.lmdb"
    assert found["method"]["class_path"] == stated["class_path"]
    assert_says(found["method"].get("init_args") or {}, stated.get("init_args", {}))


def assert_says(found: dict[str, Any], stated: dict[str, Any]) -> None:
    for name, value in stated.items():
        if isinstance(value, dict):
            assert_says(found[name], value)
        else:
            assert found[name] == value, name


def test_mscoco_is_the_experiment_of_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    model = parsed(command(CONFIGS / "mscoco/train.yaml"), capsys)["model"]["init_args"]
    network = unfilled(model["denoiser"], {}).network
    assert sum(parameter.numel() for parameter in network.parameters()) == 57_373_316
    weights = UNet(network).select("cross_kv")
    assert len(weights) == 32
    assert sum(weight.numel() for weight in weights.values()) == 7_077_888
    denoiser = model["denoiser"]
    assert (denoiser["in_channels"], denoiser["sample_size"], denoiser["cross_attention_dim"]) == (4, 16, 1024)
    assert Diffusion(model["scheduler"] or {}).levels == 1000


def test_mscoco_unlearns_as_the_paper_does(capsys: pytest.CaptureFixture[str]) -> None:
    config = parsed(command(CONFIGS / "mscoco/unlearn.yaml"), capsys)
    model, (recorder,) = config["model"]["init_args"], config["trainer"]["callbacks"]
    assert (model["weights"], model["step_size"], config["trainer"]["max_steps"]) == ("cross_kv", 0.01, 1)
    assert len(Draws(**model["draws"])) == 50_000
    draws = Draws(**recorder["init_args"]["draws"])
    assert draws.mode == "own"
    assert draw_timesteps(draws, 1000).tolist() == list(range(0, 1000, 50))
    leave = parsed(command(CONFIGS / "mscoco/leave_k_out.yaml"), capsys)
    draws = Draws(**leave["model"]["init_args"]["evaluation"])
    assert draw_timesteps(draws, 1000).tolist() == list(range(0, 1000, 5))


def test_leave_k_out_trains_as_the_original(capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("demo", "shapes", "coco64", "mscoco", "finetune"):
        train, leave = (parsed(command(CONFIGS / folder / f"{name}.yaml"), capsys) for name in ("train", "leave_k_out"))
        own = ("original", "queries", "method", "evaluate", "evaluation", "regenerate")
        arguments = {name: value for name, value in leave["model"]["init_args"].items() if name not in own}
        for name, value in arguments.items():
            assert value == train["model"]["init_args"][name], name
        assert leave["trainer"]["max_steps"] == train["trainer"]["max_steps"]
        assert leave["data"]["init_args"]["batch_size"] == train["data"]["init_args"]["batch_size"]


def test_values_are_shared_between_files_and_set_from_the_command_line(stores: Project, tmp_path: Path) -> None:
    queries = {"queries": str(stores.val_store), "method": {"class_path": "lightning_attr.methods.Random"}}
    first = {
        "trainer": {"default_root_dir": "${vars.run}", "accelerator": "cpu"},
        "model": {"class_path": "lightning_attr.tasks.Attribution", "init_args": queries},
        "data": {
            "class_path": "datamodules.LatentDataModule",
            "init_args": {"store": str(stores.store), "batch_size": "${vars.size}"},
        },
    }
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(first))
    files = ["-c", str(tmp_path / "first.yaml"), "-c", str(tmp_path / "second.yaml")]
    for name, options, size in [("a", [], 4), ("b", ["--vars.size", "5"], 5)]:
        (tmp_path / "second.yaml").write_text(yaml.safe_dump({"vars": {"run": str(tmp_path / name), "size": 4}}))
        run_stage(["predict", *files, *options])
        assert (tmp_path / name / "scores.safetensors").exists()
        resolved = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        assert resolved["data"]["init_args"]["batch_size"] == size


SHAPES = {
    "coco64": ["--size", "32", "--tokens", "24", "--dim", "64"],
    "mscoco": ["--size", "64", "--tokens", "77", "--dim", "1024"],
    "shapes": ["--size", "32", "--tokens", "16", "--dim", "64"],
}
LARGEST = {
    "batch_size": 4,
    "count": 2,
    "limit_val_batches": 1,
    "max_epochs": 2,
    "max_steps": 2,
    "noises": 1,
    "num_workers": 0,
    "projection": 64,
    "steps": 2,
    "timesteps": 2,
    "top": 2,
    "val_check_interval": 2,
}
"""The largest values that a config in miniature has."""


def miniature(config: Any, largest: Mapping[str, int] = LARGEST) -> Any:
    """The same config with fewer samples, steps and draws."""
    if isinstance(config, list):
        return [miniature(value, largest) for value in config]
    if not isinstance(config, dict):
        return config
    return {
        key: min(value, largest[key])
        if key in largest and isinstance(value, int | float)
        else miniature(value, largest)
        for key, value in config.items()
    }


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Work:
    """Run configs in miniature, in a folder of this test."""
    monkeypatch.chdir(tmp_path)

    def run(args: list[str], change: Callable[[dict[str, Any]], None] = lambda config: None) -> Path:
        config = miniature(parsed(args, capsys))
        change(config)
        Path("miniature.yaml").write_text(yaml.safe_dump(config))
        run_stage([args[0], "-c", "miniature.yaml"])
        return Path(config["trainer"]["default_root_dir"])

    return run


def prepare(folder: str) -> None:
    prepare_shapes([
        "--out", f"runs/{folder}/train.lmdb", "--val", f"runs/{folder}/val.lmdb",
        "--count", "8", "--val_count", "2", "--planted", "1", *SHAPES[folder],
    ])  # fmt: skip


def run_stages(folder: str, work: Work) -> None:
    """All stages of a folder, one after the other; what was unlearned and retrained is of one query, by one method."""
    scores, retrained = f"runs/{folder}/unlearn/0/scores.safetensors", []
    changes: dict[str, Callable[[dict[str, Any]], None]] = {
        # After two steps of training the query's loss is not below that of knowing nothing.
        "mirrored": lambda config: config["model"]["init_args"].update(until=None),
        "leave_k_out": lambda config: config["data"]["init_args"]["exclude"].update(scores=scores),
        "evaluate": lambda config: config["model"]["init_args"].update(
            retrained=retrained, scores=config["model"]["init_args"]["scores"] and [scores]
        ),
    }
    for config in (CONFIGS / folder / f"{stage}.yaml" for stage in STAGES):
        if config.exists():
            run = work(command(config), changes.get(config.stem, lambda config: None))
            retrained += [str(run)] if config.stem == "leave_k_out" else []


def assert_ranks(path: Path, queries: int) -> None:
    scores = Scores.load(path).scores
    assert scores.shape == (queries, 8)
    assert scores.isfinite().all()
    assert (scores.std(1) > 0).all()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("folder", ["coco64", "mscoco"])
def test_works(folder: str, work: Work) -> None:
    """All stages, on stores of the folder's shapes and with fewer steps. The demo has a test of its own."""
    prepare(folder)
    run_stages(folder, work)
    assert_ranks(Path("runs") / folder / "attribute/default/scores.safetensors", 2)
    assert (Path("runs") / folder / "evaluate/metrics.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_methods_work(work: Work) -> None:
    """Every method, on what the stages of the shapes leave."""
    prepare("shapes")
    run_stages("shapes", work)
    _, *latent = Store("runs/shapes/train.lmdb").schema.fields["latent"].shape
    save_tuned("runs/shapes/tuned/features.safetensors", Mappers(math.prod(latent)), Latent(), {})
    for config in METHODS:
        if config in (DEFAULT, REPLAYED):  # is among the stages; has a test of its own
            continue

        def change(config: dict[str, Any]) -> None:
            config["model"]["init_args"]["query_ids"] = [0]  # the one that was unlearned

        assert_ranks(work(command(config, "shapes"), change) / "scores.safetensors", 1)


@pytest.mark.slow
def test_replayed_steps_work(work: Work) -> None:
    """As its config says: the same training once more, with its last steps kept; then directions, then the pass."""
    prepare("coco64")
    train = command(CONFIGS / "coco64/train.yaml")
    keeps = ["--trainer.callbacks+=callbacks.Trajectory", "--trainer.callbacks.steps=25"]
    trajectory = ["--trainer.default_root_dir", "runs/coco64/trajectory"]
    for args in (
        train,
        [*train, *keeps, *trajectory],
        command(CONFIGS / "coco64/sample.yaml"),
        command(CONFIGS / "coco64/replayed_steps.yaml"),
    ):
        work(args)
    assert_ranks(work(command(REPLAYED, "coco64")) / "scores.safetensors", 2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_abc_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Work) -> None:
    """Its configs in miniature, from a base to the table of all methods."""
    prepare("shapes")
    for link, store in (("base/train", "train"), ("abc/exemplars", "val")):
        Path(f"runs/{link}.lmdb").parent.mkdir()
        Path(f"runs/{link}.lmdb").symlink_to(tmp_path / f"runs/shapes/{store}.lmdb")
    base = work(command(CONFIGS / "shapes/train.yaml", "shapes")) / "checkpoints/last.ckpt"
    # Among ten samples, and by the Fisher of a model that is hardly trained, a step of the paper's size is none.
    few = {**LARGEST, "images": 1, "distractors": 6, "rank": 2, "step_size": 1e-6}
    for path in (*(CONFIGS / "abc").glob("*.yaml"), *METHODS):
        config = miniature(yaml.safe_load(path.read_text()), few)
        if path.stem == "customise":
            config["model"]["init_args"]["base"]["model"] = str(base)
        if path.stem == "learned":
            config["model"]["init_args"]["method"]["init_args"]["base"] = str(base)
        if path.stem == "mirrored":
            config["model"]["init_args"].update(until=None)
        if path.stem == "make":
            for model, exemplar in zip(config["set"]["models"], (8, 9), strict=True):  # two are held out
                model.update(exemplars=[exemplar], split="test")
        target = Path("configs") / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(yaml.safe_dump(config))
    abc(["make", "-c", "configs/abc/make.yaml"])
    for name in ("adapter", "per_draw", "normalised", "trak", "unlearning", "mucs", "learned"):
        abc(["scores", "-c", f"configs/abc/scores_{name}.yaml"])
    files = ["configs/abc/similarity.yaml", "configs/methods/similarity_latent.yaml"]
    run_stage(["predict", *(word for file in files for word in ("-c", file))])
    kept = sorted(map(str, Path("runs/abc/scores").glob("*.safetensors")))
    similar = "runs/abc/attribute/similarity_latent/scores.safetensors"
    abc(["table", *kept, similar, "--set", "runs/abc/set", "--json", "table.json"])
    lines = json.loads(Path("table.json").read_text(), parse_constant=pytest.fail)
    assert {line["method"] for line in lines} == {
        "adapter", "adapter-per-draw", "gradient-normalised", "trak-normalised", "unlearning", "mucs", "learned",
        "similarity-latent", "chance",
    }  # fmt: skip
