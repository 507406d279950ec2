"""K-FAC and EK-FAC against dense matrices and brute force, in double precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_attr.curvature import Damping, KroneckerCurvature, load_curvature, save_factors
from lightning_attr.curvature.kronecker import decomposed, layer_curvature, second_moment
from lightning_attr.curvature.sums import EKFACSums, KFACSums, layers_on, linear_layers
from lightning_attr.errors import UserError
from lightning_attr.layers import Call
from lightning_attr.models import Inputs


class Network(nn.Module):
    """Two maps of the text, one with a bias of something else: as in cross-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values = nn.Linear(5, 3, bias=False), nn.Linear(5, 4, bias=False)
        self.out = nn.Linear(4, 2)

    def forward(self, latent: Tensor, text: Tensor) -> Tensor:
        pooled = torch.tanh(self.keys(text)).sum(-1, keepdim=True) * self.values(text)
        return self.out(pooled) * latent[:, None]


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().double().requires_grad_(False)


def batches(tokens: int = 6, count: int = 12, size: int = 4) -> list[Inputs]:
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    text = torch.randn(count, tokens, 5, generator=generator, dtype=torch.float64)
    parts = zip(latent.split(size), text.split(size), strict=True)
    return [Inputs(one, {"text": other}, torch.zeros(len(one)), torch.zeros(len(one))) for one, other in parts]


def losses(network: nn.Module, inputs: Inputs) -> Tensor:
    return (network(inputs.latent, inputs.conditions["text"]) - 1).square().flatten(1).sum(1)  # type: ignore[no-any-return]


def fitted(network: Network, names: list[str], kind: type[KFACSums], data: list[Inputs]) -> KroneckerCurvature:
    selected = {name: dict(network.named_parameters())[name] for name in names}
    sums = kind(network, selected, {layer: "text" for layer in ("keys", "values") if f"{layer}.weight" in names})
    for part in range(kind.parts):
        sums.enter(part, lambda tensor: tensor)
        for inputs in data:
            sums.add(sums.of_batch(network, losses, inputs))
    return sums.curvature({"weights": "test"})


def brute_force(network: Network, names: list[str], data: list[Inputs]) -> dict[str, Tensor]:
    """Gradient of every sample, one backward pass each, by layer; a bias is the last column."""
    network.requires_grad_(True)
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    for inputs in data:
        for row in range(len(inputs.latent)):
            one = slice(row, row + 1)
            sample = inputs._replace(latent=inputs.latent[one], conditions={"text": inputs.conditions["text"][one]})
            gradients = torch.autograd.grad(
                losses(network, sample).sum(), [dict(network.named_parameters())[name] for name in names]
            )
            for name, gradient in zip(names, gradients, strict=True):
                rows[name].append(gradient)
    network.requires_grad_(False)
    return {name: torch.stack(values) for name, values in rows.items()}


KEYS_AND_VALUES = ["keys.weight", "values.weight"]
ALL = [*KEYS_AND_VALUES, "out.weight", "out.bias"]


