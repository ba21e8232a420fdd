"""Sampling from the diffusion head: solver, network and guidance, for many requests at once (PAPER §1.4, §1.5).

Place in the flow: 4, hidden states ──▶ next latents, called by the engine.
    DiffusionSampler   noise ──solver──▶ latents; each step predicts u + s·(c − u)
    Denoiser           the network for inference: the same function in fewer operations
A latent takes tens of evaluations with a few rows each, so the operations between the matrix products take as long as
the products. Therefore modulations are computed and split for many evaluations at once, into preallocated memory;
weights are prepacked (`model/prepack.py`); norm and modulation are one operation.
Legend: `M` requests (or rows of a product), `G` guided requests, `C` latent channels, `D` backbone width, `W` head
width, `n` evaluations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...diffusion.solvers import Plan, sample
from ..prepack import MOST_LAYOUTS, packed
from .base import draw_noise
from .diffusion_network import DiffusionNetwork, FinalLayer, HeadBlock

MODULATION_ROWS = 512
"""Rows of one AdaLN product: a few hundred reach the full speed of the CPU; more no longer fit its caches."""

Modulation = tuple[Tensor, ...]
"""(shift, 1 + scale) of the final layer, (shift, 1 + scale, gate) of a block; each (M, W)."""


class DiffusionSampler:
    """`head` with one solver plan, whose timestep embeddings are computed once."""

    def __init__(self, head: DiffusionNetwork, plan: Plan):
        self.head = head
        self.plan = plan
        times = torch.tensor(plan.times, dtype=torch.float32, device=head.latent_in.weight.device)
        self.embeddings = head.timestep(times)[:, None]  # (n, 1, W)
        self.denoisers: dict[int, Denoiser] = {}  # by number of rows, the most recently used one last

    def __call__(
        self,
        hidden: Tensor,
        null_hidden: Tensor | None,
        guided: Tensor | None,
        scale: Tensor | None,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Next latents (M, C), fp32, as in `base.Sampler`. Both branches of a guided request denoise one latent."""
        head, M = self.head, len(hidden)
        noise = draw_noise((head.latent_dim,), generators, hidden.device)  # (M, C)
        states = hidden if null_hidden is None else torch.cat((hidden, null_hidden))
        condition = head.condition(states)  # (M + G, W)
        denoiser = self._denoiser(len(states))
        denoise, modulations = denoiser.predict, denoiser.modulations(condition, self.embeddings)

        def predict(noisy: Tensor, t: float) -> Tensor:
            x = head.latent_in(noisy.to(condition.dtype))  # (M, W)
            if null_hidden is None:
                return denoise(x, next(modulations)).float()
            both = torch.cat((x, x if guided is None else x[guided]))
            c, u = denoise(both, next(modulations)).float().split((M, len(null_hidden)))
            if guided is None:
                return torch.lerp(u, c, scale)
            return c.index_copy(0, guided, torch.lerp(u, c[guided], scale))

        return sample(self.plan, predict, noise)

    def _denoiser(self, rows: int) -> Denoiser:
        """The denoiser for `rows` rows. At most MOST_LAYOUTS are kept; the least recently used one is dropped first."""
        found = self.denoisers.pop(rows, None)
        if found is None:
            if len(self.denoisers) == MOST_LAYOUTS:
                del self.denoisers[next(iter(self.denoisers))]
            found = Denoiser(self.head, rows, len(self.embeddings))
        self.denoisers[rows] = found
        return found


class Denoiser:
    """`head` for inference with `rows` rows; shares its weights.

    num_evaluations: of the network per latent, for which the modulations are computed ahead. The FFNs and the last
    layer of a head with an adapter are not prepacked, as they are no plain linear layers.
    """

    def __init__(self, head: DiffusionNetwork, rows: int, num_evaluations: int):
        self.layers: list[HeadBlock | FinalLayer] = [*head.blocks, head.final]
        self.ffns = [(packed(block.ffn.up, rows), packed(block.ffn.down, rows)) for block in head.blocks]
        self.out = packed(head.final.out, rows)
        self.several = max(1, min(num_evaluations, MODULATION_ROWS // rows))
        W, weight, self.eps = head.latent_in.out_features, head.latent_in.weight, head.final.norm.eps
        self.by_hand = weight.is_cpu and weight.dtype is torch.float32
        self.floor = torch.tensor((W * self.eps) ** 0.5, device=weight.device)  # √(W·eps)
        self.buffers = [weight.new_empty(self.several, rows, parts * W) for parts in [3] * len(head.blocks) + [2]]
        views = [zip(*(part.unbind() for part in buffer.split(W, -1)), strict=True) for buffer in self.buffers]
        self.views: list[tuple[Modulation, ...]] = list(zip(*views, strict=True))  # of every evaluation, every layer's

    def modulations(self, condition: Tensor, embeddings: Tensor) -> Iterator[tuple[Modulation, ...]]:
        """Yields, for each evaluation, the modulations of every layer: condition (M, W), embeddings (n, 1, W).

        The tensors of one evaluation may be overwritten when the next ones are requested.
        """
        for some in embeddings.split(self.several):
            c = F.silu(condition + some, inplace=True)  # (several, M, W)
            for layer, buffer in zip(self.layers, self.buffers, strict=True):
                modulation = buffer[: len(some)]
                _multiply(layer.modulation, c.flatten(0, 1), out=modulation.flatten(0, 1))
                scale = modulation.split(c.shape[-1], dim=-1)[1].add_(1)
                if layer.norm.weight is not None:
                    scale.mul_(layer.norm.weight)
            yield from self.views[: len(some)]

    def predict(self, x: Tensor, modulations: tuple[Modulation, ...]) -> Tensor:
        """The prediction (M, C) from x (M, W), which is `latent_in` of the noisy latent."""
        *blocks, (shift, scale) = modulations
        for (up, down), (block_shift, block_scale, gate) in zip(self.ffns, blocks, strict=True):
            opened, value = up(self._modulated(x, block_shift, block_scale)).chunk(2, dim=-1)
            x = torch.addcmul(x, gate, down(F.silu(opened).mul_(value)))
        return self.out(self._modulated(x, shift, scale))

    def _modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """RMSNorm(x)·scale + shift; in fp32 on a CPU computed as shift + √W·x·scale / hypot(‖x‖, √(W·eps))."""
        if not self.by_hand:
            return torch.addcmul(shift, F.rms_norm(x, x.shape[-1:], None, self.eps), scale)
        norm = torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.floor)
        return torch.addcdiv(shift, x * scale, norm, value=x.shape[-1] ** 0.5)


def _multiply(layer: nn.Module, x: Tensor, out: Tensor) -> None:
    """Write layer(x) into `out`: allocating it anew would map and unmap megabytes for every latent."""
    if type(layer) is nn.Linear:
        torch.mm(x, layer.weight.t(), out=out)
    else:
        out.copy_(layer(x))
