"""What training minimises, beside the process: how timesteps are drawn, and how much each counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, get_type_hints

from lightning_attr.errors import UserError, expect_within, quoted
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


def read_objective(key: str, given: Mapping[str, Any]) -> Objective:
    """Return the objective that a file says.

    Args:
        key: Where it stands there, for messages.
        given: Its entries.

    Raises:
        UserError: It says none that there is.
    """
    types = get_type_hints(Objective)
    for name, value in given.items():
        choices = [choice for part in get_args(types.get(name)) for choice in get_args(part)]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name not in types or not (value in choices if choices else number):
            raise UserError(f"{key}.{name}: found {quoted(value)}, expected one of {choices or 'numbers'}")
    return Objective(**given)
