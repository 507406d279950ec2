"""What training minimises, beside the process: how timesteps are drawn, and how much each counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from lightning_attr.errors import expect_within
from lightning_attr.noise import Sampling

Weighting = Literal["none", "min_snr", "sigma_squared"]


@dataclass(frozen=True)
class Objective:
    """How a model was trained; None is what is usual for its family.

    Args:
        weighting: How much the loss at a timestep counts. ``none``: as much as at any other. ``min_snr``: the loss of
            the clean latent counts as much as the ratio of signal to noise, at most 5 (Hang et al. 2023, section 3.4).
            ``sigma_squared``: of flow matching, the squared share of noise.
        timesteps: How training draws them: ``uniform``, or the ``logit_normal`` of Stable Diffusion 3 (its section
            3.1), which prefers the middle.
        guidance: The scale of guidance that a network was told in training, if it is told one, as FLUX is.
    """

    weighting: Weighting | None = None
    timesteps: Sampling | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        """Refuse a guidance without meaning."""
        if self.guidance is not None:
            expect_within("objective.guidance", self.guidance, 0, 1000)

    @property
    def given(self) -> dict[str, Any]:
        """Return what differs from the usual, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}
