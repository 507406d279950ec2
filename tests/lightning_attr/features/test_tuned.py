"""The maps of a tuned feature, their loss and their file, against plain arithmetic."""

from pathlib import Path

import numpy as np
import pytest
import torch
from abc_codes import make_coded_set

from lightning_attr.abc.contrasts import Contrasts
from lightning_attr.errors import UserError
from lightning_attr.features import Feature, Latent, Text, Vision
from lightning_attr.features.kept import kept_rows
from lightning_attr.features.tuned import Mapper, Mappers, backbone, info_nce, load_tuned, save_tuned


def test_maps_are_the_identity_at_first() -> None:
    rows = torch.randn(5, 2, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Mapper(7)(rows), rows / rows.norm(dim=-1, keepdim=True))


def test_the_loss_by_hand() -> None:
    cosine, positive = torch.tensor([[0.5, 0.1, -0.3]]), torch.tensor([[True, True, False]])
    weights = np.exp(np.array([0.5, 0.1, -0.3]) / 0.2)
    expected = -np.log(weights[:2] / weights.sum()).mean()
    assert float(info_nce(cosine, positive, 0.2)) == pytest.approx(expected, abs=1e-6)


def test_the_gradient_of_the_loss_is_what_is_expected_of_it() -> None:
    """(probability - share among the exemplars) / (temperature B), by a derivation of its own."""
    generator = torch.Generator().manual_seed(1)
    cosine = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    positive = torch.zeros(4, 9, dtype=torch.bool)
    positive[torch.arange(4), torch.arange(4)] = positive[1, 5] = True
    expected = ((cosine / 0.3).softmax(1) - positive / positive.sum(1, keepdim=True)) / 0.3 / 4
    torch.testing.assert_close(torch.func.grad(info_nce)(cosine, positive, 0.3), expected)


def test_a_batch_of_contrasts(tmp_path: Path) -> None:
    abc = make_coded_set(tmp_path, {"train": 4, "validation": 1}, distractors=30)
    models = abc.of_split("train")
    contrasts = Contrasts(abc, models, 10, seed=3)
    batch = contrasts[2, np.array([0, 5, 6])]  # of models 0, 1, 1
    ids = abc.gallery.ids[batch["sample"].numpy()]
    assert [ids[row.numpy()].tolist() for row in batch["positive"]] == [[0, 1, 2], [3, 4, 5], [3, 4, 5]]
    others = ids[~batch["positive"].any(0).numpy()]
    assert len(set(others)) == 10
    assert set(others) <= set(abc.gallery.ids[abc.distractors])
    again, other_epoch = contrasts[2, np.array([0, 5, 6])], contrasts[3, np.array([0, 5, 6])]
    assert torch.equal(batch["sample"], again["sample"])
    assert not torch.equal(batch["sample"], other_epoch["sample"])


def test_features_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a stop the chunks that are there stay; a damaged one is computed anew, and other settings elsewhere."""
    abc, folder, device = (
        make_coded_set(tmp_path, {"train": 2}, distractors=300),
        tmp_path / "kept",
        torch.device("cpu"),
    )
    calls: list[int] = []
    rows = Latent.rows

    def stopped(self: Latent, store: object, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        calls.append(len(batch["id"]))
        if len(calls) == 7:
            raise KeyboardInterrupt
        return rows(self, store, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Latent, "rows", stopped)
    with pytest.raises(KeyboardInterrupt):
        kept_rows(Latent(), abc.gallery, folder, device)
    found = kept_rows(Latent(), abc.gallery, folder, device)
    assert sum(calls) == 306 + 2 * 32 + 32  # the chunk that was under way, and the batch that was not looked at
    latents = torch.from_numpy(abc.gallery.read("latent", np.arange(306))).flatten(2)
    torch.testing.assert_close(found.values, latents / latents.norm(dim=2, keepdim=True))
    assert torch.equal(kept_rows(Latent(), abc.gallery, folder, device).values, found.values)
    assert sum(calls) == 306 + 96
    first = sorted(folder.rglob("*.safetensors"))[0]
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    assert torch.equal(kept_rows(Latent(), abc.gallery, folder, device).values, found.values)
    assert sum(calls) == 306 + 96 + 128
    assert kept_rows(Text(), abc.gallery, folder, device).values.shape == (306, 1, 2)


class Doubled(Feature):
    """A feature of a project's own."""

    def rows(self, store: object, batch: object) -> torch.Tensor:
        return torch.ones(1, 1, 1)


def test_the_file_names_what_the_maps_are_over(tmp_path: Path) -> None:
    mappers = Mappers(3)
    mappers.query.weight.data += torch.arange(9.0).reshape(3, 3)
    save_tuned(tmp_path / "a", mappers, Latent(), {"temperature": 0.1})
    tuned = load_tuned(tmp_path / "a")
    assert torch.equal(tuned.mappers.query.weight, mappers.query.weight)
    assert isinstance(backbone(tmp_path / "a", tuned.feature, None), Latent)
    with pytest.raises(UserError, match="found a feature of class 'Text', expected 'Latent'"):
        backbone(tmp_path / "a", tuned.feature, Text())


def test_another_class_is_made_by_nobody_but_the_user(tmp_path: Path) -> None:
    save_tuned(tmp_path / "a", Mappers(1), Doubled(), {})
    config = load_tuned(tmp_path / "a").feature
    with pytest.raises(UserError, match="class 'Doubled', which is none of ours"):
        backbone(tmp_path / "a", config, None)
    given = Doubled()
    assert backbone(tmp_path / "a", config, given) is given


def test_other_weights_are_refused_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vision, "weights", property(lambda self: "one" if "1" in self.model else "two"))
    save_tuned(tmp_path / "a", Mappers(1), Vision("folder-1"), {})
    config = load_tuned(tmp_path / "a").feature
    assert backbone(tmp_path / "a", config, Vision("moved-1")).config()["model"] == "moved-1"
    with pytest.raises(UserError, match="found a feature of weights 'two', expected 'one'"):
        backbone(tmp_path / "a", config, Vision("folder-2"))
    monkeypatch.setattr(Vision, "weights", property(lambda self: "three"))
    with pytest.raises(UserError, match="found a feature of weights 'three', expected 'one'"):
        backbone(tmp_path / "a", config, None)
