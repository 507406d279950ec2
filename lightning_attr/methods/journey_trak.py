"""JourneyTRAK: what made a query at one timestep of its sampling (Georgiev et al., 2023, section 3)."""

from __future__ import annotations

from typing import Any

from datamodules.errors import UserError
from lightning_attr.diffusion import predicted_original
from lightning_attr.gradients import Output
from lightning_attr.methods.base import Batch, Context
from lightning_attr.methods.trak import Trak
from lightning_attr.noise import Draws


class JourneyTrak(Trak):
    """TRAK whose query features are taken on the sampling's way: at the image predicted at a timestep, noised again.

    Args:
        timestep: Where on the way; the sampling step nearest to it is taken.
        noises: How many times the predicted image is noised again.
        settings: The arguments of ``Trak``, but ``query``.
    """

    def __init__(self, timestep: int = 400, noises: int = 20, **settings: Any) -> None:
        if settings.pop("query", None) is not None or settings.get("per_draw"):
            raise UserError("method: found query or per_draw, which JourneyTrak settles itself")
        super().__init__(**settings)
        self.timestep = timestep
        self.noises = noises
        self.query = Output(draws=Draws(1, noises, seed=self.output.draws.seed, window=(timestep, timestep + 1)))

    @property
    def name(self) -> str:
        """``journey-trak``."""
        return "journey-trak"

    def query_batch(self, context: Context) -> Batch:
        """Return the queries with the image predicted at the timestep in the place of their latent."""
        batch = dict(super().query_batch(context))
        store = context.query_store
        metas = [store.meta(int(position)) for position in store.positions(context.queries["id"].tolist())]
        latent = predicted_original(
            self._model.denoiser,
            self._model.scheduler,
            batch["text"][:, 0].float(),
            self._model.null_text.to(context.device),
            [int(meta.attributes["seed"]) for meta in metas],
            self._model.latent_shape,
            self.timestep,
            steps=int(metas[0].attributes["steps"]),
            guidance=float(metas[0].attributes["guidance"]),
        )
        return {**batch, "latent": latent[:, None]}
