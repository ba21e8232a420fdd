"""LatentLM: one causal Transformer over tokens and latents, a text head, a head for each modality. Read me first.

Place in the flow: 3, packed batch ──▶ hidden ──▶ losses; and, for `generation/`, the pieces of one decoding step.
    x_i      = embedding of token i, or a map of latent i (+ one of its features)             (PAPER §1.1, §6)
    h        = RMSNorm(Transformer(x))
    text     : softmax(h W_v)                                                                 (Eq. 1)
    latents  : the loss of the modality's head given h, by default next-token diffusion       (`heads/`; Eq. 3, §1.2)
    span end : softmax over {<proceed>, <EOD>} at every position of a variable-length span    (silent in the paper)
               and over <BOD>, <EOS> too where an answer lasts until <EOS>                    (VibeVoice, §6)
Legend: `B` rows, `T` positions, `D` width, `N` latents, `C` latent channels, `F` feature channels.
Departures from the paper: one head and one <BOD> per modality, since latent widths differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import UserError
from ..tokenizers.text import SpecialTokens
from ..types import IGNORE, LatentSpans, PackedBatch
from .heads import build_head
from .layers import Connector, draw_linear, pad_rows
from .transformer import Transformer


@dataclass(frozen=True)
class ModalitySpec:
    """A continuous modality: channels of a latent, and how many make an image (None: the model ends the span).

    feature_dim: channels of the features that a second tokenizer reads from the same media; they are added to the input
    wherever the latents are the model's own answer (PAPER §6). None: there is no such tokenizer.
    """

    latent_dim: int
    num_latents: int | None = None
    feature_dim: int | None = None


class LatentLM(nn.Module):
    def __init__(
        self, config: ModelConfig, vocab_size: int, special: SpecialTokens, modalities: dict[str, ModalitySpec]
    ):
        super().__init__()
        width = config.transformer.width
        self.config = config
        self.special = special
        self.modalities = dict(modalities)
        self.embed_tokens = nn.Embedding(vocab_size, width)
        project = nn.Linear if config.latent_projection == "linear" else Connector
        self.embed_latents = nn.ModuleDict({name: project(m.latent_dim, width) for name, m in modalities.items()})
        self.embed_features = nn.ModuleDict(
            {name: project(m.feature_dim, width) for name, m in modalities.items() if m.feature_dim}
        )
        self.transformer = Transformer(config.transformer)
        self.text_head = nn.Linear(width, vocab_size, bias=False)
        if config.transformer.tied_embeddings:
            self.text_head.weight = self.embed_tokens.weight
        for name in config.heads:
            if name not in modalities:
                raise UserError(f"model.heads.{name}: the model has no such modality (it has {', '.join(modalities)})")
        self.heads = nn.ModuleDict(
            {
                name: build_head(width, m.latent_dim, config.heads.get(name, config.head), config.diffusion)
                for name, m in modalities.items()
            }
        )
        initialise(self)

    def forward(self, batch: PackedBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Named loss sums over the targets of `batch`, fp32: "text", "end" (nats) and that of each modality's head.

        The heads' random numbers come from `generator`. Divide by `batch.target_counts()` summed over the global batch.
        """
        hidden = self.hidden(batch).flatten(0, 1)  # (B·T, D)
        sums = {
            "text": self._text_loss(hidden, batch.text_targets.flatten()),
            "end": self._end_loss(hidden, batch.end_targets.flatten()),
        }
        for name, span in batch.latents.items():
            sums[name] = self._latent_loss(name, hidden, span, generator)
        return sums

    def hidden(self, batch: PackedBatch) -> Tensor:
        """Hidden states (B, T, D) of a packed batch."""
        x = self.embed_tokens(batch.ids)  # (B, T, D)
        shape, x = x.shape, x.flatten(0, 1)
        for name, span in batch.latents.items():
            x = self.embed_span(x, name, span.values, span.index, span.features, span.feature_index, pad=True)
        return self.transformer(x.view(shape), batch.positions, batch.documents)

    def embed_span(
        self,
        x: Tensor,
        name: str,
        values: Tensor,
        index: Tensor,
        features: Tensor | None = None,
        feature_index: Tensor | None = None,
        pad: bool = False,
    ) -> Tensor:
        """Inputs x (P, D) with latents `values` (N, C) of modality `name` embedded at positions `index` (N,), and
        `features` (M, F) embedded and added at positions `feature_index` (M,).

        pad: embed a multiple of TILE rows (`pad_rows`), for batches whose numbers of latents keep changing.
        """
        rows = values.to(x.dtype)
        embedded = self.embed_latents[name](pad_rows(rows) if pad else rows)[: len(rows)]  # (N, D)
        x = x.index_copy(0, index, embedded.to(x.dtype))
        if features is None:
            return x
        return x.index_add(0, feature_index, self.embed_features[name](features.to(x.dtype)).to(x.dtype))

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of the next token, fp32."""
        logits = self.text_head(hidden).float()
        if self.config.special_offset:
            special = self.special
            spans = [special.eod, special.proceed, special.latent, *special.bod.values()]
            logits[..., spans] += self.config.special_offset
        return logits

    def end_logits(self, hidden: Tensor, tokens: Sequence[int] | None = None) -> Tensor:
        """Logits (..., 2) of going on and of ending the span, or of `tokens`: rows of the text head."""
        rows = self.text_head.weight[list(tokens or (self.special.proceed, self.special.eod))]
        return F.linear(hidden, rows).float()

    def _text_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        keep = (targets != IGNORE).nonzero()[:, 0]
        logits = self.text_logits(pad_rows(hidden[keep]))[: len(keep)]
        return F.cross_entropy(logits, targets[keep], reduction="sum")

    def _end_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Over what generation chooses from: in answers that last until <EOS>, a new start and <EOS> as well."""
        special, keep = self.special, (targets != IGNORE).nonzero()[:, 0]
        tokens = [special.proceed, special.eod]
        if self.config.stop_at == "eos":
            tokens += [special.bod[name] for name, spec in self.modalities.items() if spec.num_latents is None]
            tokens.append(special.eos)
        logits = self.end_logits(pad_rows(hidden[keep]), tokens)[: len(keep)]
        return F.cross_entropy(logits, targets[keep], reduction="sum")

    def _latent_loss(self, name: str, hidden: Tensor, span: LatentSpans, generator: torch.Generator) -> Tensor:
        """The head's loss, summed over target latents."""
        clean = (span.means if self.config.diffusion.target == "mean" else span.values)[span.target].float()  # (N, C)
        return self.heads[name].loss(hidden[span.index[span.target] - 1], clean, generator)


def initialise(model: LatentLM) -> None:
    """All initialisation: linear layers by `draw_linear`, residual outputs scaled by 1/√(2L), tokens of std 0.02; the
    heads initialise themselves."""
    nn.init.normal_(model.embed_tokens.weight, std=0.02)
    for name, part in model.named_children():
        if name != "heads":
            draw_linear(part)
    for head in model.heads.values():
        head.initialise()
    nn.init.normal_(model.text_head.weight, std=0.02)
    scale = (2 * len(model.transformer.blocks)) ** -0.5
    with torch.no_grad():
        for block in model.transformer.blocks:
            block.attention.out.weight.mul_(scale)
            block.ffn.down.weight.mul_(scale)
