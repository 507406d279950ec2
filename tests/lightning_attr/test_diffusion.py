"""Noising, losses and sampling, against diffusers where it has the same."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from lightning_attr.diffusion import add_noise, denoising_loss, generate, prediction_target


class Recorder(nn.Module):
    """A denoiser whose prediction is a known function of its inputs."""

    def forward(self, latent: Tensor, timesteps: Tensor, text: Tensor) -> "Recorder":
        self.sample = 0.5 * latent + 1e-3 * timesteps.reshape(-1, 1, 1, 1) + text.mean((1, 2)).reshape(-1, 1, 1, 1)
        return self


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 4, 8, 8), torch.randn(3, 5, 6), torch.tensor([0, 500, 999]), torch.randn(3, 4, 8, 8)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noising_and_targets_equal_diffusers(batch: tuple[Tensor, ...], prediction: str) -> None:
    latent, _, timesteps, noise = batch
    scheduler = DDPMScheduler(prediction_type=prediction)
    levels = scheduler.alphas_cumprod[timesteps]
    torch.testing.assert_close(add_noise(latent, noise, levels), scheduler.add_noise(latent, noise, timesteps))
    target = prediction_target(latent, noise, levels, prediction)
    expected = noise if prediction == "epsilon" else scheduler.get_velocity(latent, noise, timesteps)
    torch.testing.assert_close(target, expected)


def test_unknown_prediction_type(batch: tuple[Tensor, ...]) -> None:
    with pytest.raises(ValueError, match="found 'sample', expected"):
        prediction_target(batch[0], batch[0], torch.ones(3), "sample")


def test_loss_is_the_mean_square_of_every_sample(batch: tuple[Tensor, ...]) -> None:
    latent, text, timesteps, noise = batch
    scheduler = DDPMScheduler()
    losses = denoising_loss(Recorder(), scheduler, latent, text, timesteps, noise)
    for index in range(3):
        noisy = scheduler.add_noise(latent[[index]], noise[[index]], timesteps[[index]])
        predicted = 0.5 * noisy + 1e-3 * timesteps[index] + text[index].mean()
        assert losses[index].item() == pytest.approx((predicted - noise[[index]]).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("scheduler", [DDPMScheduler(clip_sample=False), DDIMScheduler(clip_sample=False)])
def test_a_query_depends_on_its_seed_alone(scheduler: DDPMScheduler) -> None:
    torch.manual_seed(0)
    text, null = torch.randn(3, 5, 6), torch.randn(5, 6)

    def sample(rows: list[int], seeds: list[int]) -> tuple[Tensor, Tensor]:
        return generate(Recorder(), scheduler, text[rows], null, seeds, (4, 8, 8), steps=7, guidance=3.0)

    latents, noises = sample([0, 1, 2], [5, 6, 7])
    alone, noise = sample([1], [6])
    torch.testing.assert_close(alone[0], latents[1])
    assert torch.equal(noise[0], noises[1])
    assert not torch.allclose(sample([1], [9])[0][0], latents[1])


def test_guidance_one_is_the_conditional_model() -> None:
    torch.manual_seed(0)
    text = torch.randn(1, 5, 6)
    scheduler = DDIMScheduler(clip_sample=False)
    plain, _ = generate(Recorder(), scheduler, text, text[0], [1], (4, 8, 8), steps=5, guidance=1.0)
    # Guiding towards the same text changes nothing, whatever the scale.
    guided, _ = generate(Recorder(), scheduler, text, text[0], [1], (4, 8, 8), steps=5, guidance=4.0)
    torch.testing.assert_close(plain, guided)