def test_ekfac_eigenvalues_are_mean_squares_of_rotated_gradients(network: Network) -> None:
    curvature = fitted(network, ALL, EKFACSums, batches())
    gradients = brute_force(network, ALL, batches())
    gradients["out.weight"] = torch.cat([gradients["out.weight"], gradients["out.bias"][..., None]], dim=-1)
    for name, layer in curvature.layers.items():
        rotated = layer.gradient.eigenvectors.T @ gradients[f"{name}.weight"] @ layer.activation.eigenvectors
        assert layer.samples == 12
        torch.testing.assert_close(layer.eigenvalues, rotated.square().mean(0), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", [KFACSums, EKFACSums])
@pytest.mark.parametrize("damping", [Damping(0.3), Damping(0.1, "mean"), Damping(0.1, "overall")])
def test_inverse_solves_the_dense_system(network: Network, kind: type[KFACSums], damping: Damping) -> None:
    curvature = fitted(network, ALL, kind, batches())
    generator = torch.Generator().manual_seed(2)
    queries = {
        name: torch.randn(3, *network.get_parameter(name).shape, generator=generator, dtype=torch.float64)
        for name in ALL
    }
    found = curvature.inverse(queries, damping)
    assert list(found) == ALL
    queries["out.weight"], found["out.weight"] = (
        torch.cat([part["out.weight"], part["out.bias"][..., None]], dim=-1) for part in (queries, found)
    )
    overall = torch.cat([layer.eigenvalues.flatten() for layer in curvature.layers.values()]).mean()
    for name, layer in curvature.layers.items():
        basis = torch.kron(layer.gradient.eigenvectors, layer.activation.eigenvectors)
        dense = basis @ torch.diag(layer.eigenvalues.reshape(-1)) @ basis.T
        added = damping.value * {"fixed": 1.0, "mean": dense.trace() / len(dense), "overall": overall}[damping.rule]
        dense += added * torch.eye(len(dense), dtype=torch.float64)
        expected = torch.linalg.solve(dense, queries[f"{name}.weight"].flatten(1).T).T
        torch.testing.assert_close(found[f"{name}.weight"].flatten(1), expected, rtol=1e-9, atol=1e-12)


def test_kfac_is_the_product_of_the_moments(network: Network) -> None:
    layer = fitted(network, KEYS_AND_VALUES, KFACSums, batches()).layers["keys"]
    text = torch.cat([inputs.conditions["text"] for inputs in batches()]).reshape(-1, 5)
    torch.testing.assert_close(layer.activation.moment(), text.T @ text / len(text))
    assert layer.activation.tokens == layer.gradient.tokens == 72
    basis = torch.kron(layer.gradient.eigenvectors, layer.activation.eigenvectors)
    dense = basis @ torch.diag(layer.eigenvalues.reshape(-1)) @ basis.T
    torch.testing.assert_close(dense, torch.kron(layer.gradient.moment(), layer.activation.moment()))


@pytest.mark.parametrize("kind", [KFACSums, EKFACSums])
def test_exact_for_one_sample_of_one_token(network: Network, kind: type[KFACSums]) -> None:
    """There the Fisher is one outer product, which is a Kronecker product."""
    data = batches(tokens=1, count=1, size=1)
    curvature = fitted(network, KEYS_AND_VALUES, kind, data)
    for name, gradient in brute_force(network, KEYS_AND_VALUES, data).items():
        fisher = gradient.flatten(1).T @ gradient.flatten(1)
        query = torch.randn(gradient.shape[1:], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        expected = torch.linalg.solve(fisher + 0.1 * torch.eye(len(fisher), dtype=torch.float64), query.flatten())
        torch.testing.assert_close(curvature.inverse({name: query}, Damping(0.1))[name].flatten(), expected)


@pytest.mark.parametrize("kind", [KFACSums, EKFACSums])
def test_the_batch_size_changes_nothing(network: Network, kind: type[KFACSums]) -> None:
    ours, theirs = (fitted(network, ALL, kind, batches(size=size)) for size in (1, 5))
    for name, layer in ours.layers.items():
        other = theirs.layers[name]
        torch.testing.assert_close(layer.activation.moment(), other.activation.moment())
        torch.testing.assert_close(layer.gradient.moment(), other.gradient.moment())
        gradient = torch.ones_like(layer.eigenvalues)
        torch.testing.assert_close(*(one.inverse(gradient, Damping(0.1), name) for one in (layer, other)))


def test_layers_on_the_text_share_one_factor(network: Network) -> None:
    curvature = fitted(network, ALL, EKFACSums, batches())
    keys, values, out = (curvature.layers[name] for name in ("keys", "values", "out"))
    assert keys.activation is values.activation
    assert out.activation is not keys.activation
    assert out.activation.eigenvectors.shape == (5, 5)  # four inputs and the one of the bias


def test_sharing_is_seen_and_not_assumed(network: Network) -> None:
    layers = linear_layers(network, dict(network.named_parameters()), "kfac")
    text, copy = torch.zeros(1, 2, 5), torch.zeros(1, 2, 5)
    calls = [Call(layers["keys"], text, text), Call(layers["values"], copy, copy), Call(layers["out"], copy, copy)]
    assert layers_on({"text": text}, calls, layers) == {"keys": "text"}
    with pytest.raises(UserError, match="out takes no part"):
        layers_on({"text": text}, calls[:2], layers)


def test_a_direction_never_seen_has_no_eigenvalue() -> None:
    rows = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) @ torch.randn(3, 8)
    factor = decomposed(second_moment(rows), 20)
    assert int((factor.eigenvalues == 0).sum()) == 5
    curvature = KroneckerCurvature("kfac", {"a": layer_curvature(factor, factor)}, {})
    with pytest.raises(UserError, match=r"55 eigenvalues of a are zero; set a damping above 0"):
        curvature.inverse({"a.weight": torch.ones(8, 8)}, Damping())


def test_other_weights_are_refused(network: Network) -> None:
    curvature = fitted(network, KEYS_AND_VALUES, KFACSums, batches())
    with pytest.raises(UserError, match="found none for out, it was fitted on weights 'test'"):
        curvature.inverse({"out.weight": torch.ones(2, 4)}, Damping(1))
    with pytest.raises(UserError, match=r"found keys \(3, 5\), expected \(3, 6\)"):
        curvature.inverse({"keys.weight": torch.ones(3, 5), "keys.bias": torch.ones(3)}, Damping(1))
    with pytest.raises(UserError, match=r"found keys.bias alone"):
        curvature.inverse({"keys.bias": torch.ones(3)}, Damping(1))


@pytest.mark.parametrize("kind", [KFACSums, EKFACSums])
def test_save_and_load(network: Network, tmp_path: Path, kind: type[KFACSums]) -> None:
    curvature = fitted(network, ALL, kind, batches())
    gradients = {name: torch.ones(2, *network.get_parameter(name).shape) for name in ALL}
    expected = curvature.inverse(gradients, Damping(0.1, "mean"))
    curvature.save(tmp_path / "curvature.safetensors")
    save_factors(tmp_path / "factors", curvature)
    save_factors(tmp_path / "factors", curvature)  # in the place of the first
    for path in (tmp_path / "curvature.safetensors", tmp_path / "factors"):
        loaded = load_curvature(path)
        assert isinstance(loaded, KroneckerCurvature)
        assert (loaded.kind, loaded.settings) == (curvature.kind, {"weights": "test"})
        assert loaded.layers["keys"].activation is loaded.layers["values"].activation
        assert loaded.layers["out"].samples == curvature.layers["out"].samples
        found = loaded.inverse(gradients, Damping(0.1, "mean"))
        for name in ALL:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_damaged_folder_is_refused(network: Network, tmp_path: Path) -> None:
    save_factors(tmp_path / "factors", fitted(network, ALL, EKFACSums, batches()))
    path = tmp_path / "factors/lambda_matrix.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"lambda_matrix.safetensors: damaged, its checksum does not match"):
        load_curvature(tmp_path / "factors")
    path.unlink()
    with pytest.raises(UserError, match=r"lambda_matrix.safetensors: no such file"):
        load_curvature(tmp_path / "factors")
    with pytest.raises(UserError, match=r"factor_arguments.json: no such file"):
        load_curvature(tmp_path)
