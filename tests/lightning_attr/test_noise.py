"""Draws are pure functions of their keys."""

import pytest
import torch
from scipy import stats

from lightning_attr.errors import UserError
from lightning_attr.noise import Draws, batch_noise, draw_timesteps, own_noise, shared_noise, training_noise

SHAPE = (4, 8, 8)


def test_timesteps_are_those_of_the_paper() -> None:
    assert draw_timesteps(Draws(timesteps=20), 1000).tolist() == list(range(0, 1000, 50))


def test_consecutive_draws_have_distinct_timesteps() -> None:
    timesteps = draw_timesteps(Draws(timesteps=1000, noises=3), 1000)
    assert len(timesteps) == 3000
    assert all(len(set(part.tolist())) == len(part) for part in timesteps.split(80)[:12])


def test_more_timesteps_than_the_schedule_has() -> None:
    with pytest.raises(UserError, match="found 20, expected at most 10"):
        draw_timesteps(Draws(timesteps=20), 10)


def test_shared_noise_is_the_same_for_every_sample_and_subset() -> None:
    draws = Draws()
    together = shared_noise(draws, range(10), SHAPE)
    assert torch.equal(together[[7]], shared_noise(draws, [7], SHAPE))
    batch = batch_noise(draws, 7, SHAPE, [3, 5, 8], view=1, caption=2)
    assert all(torch.equal(row, together[7]) for row in batch)


def test_own_noise_depends_on_id_view_and_caption_but_not_on_the_batch() -> None:
    draws = Draws(mode="own")
    batch = batch_noise(draws, 4, SHAPE, [3, 5, 8], view=1, caption=2)
    assert torch.equal(batch[1:2], batch_noise(draws, 4, SHAPE, [5], view=1, caption=2))
    others = [own_noise(draws, [4], SHAPE, *key) for key in [(6, 1, 2), (5, 0, 2), (5, 1, 1)]]
    assert not any(torch.equal(batch[1:2], other) for other in others)


def test_another_seed_gives_other_noise() -> None:
    assert not torch.equal(shared_noise(Draws(), [0], SHAPE), shared_noise(Draws(seed=1), [0], SHAPE))


def test_training_noise_of_a_sample_depends_on_seed_epoch_and_id_alone() -> None:
    def drawn(seed: int, epoch: int, ids: list[int]) -> list[torch.Tensor]:
        return list(training_noise(seed, epoch, ids, SHAPE, 1000))

    together, alone = drawn(0, 2, [3, 5, 8]), drawn(0, 2, [5])
    assert all(torch.equal(part[[1]], single) for part, single in zip(together, alone, strict=True))
    for other in (drawn(1, 2, [5]), drawn(0, 3, [5]), drawn(0, 2, [6])):
        assert not torch.equal(alone[0], other[0])


def test_training_timesteps_and_dropout_are_uniform() -> None:
    _, timesteps, uniform = training_noise(0, 0, list(range(2000)), (1,), 1000)
    assert stats.kstest(timesteps.numpy() / 1000, "uniform").pvalue > 0.01
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 0.01


def test_noise_is_standard_normal_across_keys() -> None:
    noise = shared_noise(Draws(timesteps=200), range(200), SHAPE)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    # Neighbouring keys are independent: the correlation of 256 x 199 pairs is within four standard errors.
    pairs = torch.corrcoef(torch.stack([noise[:-1].flatten(), noise[1:].flatten()]))[0, 1]
    assert abs(float(pairs)) < 4 / (199 * 256) ** 0.5
