"""Noising, losses and sampling, against diffusers where it has the same."""

from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from lightning_attr.errors import UserError
from lightning_attr.models import Diffusion, Model
from lightning_attr.models.process import add_noise, prediction_target
from lightning_attr.models.unet import UNet


class Recorder(nn.Module):
    """A network whose prediction is a known function of its inputs."""

    config = SimpleNamespace(sample_size=8, in_channels=4)

    def forward(self, latent: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> "Recorder":
        text = encoder_hidden_states.mean((1, 2)).reshape(-1, 1, 1, 1)
        self.sample = 0.5 * latent + 1e-3 * timesteps.reshape(-1, 1, 1, 1) + text
        return self


def recorder(process: Diffusion, null: Tensor | None = None) -> Model:
    return Model(UNet(Recorder()), process, {} if null is None else {"text": null})


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 4, 8, 8), torch.randn(3, 5, 6), torch.tensor([0, 500, 999]), torch.randn(3, 4, 8, 8)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_noising_and_targets_equal_diffusers(batch: tuple[Tensor, ...], prediction: str) -> None:
    latent, _, timesteps, noise = batch
    scheduler = DDPMScheduler(prediction_type=prediction)
    expected = {"epsilon": noise, "sample": latent, "v_prediction": scheduler.get_velocity(latent, noise, timesteps)}
    noisy, target = Diffusion({"prediction_type": prediction}).noised(latent, noise, timesteps)
    torch.testing.assert_close(noisy, scheduler.add_noise(latent, noise, timesteps))
    torch.testing.assert_close(target, expected[prediction])
    levels = scheduler.alphas_cumprod[timesteps]
    assert torch.equal(noisy, add_noise(latent, noise, levels))


def test_unknown_prediction_type(batch: tuple[Tensor, ...]) -> None:
    with pytest.raises(ValueError, match="found 'score', expected"):
        prediction_target(batch[0], batch[0], torch.ones(3), "score")


def test_loss_is_the_mean_square_of_every_sample(batch: tuple[Tensor, ...]) -> None:
    latent, text, timesteps, noise = batch
    scheduler = DDPMScheduler()
    losses = recorder(Diffusion({})).losses(latent, {"text": text}, timesteps, noise)
    for index in range(3):
        noisy = scheduler.add_noise(latent[[index]], noise[[index]], timesteps[[index]])
        predicted = 0.5 * noisy + 1e-3 * timesteps[index] + text[index].mean()
        assert losses[index].item() == pytest.approx((predicted - noise[[index]]).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DDIMScheduler"])
def test_a_query_depends_on_its_seed_alone(scheduler: str) -> None:
    torch.manual_seed(0)
    text, null = torch.randn(3, 5, 6), torch.randn(5, 6)
    model = recorder(Diffusion({"_class_name": scheduler, "clip_sample": False}), null)

    def sample(rows: list[int], seeds: list[int]) -> tuple[Tensor, Tensor]:
        return model.generate({"text": text[rows]}, seeds, size=(8, 8), steps=7, guidance=3.0)

    latents, noises = sample([0, 1, 2], [5, 6, 7])
    alone, noise = sample([1], [6])
    torch.testing.assert_close(alone[0], latents[1])
    assert torch.equal(noise[0], noises[1])
    assert not torch.allclose(sample([1], [9])[0][0], latents[1])


def test_guidance_one_is_the_conditional_model() -> None:
    torch.manual_seed(0)
    text = torch.randn(1, 5, 6)
    model = recorder(Diffusion({"_class_name": "DDIMScheduler", "clip_sample": False}), text[0])
    plain, _ = model.generate({"text": text}, [1], size=(8, 8), steps=5, guidance=1.0)
    # Guiding towards the same text changes nothing, whatever the scale.
    guided, _ = model.generate({"text": text}, [1], size=(8, 8), steps=5, guidance=4.0)
    torch.testing.assert_close(plain, guided)


SCHEDULERS = (
    "DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler", "LMSDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler",
)  # fmt: skip


class Knows(nn.Module):
    """The best network where all data are one latent: it predicts the noise that was added to it."""

    config = SimpleNamespace(sample_size=8, in_channels=4)

    def __init__(self, latent: Tensor, scheduler: str) -> None:
        super().__init__()
        self.latent, self.levels = latent, getattr(diffusers, scheduler)().alphas_cumprod

    def forward(self, noisy: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> "Knows":
        at = timesteps.double().clamp(0, len(self.levels) - 1)
        low, high = self.levels[at.floor().long()].double(), self.levels[at.ceil().long()].double()
        ratios = [((1 - level) / level).log() for level in (low, high)]  # between timesteps, as samplers have it
        variance = ratios[0].lerp(ratios[1], at - at.floor()).exp()
        level = (1 / (1 + variance)).float().reshape(-1, 1, 1, 1)
        self.sample = (noisy - level.sqrt() * self.latent) / (1 - level).sqrt()
        return self


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_sampler_arrives(name: str) -> None:
    """With their own units of noise and of the network's input, and with or without a generator."""
    torch.manual_seed(0)
    latent = 2 * torch.rand(1, 4, 8, 8) - 1  # some clip at one
    model = Model(UNet(Knows(latent, name)), Diffusion({"_class_name": name}))
    made, noise = model.generate({"text": torch.zeros(2, 5, 6)}, [3, 4], size=(8, 8), steps=50, guidance=1.0)
    assert noise.std().item() == pytest.approx(1, abs=0.1)
    assert all((each - latent[0]).norm() < 0.1 * latent.norm() for each in made)


def test_a_sampler_without_a_schedule_of_betas_is_refused() -> None:
    with pytest.raises(UserError, match="found FlowMatchEulerDiscreteScheduler, expected one that noises by"):
        Diffusion({"_class_name": "FlowMatchEulerDiscreteScheduler"})


@pytest.mark.parametrize("name", ["ModularPipeline", "StableDiffusionPipeline", "UNet2DConditionModel", "nothing"])
def test_only_schedulers_are_built_as_schedulers(name: str) -> None:
    with pytest.raises(UserError, match=f"found class '{name}', expected a SchedulerMixin of diffusers"):
        Diffusion({"_class_name": name})
