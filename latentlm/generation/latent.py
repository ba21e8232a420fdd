"""Sampling one latent for many requests at once: solver, diffusion head, classifier-free guidance (PAPER §1.4, §1.5).

Place in the flow: 4, hidden states ──▶ next latents.
Legend: `M` requests, `G` guided ones, `C` latent channels, `D` backbone width, `W` head width.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..diffusion.schedule import Process
from ..diffusion.solvers import Plan, make_plan, sample
from ..model.heads import DiffusionHead
from .denoiser import Denoiser


class LatentSampler:
    """The head of one modality with one solver plan. The timestep embeddings of the plan are computed once."""

    def __init__(self, head: DiffusionHead, plan: Plan):
        self.head = head
        self.plan = plan
        times = torch.tensor(plan.times, dtype=torch.float32, device=head.latent_in.weight.device)
        self.embeddings = head.timestep(times)[:, None]  # (evaluations, 1, W)
        self.rows, self.denoiser = 0, None

    def __call__(
        self, hidden: Tensor, noise: Tensor, null_hidden: Tensor | None, guided: Tensor | None, scale: Tensor | None
    ) -> Tensor:
        """hidden (M, D), noise (M, C) -> latents (M, C) fp32.

        The requests `guided` (G,) (None: all) also have a null hidden state (G, D) and a scale (G, 1); every step
        predicts u + s·(c − u) from the same noisy latent.
        """
        head, M = self.head, len(hidden)
        states = hidden if null_hidden is None else torch.cat((hidden, null_hidden))
        condition = head.condition(states)  # (M + G, W)
        if len(states) != self.rows:
            self.rows, self.denoiser = len(states), Denoiser(head, len(states), len(self.embeddings))
        denoise = self.denoiser.predict
        modulations = self.denoiser.modulations(condition, self.embeddings)

        def predict(noisy: Tensor, t: float) -> Tensor:
            x = head.latent_in(noisy.to(condition.dtype))  # (M, W)
            if null_hidden is None:
                return denoise(x, next(modulations)).float()
            both = torch.cat((x, x if guided is None else x[guided]))
            c, u = denoise(both, next(modulations)).float().split((M, len(null_hidden)))
            if guided is None:
                return torch.lerp(u, c, scale)
            return c.index_copy(0, guided, torch.lerp(u, c[guided], scale))

        return sample(self.plan, predict, noise.float())


@lru_cache(maxsize=64)
def cached_plan(process: Process, solver: str, num_steps: int) -> Plan:
    return make_plan(process, solver, num_steps)
