"""The protocol of an evaluation: sampling settings and sample counts, and how the model is asked.

Place in the flow: below every scorer that generates. `Protocol.describe` makes the text that stands beside a figure.
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
"""Default guidance scale by task; for documents it is replaced by the model's own."""
MAX_ANSWER_TOKENS = 64
WORD_SECONDS, PHRASE_SECONDS = 3.0, 6.0
"""Longest digit word and phrase, several times the longest real ones; an utterance is cut there."""


@dataclass(frozen=True)
class Counts:
    """Numbers of samples. judge_pictures: pictures of a user's own data that a classifier is trained on."""

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
    drawn: int = 200
    spoken: int = 100
    judge_pictures: int = 4000


QUICK = Counts(
    digits_per_class=10, captions=50, draws=20, emoji=20, shapes=20, words=20, phrases=8, text_documents=20,
    reconstructions=20, documents=20, drawn=20, spoken=8, judge_pictures=400,
)  # fmt: skip
"""Fewer samples, for a quick check; the protocol of each figure says so."""


@dataclass(frozen=True)
class Protocol:
    """Sampling settings. guidance: scale by task; weights: "ema" or "raw"; uses_solver: whether a head has a solver."""

    steps: int = 20
    seed: int = 0
    solver: str = "dpm++2m"
    uses_solver: bool = True
    weights: str = "ema"
    dtype: str = "float32"
    guidance: Mapping[str, float] = field(default_factory=lambda: dict(GUIDANCE))
    counts: Counts = Counts()
    batch_size: int = 250

    def with_guidance(self, guidance: float | Mapping[str, float] | None) -> Protocol:
        """The protocol with one guidance scale for every task, or with scales by task that replace the defaults.

        Raises UserError for an unknown task.
        """
        if guidance is None:
            return self
        if not isinstance(guidance, Mapping):
            return replace(self, guidance=dict.fromkeys(GUIDANCE, float(guidance)))
        for task in guidance:
            if task not in GUIDANCE:
                raise UserError(f"guidance of unknown task {task!r}{did_you_mean(task, GUIDANCE)}")
        return replace(self, guidance=dict(self.guidance) | dict(guidance))

    def describe(self, samples: str, task: str | None = None) -> str:
        """`samples`, then how they were generated: with the guidance of `task`, or as greedy text if `task` is None."""
        if task is None:
            return f"{samples}; greedy, {self._computed}"
        solver = f", {self.steps} steps of {self.solver}" if self.uses_solver else ""
        return f"{samples}; guidance {self.guidance[task]:g}{solver}, {self._computed}"

    def describe_scores(self, samples: str) -> str:
        """`samples` that were scored, not generated, then weights, dtype and seed."""
        return f"{samples}; {self._computed}"

    @property
    def _computed(self) -> str:
        quick = "; QUICK run, noisy" if self.counts == QUICK else ""
        return f"{self.weights} weights, {self.dtype}, seed {self.seed}{quick}"


def check_tasks(tasks: Sequence[str]) -> None:
    """Raise UserError for the first unknown name in `tasks`."""
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"unknown evaluation {task!r}{did_you_mean(task, TASKS)}")


def before_answer(document: Document) -> Document:
    """The prompt that asks for the last segment of a document: all other segments, as conditions."""
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
    """One answer per prompt, in order, each with its own seed.

    seconds: longest utterance; max_latents: longest answer of other modalities that the model ends itself.
    """
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
    """The text of an answer, without leading and trailing space."""
    return "".join(segment.text for segment in output.segments if isinstance(segment, Text)).strip()


def answer_media(output: GenerationOutput):
    """The picture, clip or array of an answer that has one."""
    return next(segment.content for segment in output.segments if not isinstance(segment, Text))
