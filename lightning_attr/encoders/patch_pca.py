"""``PatchPCA``: an orthonormal linear autoencoder of image patches, fitted in seconds.

Shape suffixes: B images, H and W pixels, C latent channels, h = H / patch, w = W / patch,
P = 3 * patch * patch numbers of a patch, M patches.
"""

from collections.abc import Iterable
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from lightning_attr.errors import UserError, one_line

_MOST_PATCH = 128  # a covariance of 2.4 billion numbers


class PatchPCA(nn.Module):
    """The leading principal components of non-overlapping patches, each channel scaled to unit deviation.

    Standardising matters: the first channel's deviation is ten times the last's, and a diffusion model adds the
    same noise to all of them.

    Args:
        patch: Side of a patch in pixels; an image's sides must be multiples of it.
        channels: Principal components kept, at most 3 * patch * patch.
    """

    mean: Tensor  # [P], of a patch
    basis: Tensor  # [C, P], orthonormal rows
    deviation: Tensor  # [C], of the projections on the rows

    def __init__(self, patch: int = 4, channels: int = 4) -> None:
        super().__init__()
        size = 3 * patch * patch
        if not 1 <= patch <= _MOST_PATCH or not 1 <= channels <= size:
            raise UserError(
                f"PatchPCA: found {patch=}, {channels=}, expected a patch from 1 to {_MOST_PATCH} and 1 to 3 * patch^2 "
                "channels"
            )
        self.patch, self.channels = patch, channels
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.zeros(channels, size))
        self.register_buffer("deviation", torch.ones(channels))

    @property
    def fitted(self) -> bool:
        """Return whether ``fit`` or ``load_state`` has been called."""
        return bool(self.basis.any())

    def fit(self, images: Iterable[Tensor]) -> None:
        """Fit on batches of uint8 images [B, H, W, 3].

        The sums of pixels and of their products are whole numbers that float64 holds exactly (up to 2^53), so the
        result does not depend on how the images are batched or ordered.

        Raises:
            UserError: There are no images.
        """
        mean, covariance = _moments(self._patches(batch).double() for batch in images)
        variances, vectors = torch.linalg.eigh(covariance)  # ascending
        basis = vectors.flip(1)[:, : self.channels].T
        # An eigenvector's sign is arbitrary: make its largest entry positive, so that a refit gives the same latents.
        signs = basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()
        self.mean.copy_(mean)
        self.basis.copy_(basis * signs)
        # A channel without variance (flat images) keeps a deviation that can be divided by: one grey level.
        self.deviation.copy_(variances.flip(0)[: self.channels].clamp(min=1.0).sqrt())

    def config(self) -> dict[str, Any]:
        """Return the class and its arguments."""
        return {"class": "PatchPCA", "patch": self.patch, "channels": self.channels}

    def state(self) -> bytes:
        """Return means, basis and deviations as safetensors bytes."""
        return save({name: buffer.cpu().contiguous() for name, buffer in self.state_dict().items()})

    def load_state(self, state: bytes) -> None:
        """Take the numbers of ``state()``.

        Raises:
            UserError: They belong to an encoder with other arguments.
        """
        try:
            tensors = load(state)
        except SafetensorError as error:
            raise UserError(f"PatchPCA: found a state that is no safetensors file ({one_line(error)})") from error
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        expected = {name: tuple(buffer.shape) for name, buffer in self.state_dict().items()}
        if found != expected:
            raise UserError(f"PatchPCA: the state holds {found}, expected {expected}")
        if not all(tensor.is_floating_point() and tensor.isfinite().all() for tensor in tensors.values()):
            raise UserError("PatchPCA: found a state with numbers that are not finite, expected a fitted basis")
        self.load_state_dict(tensors)

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """Return (C, image_size / patch, image_size / patch)."""
        if image_size % self.patch:
            raise UserError(f"PatchPCA: image size {image_size} is not a multiple of patch {self.patch}")
        side = image_size // self.patch
        return self.channels, side, side

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode uint8 images [B, H, W, 3] to float32 latents [B, C, h, w], each channel of mean 0 and deviation 1."""
        b, height, width, _ = images.shape
        x_MP = self._patches(images.to(self.mean.device)).float()
        z_MC = (x_MP - self.mean) @ self.basis.T / self.deviation
        z_BhwC = z_MC.view(b, height // self.patch, width // self.patch, self.channels)
        return z_BhwC.permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to uint8 images [B, H, W, 3]."""
        b, _, h, w = latents.shape
        p = self.patch
        z_BhwC = latents.to(self.mean.device).float().permute(0, 2, 3, 1)
        x_BhwP = (z_BhwC * self.deviation) @ self.basis + self.mean
        pixels = x_BhwP.view(b, h, w, p, p, 3).permute(0, 1, 3, 2, 4, 5).reshape(b, h * p, w * p, 3)
        return pixels.round().clamp(0, 255).to(torch.uint8)

    def _patches(self, images: Tensor) -> Tensor:
        """Cut images [B, H, W, 3] into patches [M, P], M = B * h * w."""
        b, height, width, _ = images.shape
        p = self.patch
        if height % p or width % p:
            raise UserError(f"PatchPCA: images of {height} x {width} pixels do not divide into patches of {p} x {p}")
        split = images.reshape(b, height // p, p, width // p, p, 3).permute(0, 1, 3, 2, 4, 5)
        return split.reshape(-1, 3 * p * p)


def _moments(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean [P] and covariance [P, P] of float64 batches [M, P]."""
    count, total, products = 0, torch.tensor(0.0), torch.tensor(0.0)
    for x_MP in batches:
        count += len(x_MP)
        total = total + x_MP.sum(0)
        products = products + x_MP.T @ x_MP
    if count == 0:
        raise UserError("PatchPCA: there are no images to fit on")
    mean = total / count
    return mean, products / count - torch.outer(mean, mean)
