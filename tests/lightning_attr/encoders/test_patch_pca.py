import pytest
import torch
from torch import Tensor

from lightning_attr.encoders import PatchPCA
from lightning_attr.errors import UserError


def psnr(images: Tensor, others: Tensor) -> float:
    error = (images.float() - others.float()).square().mean()
    return float(10 * torch.log10(255.0**2 / error))


def fitted(images: Tensor, patch: int = 4, channels: int = 4) -> PatchPCA:
    encoder = PatchPCA(patch, channels)
    encoder.fit(torch.split(images, 7))
    return encoder


@pytest.mark.parametrize(("channels", "expected"), [(4, 22.0), (8, 26.0)])
def test_quality_on_coco(coco_images: Tensor, channels: int, expected: float) -> None:
    encoder = fitted(coco_images, channels=channels)
    assert encoder.latent_shape(64) == (channels, 16, 16)
    assert psnr(coco_images, encoder.decode(encoder.encode(coco_images))) == pytest.approx(expected, abs=1.0)


def test_rows_are_orthonormal(images: Tensor) -> None:
    basis = fitted(images, channels=6).basis.double()
    assert torch.allclose(basis @ basis.T, torch.eye(6, dtype=torch.float64), atol=1e-6)


def test_latents_of_the_fitted_images_are_standardised(images: Tensor) -> None:
    latents = fitted(images).encode(images)
    assert latents.shape == (24, 4, 4, 4)
    assert latents.dtype == torch.float32
    assert latents.mean((0, 2, 3)) == pytest.approx([0.0] * 4, abs=1e-5)
    assert latents.std((0, 2, 3), correction=0) == pytest.approx([1.0] * 4, abs=1e-4)


def test_all_channels_lose_nothing(images: Tensor) -> None:
    encoder = fitted(images, patch=2, channels=12)
    assert torch.equal(encoder.decode(encoder.encode(images)), images)


def test_principal_components_beat_others_of_the_same_number(images: Tensor) -> None:
    """The best linear reconstruction from 4 numbers: shuffled fits on noise do worse on the images."""
    noise = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    best, other = fitted(images), fitted(noise)
    assert psnr(images, best.decode(best.encode(images))) > psnr(images, other.decode(other.encode(images))) + 3


def test_position_of_pixels_is_kept(images: Tensor) -> None:
    """A latent pixel sees its own patch only, at its own place, in an image that is not square."""
    wide = images[:1, :8, :].clone()
    encoder = fitted(images)
    before = encoder.encode(wide)
    wide[0, 4:8, 8:12] = 0
    changed = (encoder.encode(wide) != before).any(1)[0]
    assert before.shape == (1, 4, 2, 4)
    assert changed.nonzero().tolist() == [[1, 2]]


def test_fit_does_not_depend_on_batches_or_order(images: Tensor) -> None:
    one, other = PatchPCA(), PatchPCA()
    one.fit(torch.split(images, 24))
    other.fit(torch.split(images.flip(0), 5))
    assert one.state() == other.state()


def test_signs_are_fixed(images: Tensor) -> None:
    basis = fitted(images).basis
    assert (basis.gather(1, basis.abs().argmax(1, keepdim=True)) > 0).all()


def test_flat_images_give_finite_latents() -> None:
    flat = torch.full((3, 8, 8, 3), 77, dtype=torch.uint8)
    encoder = fitted(flat)
    latents = encoder.encode(flat)
    assert latents.isfinite().all()
    assert torch.equal(encoder.decode(latents), flat)


def test_state_rebuilds_the_encoder(images: Tensor) -> None:
    encoder = fitted(images)
    other = PatchPCA()
    assert not other.fitted
    other.load_state(encoder.state())
    assert other.fitted
    assert torch.equal(other.encode(images), encoder.encode(images))


def test_state_of_another_shape_is_refused(images: Tensor) -> None:
    with pytest.raises(UserError, match=r"basis.*\(4, 48\).*expected.*\(8, 48\)"):
        PatchPCA(channels=8).load_state(fitted(images).state())


def test_mistakes_are_named(images: Tensor) -> None:
    with pytest.raises(UserError, match="channels=49"):
        PatchPCA(4, 49)
    with pytest.raises(UserError, match="30 is not a multiple of patch 4"):
        PatchPCA().latent_shape(30)
    with pytest.raises(UserError, match="no images"):
        PatchPCA().fit([])
    with pytest.raises(UserError, match="15 x 16"):
        fitted(images).encode(images[:, :15])
