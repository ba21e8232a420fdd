"""How an evaluation is run: sampling settings and sample counts, and the one way in which it asks the model.

Place in the flow: under every scorer that generates. `Protocol.describe` is the sentence that stands beside a figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..config.base import did_you_mean
from ..errors import UserError
from ..generation.pipeline import Pipeline
from ..generation.request import Request
from ..types import Document, GenerationOutput, Text

TASKS = ("digits", "emoji", "shapes", "speech", "text", "reconstruction", "documents")
GUIDANCE = {"digits": 1.0, "emoji": 2.0, "shapes": 2.0, "speech": 1.5, "documents": 2.0}
"""Guidance scale a task, unless another is given; of documents the model's own, where it is known."""
MAX_ANSWER_TOKENS = 64
WORD_SECONDS, PHRASE_SECONDS = 3.0, 6.0
"""An utterance that has not ended by then is cut: several times the longest real one."""


@dataclass(frozen=True)
class Counts:
    """How many of each kind are generated or read."""

    digits_per_class: int = 100
    captions: int = 297
    draws: int = 40
    emoji: int = 200
    shapes: int = 100
    words: int = 200
    phrases: int = 40
    text_documents: int = 200
    reconstructions: int = 100
    documents: int = 500


QUICK = Counts(
    digits_per_class=10, captions=50, draws=20, emoji=20, shapes=20, words=20, phrases=8, text_documents=20,
    reconstructions=20, documents=20,
)  # fmt: skip
"""For a smoke run: the same procedures on fewer samples; its figures are noisy and say so."""


@dataclass(frozen=True)
class Protocol:
    """Sampling settings. guidance: a task -> scale; solver and dtype by name; weights "ema" or "raw"."""

    steps: int = 20
    seed: int = 0
    solver: str = "dpm++2m"
    weights: str = "ema"
    dtype: str = "float32"
    guidance: Mapping[str, float] = field(default_factory=lambda: dict(GUIDANCE))
    counts: Counts = Counts()
    batch_size: int = 250

    def with_guidance(self, guidance: float | Mapping[str, float] | None) -> Protocol:
        """One scale for every task, or scales by task over the defaults; UserError for a task that does not exist."""
        if guidance is None:
            return self
        if not isinstance(guidance, Mapping):
            return replace(self, guidance=dict.fromkeys(GUIDANCE, float(guidance)))
        for task in guidance:
            if task not in GUIDANCE:
                raise UserError(f"guidance of unknown task {task!r}{did_you_mean(task, GUIDANCE)}")
        return replace(self, guidance=dict(self.guidance) | dict(guidance))

    def describe(self, samples: str, task: str | None = None) -> str:
        """`samples`, then how they were drawn. A task with guidance is one that samples latents."""
        drawn = f"guidance {self.guidance[task]:g}, {self.steps} steps of {self.solver}" if task else "greedy"
        return f"{samples}; {drawn}, {self._computed}"

    def describe_scores(self, samples: str) -> str:
        """`samples` that were given to the model and not drawn, then how they were scored."""
        return f"{samples}; {self._computed}"

    @property
    def _computed(self) -> str:
        quick = "; QUICK run, noisy" if self.counts == QUICK else ""
        return f"{self.weights} weights, {self.dtype}, seed {self.seed}{quick}"


def check_tasks(tasks: Sequence[str]) -> None:
    """UserError for the first of `tasks` that there is not."""
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"unknown evaluation {task!r}{did_you_mean(task, TASKS)}")


def before_answer(document: Document) -> Document:
    """A training document as a question: everything but its last segment, which the model is to give."""
    return Document(tuple(replace(segment, condition=True, loss=False) for segment in document.segments[:-1]))


def ask(
    pipeline: Pipeline,
    prompts: Sequence[Document],
    to: str,
    protocol: Protocol,
    task: str,
    seconds: float = 0.0,
    max_latents: int | None = None,
) -> list[GenerationOutput]:
    """An answer a prompt, in order, each with a seed of its own; `seconds` bounds speech, `max_latents` what else the
    model ends by itself."""
    limit = {"max_latents": max_latents}
    if to == "speech":
        limit["max_latents"] = max(1, round(seconds * pipeline.tokenizers["speech"].rate))
    requests = [
        Request(
            document,
            to,
            guidance=1.0 if to == "text" else protocol.guidance[task],
            steps=protocol.steps,
            seed=protocol.seed * 1_000_003 + number,
            max_tokens=MAX_ANSWER_TOKENS,
            solver=protocol.solver,
            **limit,
        )
        for number, document in enumerate(prompts)
    ]
    outputs: list[GenerationOutput] = []
    for start in range(0, len(requests), protocol.batch_size):
        outputs.extend(pipeline.generate_batch(requests[start : start + protocol.batch_size]))
    return outputs


def answer_text(output: GenerationOutput) -> str:
    """The text of an answer, without the space around it."""
    return "".join(segment.text for segment in output.segments if isinstance(segment, Text)).strip()


def answer_media(output: GenerationOutput):
    """The one medium of an answer."""
    return next(segment.content for segment in output.segments if not isinstance(segment, Text))
