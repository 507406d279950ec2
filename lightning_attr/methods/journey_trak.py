"""JourneyTRAK: what made a query at one timestep of its sampling (Georgiev et al., 2023, section 3)."""

from __future__ import annotations

from typing import Any

from lightning_attr.errors import UserError, expect_within
from lightning_attr.methods.base import Batch, Context
from lightning_attr.methods.trak import Trak
from lightning_attr.noise import Draws
from lightning_attr.sampling import sampling_of


class JourneyTrak(Trak):
    """TRAK whose query features are taken on the sampling's way: at the image predicted at a timestep, noised again.

    Args:
        timestep: Where on the way; the sampling step nearest to it is taken, and noise is added as of ``timestep``.
        noises: How many times the predicted image is noised again.
        settings: The arguments of ``Trak``, but ``query`` and ``per_draw``.
    """

    def __init__(self, timestep: int = 400, noises: int = 20, **settings: Any) -> None:
        super().__init__(query=None, **settings)
        if self.per_draw:
            raise UserError("method.per_draw: found true, expected false: JourneyTrak's queries have their own draws")
        expect_within("method.noises", noises, 1)
        expect_within("method.timestep", timestep, 0)
        self.timestep = timestep
        self.noises = noises
        self.query = Draws(1, noises, seed=self.output.draws.seed, window=(timestep, timestep + 1))

    @property
    def base_name(self) -> str:
        """Return ``journey-trak``."""
        return "journey-trak"

    def prepare(self, context: Context) -> None:
        """Take the queries' features on their way.

        Raises:
            UserError: The timestep is not of the schedule, or the queries were not sampled alike.
        """
        steps = context.trained().process.levels
        if self.timestep >= steps:
            raise UserError(f"method.timestep: found {self.timestep}, expected 0 to {steps - 1}")
        sampling_of(context.query_store, context.queries["id"].tolist())
        super().prepare(context)

    def query_batch(self, context: Context) -> Batch:
        """Return the queries with the image predicted at the timestep in the place of their latent.

        Raises:
            UserError: A query does not say how it was sampled, or not all were sampled alike.
        """
        batch = super().query_batch(context)
        seeds, steps, guidance = sampling_of(context.query_store, context.queries["id"].tolist())
        conditions = {name: value[:, 0] for name, value in self._model.conditions_of(batch).items()}
        latent = self._model.predicted_original(
            conditions, seeds, self.timestep, size=batch["latent"].shape[-2:], steps=steps, guidance=guidance
        )
        return {**batch, "latent": latent[:, None]}
