"""Methods on gradients against brute force: whole gradients of single samples, and dense matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from plain_gradients import mean_over_draws, plain_gradients, rows
from small_network import SCHEDULER, model_of, small_batch, small_network
from torch import Tensor

from lightning_attr.artifacts import save_tensors
from lightning_attr.curvature import Damping, DiagonalCurvature, curvature_digest, load_curvature
from lightning_attr.errors import UserError
from lightning_attr.gradients import Output
from lightning_attr.methods import (
    Combined,
    DTrak,
    ExactInfluence,
    GradientSimilarity,
    Influence,
    Method,
    Mucs,
    Random,
    Trak,
    Unlearning,
)
from lightning_attr.methods import gradient_method as gradient_method_module
from lightning_attr.methods.base import Batch, Context
from lightning_attr.methods.ensemble import Ensemble
from lightning_attr.methods.gradient_method import products
from lightning_attr.models.unet import UNet
from lightning_attr.noise import Draws, batch_noise, draw_timesteps

TWO = Output(draws=Draws(2))
SQUARED = Output("squared_output", Draws(2))
NETWORK = small_network()
SELECTED = UNet(NETWORK).select("cross_kv")
SAMPLES = small_batch([4, 5, 6, 9, 12])
QUERIES = {**small_batch([4, 7, 9], views=1, captions=1), "captions": torch.ones(3, dtype=torch.int64)}
#: As the methods see the queries: with noises of their own.
APART = {**QUERIES, "id": -1 - QUERIES["id"]}


@pytest.fixture
def context() -> Context:
    model = model_of(NETWORK)
    queries = SimpleNamespace(path="queries.lmdb", digest="")
    return Context(QUERIES, queries, None, model, torch.device("cpu"))  # type: ignore[arg-type]


def scores(method: Method, context: Context) -> Tensor:
    """Scores of the samples in two chunks, float64 [Q, N]."""
    method.prepare(context)
    batches = [{name: value[part] for name, value in SAMPLES.items()} for part in (slice(2), slice(2, 5))]
    passes = []
    for index in range(method.passes):
        method.enter(index)
        passes.append([method.measure(batch) for batch in batches])
    chunks = [torch.cat(parts, dim=1) for parts in zip(*passes, strict=True)]
    return torch.cat(list(method.score(chunks)), dim=1).double()


def gradients(
    batch: Batch, output: Output, per_draw: bool = False, region: Tensor | None = None
) -> list[dict[str, Tensor]]:
    """Gradients of first views and captions, by brute force: of each draw, or one, their mean."""
    by_draw = plain_gradients(NETWORK, SCHEDULER, SELECTED, batch, output, views=1, captions=1, region=region)
    return by_draw if per_draw else [mean_over_draws(by_draw)]


def assert_scores(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape == (3, 5)
    assert expected.std() > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=float(1e-6 * expected.abs().max()))


@pytest.mark.parametrize("per_draw", [False, True])
@pytest.mark.parametrize("mode", ["shared", "own"])
def test_gradient_dot(context: Context, per_draw: bool, mode: Any) -> None:
    output = Output(draws=Draws(2, mode=mode))
    found = scores(GradientSimilarity("dot", output=output, per_draw=per_draw), context)
    queries, samples = (map(rows, gradients(batch, output, per_draw)) for batch in (APART, SAMPLES))
    assert_scores(found, torch.stack([q @ s.T for q, s in zip(queries, samples, strict=True)]).sum(0))


@pytest.mark.parametrize("per_draw", [False, True])
def test_gradient_cosine(context: Context, per_draw: bool) -> None:
    found = scores(GradientSimilarity("cosine", output=TWO, per_draw=per_draw), context)
    queries, samples = (torch.cat([*map(rows, gradients(batch, TWO, per_draw))], dim=1) for batch in (APART, SAMPLES))
    assert_scores(found, torch.cosine_similarity(queries[:, None], samples[None], dim=2))


def test_normalised_at_each_draw(context: Context) -> None:
    """Compared draw by draw it is the sum of cosines; the sums of plain gradients are of other proportions."""
    output = replace(TWO, normalised=True)
    method = GradientSimilarity("dot", output=output, per_draw=True)
    queries, samples = ([rows(one) for one in gradients(batch, TWO, True)] for batch in (APART, SAMPLES))
    cosines = [torch.cosine_similarity(q[:, None], s[None], dim=2) for q, s in zip(queries, samples, strict=True)]
    assert_scores(scores(method, context), torch.stack(cosines).sum(0))
    assert method.name == "gradient-dot-normalised-per-draw"


def test_trak_of_gradients_that_are_normalised_at_each_draw(context: Context) -> None:
    method = Trak(None, 0.3, output=replace(TWO, normalised=True))
    queries, samples = (
        torch.stack([torch.nn.functional.normalize(rows(one), dim=1) for one in gradients(batch, TWO, True)]).mean(0)
        for batch in (APART, SAMPLES)
    )
    assert_scores(scores(method, context), ridge([queries], [samples], 0.3))
    assert method.name == "trak-normalised"


@pytest.fixture
def curvature(tmp_path: Path) -> Path:
    """A diagonal curvature of random entries."""
    generator = torch.Generator().manual_seed(0)
    fisher = {name: torch.rand(w.shape, generator=generator, dtype=torch.float64) for name, w in SELECTED.items()}
    DiagonalCurvature(fisher, {"weights": "cross_kv"}).save(tmp_path / "curvature.safetensors")
    return tmp_path / "curvature.safetensors"


@pytest.mark.parametrize("per_draw", [False, True])
def test_influence_of_a_diagonal(context: Context, curvature: Path, per_draw: bool) -> None:
    method = Influence(str(curvature), Damping(0.2, "mean"), output=TWO, per_draw=per_draw)
    found = scores(method, context)
    fisher = load_curvature(curvature).fisher  # type: ignore[union-attr]
    damped = rows({name: (fisher[name] + 0.2 * fisher[name].mean())[None] for name in SELECTED})
    queries, samples = (map(rows, gradients(batch, TWO, per_draw)) for batch in (APART, SAMPLES))
    assert_scores(found, torch.stack([(q / damped) @ s.T for q, s in zip(queries, samples, strict=True)]).sum(0))
    assert method.name == ("influence-diagonal-per-draw" if per_draw else "influence-diagonal")
    assert method.settings()["curvature"] == {
        "weights": "cross_kv",
        "kind": "diagonal",
        "digest": curvature_digest(curvature),
    }


def fitted_on(checkpoint: str, scale: float, path: Path) -> Path:
    fisher = {name: torch.full(weight.shape, scale).double() for name, weight in SELECTED.items()}
    DiagonalCurvature(fisher, {"digests": {"checkpoint": checkpoint}}).save(path)
    return path


@pytest.mark.parametrize("captions", [1, None])
def test_draws_in_passes_are_the_bits_of_all_at_once(context: Context, curvature: Path, captions: int | None) -> None:
    """Each gradient is taken once, and the rows of one draw alone are held."""
    method = Influence(str(curvature), Damping(0.2, "mean"), output=TWO, per_draw=True, captions=captions)
    found = scores(method, context)
    assert method.passes == 2
    assert method._rows.keys() == SELECTED.keys()
    assert [row.shape for row in method._rows.values()] == [(3, *weight.shape) for weight in SELECTED.values()]
    method._only = None  # as a method that holds them all
    loaded = load_curvature(curvature)
    held = method.query_gradients(context, lambda one: loaded.inverse(one, method.damping))
    parts = [{name: value[part] for name, value in SAMPLES.items()} for part in (slice(2), slice(2, 5))]
    by_draw = [[products(*pair) for pair in zip(held, method.gradients(part), strict=True)] for part in parts]
    assert torch.equal(found, torch.cat([torch.stack(each).sum(0) for each in by_draw]).T.double())


def test_influence_takes_the_curvature_of_its_checkpoint(context: Context, tmp_path: Path) -> None:
    one, two = (fitted_on(name, scale, tmp_path / name) for name, scale in (("one", 1.0), ("two", 2.0)))
    trained = replace(context, model=replace(context.trained(), path="run/last.ckpt", digest="two"))
    alone = Influence(str(two), Damping(0.0), output=TWO)
    both = Influence([str(one), str(two)], Damping(0.0), output=TWO)
    assert torch.equal(scores(both, trained), scores(alone, trained))
    assert_scores(scores(alone, trained), scores(GradientSimilarity(output=TWO), trained) / 2)
    assert [each["digests"]["checkpoint"] for each in both.settings()["curvature"]] == ["one", "two"]
    with pytest.raises(
        UserError, match=r"one \(fitted on one\), expected one fitted on checkpoint run/last.ckpt \(two"
    ):
        Influence(str(one)).prepare(trained)
    with pytest.raises(UserError, match=r"method.curvature: found kinds \[\], expected at least one"):
        Influence([])


def test_the_curvature_of_the_base_stands_for_a_models_own(context: Context, tmp_path: Path) -> None:
    base, own = (fitted_on(name, scale, tmp_path / name) for name, scale in (("base", 1.0), ("own", 2.0)))
    model = replace(context.trained(), path="run/last.ckpt", digest="own", made_from={"base": "base"})
    tuned = replace(context, model=model)
    found = scores(Influence(str(base), Damping(0.0), output=TWO), tuned)
    assert_scores(found, scores(GradientSimilarity(output=TWO), tuned))
    both = Influence([str(base), str(own)], Damping(0.0), output=TWO)
    assert_scores(scores(both, tuned), found / 2)  # its own comes first


def test_an_ensemble_gives_each_model_its_curvature(context: Context, tmp_path: Path) -> None:
    paths = [str(fitted_on(name, scale, tmp_path / name)) for name, scale in (("one", 1.0), ("two", 2.0))]
    models = [replace(context.trained(), digest=name) for name in ("two", "one")]
    for per_draw in (False, True):
        each = [
            scores(Influence(paths, Damping(0.0), output=TWO, per_draw=per_draw), replace(context, model=model))
            for model in models
        ]
        both = Ensemble(Influence(paths, Damping(0.0), output=TWO, per_draw=per_draw), models)
        assert torch.equal(scores(both, context), torch.stack(each).mean(0))
    found = scores(Ensemble(Influence(paths, Damping(0.0), output=TWO), models), context)
    assert_scores(found, scores(GradientSimilarity(output=TWO), context) * 0.75)
    with pytest.raises(UserError, match=r"fitted on one\), expected one fitted on checkpoint"):
        Ensemble(Influence(paths[0]), models).prepare(context)


def ridge(queries: list[Tensor], samples: list[Tensor], regularisation: float) -> Tensor:
    """``Phi_q Phi^T (Phi Phi^T + lambda)^-1`` of each draw, summed."""
    total = torch.zeros(()).double()
    for query, sample in zip(queries, samples, strict=True):
        kernel = sample @ sample.T
        shift = regularisation * kernel.diagonal().mean() * torch.eye(len(kernel))
        total = total + query @ sample.T @ torch.linalg.inv(kernel + shift)
    return total


@pytest.mark.parametrize("per_draw", [False, True])
@pytest.mark.parametrize(
    ("method", "output"),
    [
        (lambda **settings: ExactInfluence(0.3, output=TWO, **settings), TWO),
        (lambda **settings: Trak(None, 0.3, output=TWO, **settings), TWO),
        (lambda **settings: DTrak(TWO, projection=None, regularisation=0.3, **settings),
         SQUARED),
    ],
    ids=["exact", "trak", "d-trak"],
)  # fmt: skip
def test_kernels_of_whole_gradients(context: Context, method: Any, output: Output, per_draw: bool) -> None:
    found = scores(method(per_draw=per_draw), context)
    queries, samples = (list(map(rows, gradients(batch, output, per_draw))) for batch in (APART, SAMPLES))
    assert_scores(found, ridge(queries, samples, 0.3))


def test_trak_projects_queries_and_samples_alike(context: Context) -> None:
    """A projection that keeps all gives the scores of whole gradients, and one that keeps much nearly."""
    whole = scores(Trak(None, 1.0, output=TWO), context)
    largest = len(SELECTED) * max(weight.numel() for weight in SELECTED.values())
    assert_scores(scores(Trak(largest, 1.0, output=TWO), context), whole)
    correlations = [
        torch.corrcoef(torch.stack([scores(Trak(600, 1.0, seed, output=TWO), context).flatten(), whole.flatten()]))
        for seed in range(3)
    ]
    assert torch.stack(correlations).mean(0)[0, 1] > 0.8


def test_a_window_and_a_region_of_queries(context: Context, tmp_path: Path) -> None:
    white = np.zeros((16, 16), np.uint8)
    white[:8, 4:] = 255
    Image.fromarray(white).save(tmp_path / "region.png")
    late = Output(draws=Draws(2, window=(600, 900)))
    found = scores(GradientSimilarity(output=TWO, query=late.draws, region=str(tmp_path / "region.png")), context)
    region = torch.zeros(8, 8)
    region[:4, 2:] = 1
    (queries,), (samples,) = gradients(APART, late, region=region), gradients(SAMPLES, TWO)
    assert_scores(found, rows(queries) @ rows(samples).T)


def test_d_trak_of_other_draws_of_queries(context: Context) -> None:
    """Its queries have the squared output as well."""
    late = Output(draws=Draws(2, window=(600, 900)))
    found = scores(DTrak(SQUARED, query=late.draws, projection=None, regularisation=0.3), context)
    (queries,) = gradients(APART, Output("squared_output", late.draws))
    (samples,) = gradients(SAMPLES, SQUARED)
    assert_scores(found, ridge([rows(queries)], [rows(samples)], 0.3))


@pytest.mark.parametrize("kind", ["dot", "trak", "influence"])
def test_many_queries_go_in_parts(
    context: Context, curvature: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = {
        "dot": GradientSimilarity(output=TWO),
        "trak": Trak(None, output=TWO, per_draw=True),
        "influence": Influence(str(curvature), output=TWO, per_draw=True),
    }[kind]
    together = scores(method, context)
    monkeypatch.setattr(gradient_method_module, "QUERY_BATCH", 2)
    assert_scores(scores(method, context), together)
    monkeypatch.setattr(gradient_method_module, "QUERY_BYTES", 1)  # one query at a time
    assert_scores(scores(method, context), together)


def test_all_captions_and_views(context: Context) -> None:
    found = scores(GradientSimilarity(output=TWO, captions=None, views=None), context)
    samples = mean_over_draws(plain_gradients(NETWORK, SCHEDULER, SELECTED, SAMPLES, TWO))
    assert_scores(found, rows(gradients(APART, TWO)[0]) @ rows(samples).T)


def test_weights_of_norms_are_slow(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    scores(GradientSimilarity(output=Output(draws=Draws(1)), weights="all"), context)
    assert "warning: weights: not all of linear layers" in capsys.readouterr().err
    scores(GradientSimilarity(output=Output(draws=Draws(1)), weights=r"conv_in\.weight"), context)
    assert "warning" not in capsys.readouterr().err


def test_draws_of_queries_and_samples_must_pair() -> None:
    """As many draws are not enough: they would be at other timesteps."""
    late = Draws(2, window=(600, 900))
    with pytest.raises(UserError, match=r"method.query: found other draws than method.output.draws"):
        GradientSimilarity(output=TWO, query=late, per_draw=True)
    GradientSimilarity(output=Output(draws=late), query=late, per_draw=True)


def test_combined_is_the_sum_of_standard_scores(context: Context, curvature: Path) -> None:
    influence = Influence(str(curvature), output=TWO, per_draw=True)
    methods: list[Method] = [influence, Trak(None, 0.3, output=TWO, per_draw=True), Random()]
    assert Combined(methods).passes == 4
    single = [scores(method, context) for method in methods]
    found = scores(Combined(methods), context)
    standard = [(one - one.mean(1, keepdim=True)) / one.std(1, keepdim=True, correction=0) for one in single]
    assert_scores(found, torch.stack(standard).sum(0))
    assert Combined(methods).name == "influence-diagonal-per-draw+trak-per-draw+random"
    assert [each["method"] for each in Combined(methods).settings()["methods"]] == [
        "influence-diagonal-per-draw",
        "trak-per-draw",
        "random",
    ]


class Half(Method):
    """More columns than half precision can count, of its own precision."""

    def prepare(self, context: Context) -> None:
        self._queries = len(context.queries["id"])

    def measure(self, batch: Batch) -> Tensor:
        return torch.nn.functional.pad(batch["id"][:, None], (0, 300)).bfloat16()

    def score(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        for chunk in chunks:
            assert chunk.shape[1] == 301
            yield chunk[:, :1].T.expand(self._queries, -1)


def test_combined_keeps_the_precision_of_each(context: Context) -> None:
    dot = GradientSimilarity(output=TWO)
    single = [scores(method, context) for method in (Half(), dot)]
    standard = [(one - one.mean(1, keepdim=True)) / one.std(1, keepdim=True, correction=0) for one in single]
    assert_scores(scores(Combined([Half(), dot]), context), torch.stack(standard).sum(0))


def test_combined_with_one_that_tells_nothing_apart(context: Context) -> None:
    class Same(Method):
        def measure(self, batch: Batch) -> Tensor:
            return torch.full((len(batch["id"]), 3), 0.25)

    dot = scores(GradientSimilarity(output=TWO), context)
    found = scores(Combined([GradientSimilarity(output=TWO), Same()]), context)
    assert_scores(found, (dot - dot.mean(1, keepdim=True)) / dot.std(1, keepdim=True, correction=0))
    with pytest.raises(UserError, match=r"method.methods: found 1, expected at least two"):
        Combined([Random()])


def save_changed(folder: Path, kind: str = "mirrored weights", **settings: Any) -> dict[int, dict[str, Tensor]]:
    """Write changed weights of every query; return them."""
    result = {}
    for query in QUERIES["id"].tolist():
        generator = torch.Generator().manual_seed(query)
        result[query] = {
            name: (weight.detach() + 0.1 * torch.randn(weight.shape, generator=generator)).float()
            for name, weight in SELECTED.items()
        }
        (folder / str(query)).mkdir(parents=True)
        save_tensors(folder / str(query) / "weights.safetensors", kind, result[query], {"query": query, **settings})
    return result


@torch.no_grad()
def losses(weights: Mapping[str, Tensor]) -> Tensor:
    """Losses of first views and captions at two draws, under some weights, float32 [N, D]."""
    network = small_network().float()
    network.load_state_dict(weights, strict=False)
    ids, columns = SAMPLES["id"].tolist(), []
    for draw, timestep in enumerate(draw_timesteps(TWO.draws, 1000)):
        noise = batch_noise(TWO.draws, draw, (4, 8, 8), ids, 0, 0)
        latent, text = SAMPLES["latent"][:, 0].float(), SAMPLES["text"][:, 0].float()
        columns.append(model_of(network).losses(latent, {"text": text}, timestep.expand(len(ids)), noise))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("kind", [Mucs, Unlearning])
def test_losses_before_and_after(context: Context, tmp_path: Path, kind: type[Any]) -> None:
    changed = save_changed(tmp_path, kind.kind)
    method = kind(changed=f"{tmp_path}/*/weights.safetensors", draws=TWO.draws)
    model = context.trained().over(small_network().float())
    found = scores(method, replace(context, model=model))
    before = losses({})
    expected = [
        ((after - before) / (after + before + 1e-3) if kind is Mucs else after - before).mean(1)
        for after in map(losses, changed.values())
    ]
    torch.testing.assert_close(found, torch.stack(expected).double(), rtol=1e-4, atol=1e-6)
    assert len(method.settings()["changed"]) == 3
    # The weights are put back.
    for name, weight in model.network.named_parameters():
        assert torch.equal(weight, NETWORK.get_parameter(name).float())


def test_changed_weights_that_do_not_fit(context: Context, tmp_path: Path) -> None:
    def message(pattern: str) -> str:
        with pytest.raises(UserError) as refused:
            Mucs(changed=f"{tmp_path}/{pattern}").prepare(context)
        return str(refused.value)

    (tmp_path / "folder/nothing").mkdir(parents=True)
    assert "found no file" in message("folder/*")
    assert Mucs(changed=f"{tmp_path}/folder/*").settings()["changed"] == {}
    weights = save_changed(tmp_path / "all")[4]
    assert "found none of query 7, expected all 3" in message("all/[49]/weights.safetensors")
    save_tensors(tmp_path / "twice.safetensors", "mirrored weights", weights, {"query": 4})
    save_tensors(tmp_path / "twice_again.safetensors", "mirrored weights", weights, {"query": 4})
    assert "found query 4 twice" in message("twice*.safetensors")
    save_tensors(tmp_path / "losses.safetensors", "losses", weights, {})
    assert "losses.safetensors: found losses, expected mirrored weights" in message("losses.safetensors")
    other = {"conv_in.weight": torch.zeros(2, 3)}
    save_tensors(tmp_path / "all/4/weights.safetensors", "mirrored weights", other, {"query": 4})
    assert "weights.safetensors: found conv_in.weight (2, 3), expected (8, 4, 3, 3)" in message("all/*/*")


@pytest.mark.parametrize(("method", "other"), [(Mucs, "unlearned weights"), (Unlearning, "mirrored weights")])
def test_changed_weights_of_another_task(context: Context, tmp_path: Path, method: type[Any], other: str) -> None:
    save_changed(tmp_path, other)
    with pytest.raises(UserError, match=f"found {other}, expected {method.kind}"):
        method(changed=f"{tmp_path}/*/*").prepare(context)


def test_changed_weights_of_several_checkpoints_and_another_store(context: Context, tmp_path: Path) -> None:
    def prepared(model: str, store: str, pattern: str = "*") -> dict[str, Tensor]:
        method = Mucs(changed=f"{tmp_path}/{pattern}/*/*", draws=TWO.draws)
        method.prepare(
            replace(
                context,
                model=replace(context.trained(), path=f"{model}.ckpt", digest=model),
                query_store=SimpleNamespace(path="queries.lmdb", digest=store),  # type: ignore[arg-type]
            )
        )
        return method._changed[0]

    for model in ("one", "two"):
        save_changed(tmp_path / model, digests={"checkpoint": model, "queries": "asked"})
    save_tensors(tmp_path / "two/4/weights.safetensors", "mirrored weights", {"conv_in.bias": torch.ones(8)},
                 {"query": 4, "digests": {"checkpoint": "two", "queries": "asked"}})  # fmt: skip
    assert list(prepared("two", "asked")) == ["conv_in.bias"]
    assert list(prepared("one", "asked")) == sorted(SELECTED)
    with pytest.raises(UserError, match=r"was made from checkpoint one, not two.ckpt \(two\)"):
        prepared("two", "asked", "one")
    with pytest.raises(UserError, match=r"made from queries of digest asked, expected another as queries\.lmdb has it"):
        prepared("one", "another")
