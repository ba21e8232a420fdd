"""Samples during training, as files in `folder`.

Place in the flow: 5, the trainer's `on_sample`; a loss does not tell whether samples are good.
`SampleWriter` is for language models: documents of each source are the prompts. It writes step-…-image.png (a grid),
step-…-speech-….wav, a grid of plots of any other modality, and step-….json with prompts and answers.
`ReconstructionWriter` is for tokenizers: it writes training media and their reconstructions.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from ..config.modalities import modalities, modality
from ..generation.pipeline import Pipeline
from ..generation.request import Request
from ..media.picture import save_image, tensor_to_image
from ..media.sound import Audio, save_audio
from ..tokenizers.base import Tokenizer
from ..types import Document, MediaBatch, Text
from ..weights import write_text

NUM_IMAGES, NUM_UTTERANCES, NUM_TEXTS = 16, 2, 8
COLUMNS = 8
"""Pictures per row; their reconstructions are the row below."""
SECONDS = 10
"""Longest part of a clip that is reconstructed, in seconds."""


class SampleWriter:
    """Generates from prompts, which are the condition segments of documents of all sources in turn."""

    def __init__(
        self, pipeline: Pipeline, documents: Sequence[Sequence[Document]], folder: Path, guidance: float = 2.0
    ):
        self.pipeline = pipeline
        self.folder = folder
        self.requests: list[Request] = []
        self.real: list[str] = []
        self._choose(documents, guidance)

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """Write the samples of `step`; return the shares of texts that equal the real ones and of speech that ended."""
        self.folder.mkdir(parents=True, exist_ok=True)
        outputs = self.pipeline.generate_batch(self.requests)
        record, right = [], []
        pictures, ended = defaultdict(list), defaultdict(list)  # by modality
        for number, (request, output, real) in enumerate(zip(self.requests, outputs, self.real, strict=True)):
            answer = output.segments[0]
            name, said = answer.modality, None
            if isinstance(answer, Text):
                said = answer.text
                right.append(said.strip() == real.strip())
            else:
                shown = modality(name).show(answer.content)
                if isinstance(shown, Audio):
                    save_audio(shown, self.folder / f"step-{step:08d}-{name}-{number}.wav")
                else:
                    pictures[name].append(shown)
                if modality(name).ends_itself:
                    ended[name].append(output.finish_reason == "stop")
            entry = {"prompt": _prompt_text(request.prompt), "to": request.to, "answer": said, "real": real}
            record.append(entry | {"finish_reason": output.finish_reason})
        for name, made in pictures.items():
            save_image(contact_sheet(made), self.folder / f"step-{step:08d}-{name}.png")
        path = self.folder / f"step-{step:08d}.json"
        write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        shares = {"sampled texts right": right} | {f"sampled {name} that ends": ends for name, ends in ended.items()}
        return {name: sum(found) / len(found) for name, found in shares.items() if found}

    def _choose(self, documents: Sequence[Sequence[Document]], guidance: float) -> None:
        left = {each.name: NUM_UTTERANCES if each.ends_itself else NUM_IMAGES for each in modalities()}
        left["text"] = NUM_TEXTS
        for place in range(max(left.values())):
            for source in documents:
                document = source[(place * 37) % len(source)]
                conditions = tuple(s for s in document.segments if s.condition)
                answer = next((s for s in document.segments if not s.condition), None)
                if not conditions or answer is None or left[answer.modality] == 0:
                    continue
                left[answer.modality] -= 1
                options = {"max_tokens": 48, "max_latents": 64, "steps": 10, "seed": place}
                if answer.modality != "text":
                    options["guidance"] = guidance
                self.requests.append(Request(Document(conditions), answer.modality, **options))
                self.real.append(answer.text if isinstance(answer, Text) else "")


class ReconstructionWriter:
    """Writes step-…-image.png, rows of training pictures over rows of their reconstructions; or speech-….wav, the
    training clips as prepared for the tokenizer, and step-…-speech-….wav, their reconstructions. Latents are the
    posterior means, without noise."""

    def __init__(self, sources: Sequence[Sequence], folder: Path):
        self.sources = sources
        self.folder = folder

    def __call__(self, tokenizer: Tokenizer, step: int) -> None:
        """Write the samples of `step`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        num = NUM_IMAGES if tokenizer.modality == "image" else NUM_UTTERANCES
        turns = (divmod(number, len(self.sources)) for number in range(num))
        media = [self.sources[i][(place * 37) % len(self.sources[i])] for place, i in turns]
        batch = tokenizer.batch([_beginning(item) if isinstance(item, Audio) else item for item in media])
        parameters, valid = tokenizer.encode_batch(batch.media, batch.lengths)
        mean, _ = tokenizer.posterior.split(parameters.float())
        made = tokenizer.unbatch(tokenizer.decode_batch(mean * valid[..., None]), valid.sum(1).tolist())
        if tokenizer.modality == "image":
            self._pictures(batch, made, step)
        else:
            self._clips(batch, made, step)

    def _pictures(self, batch: MediaBatch, made: list, step: int) -> None:
        given = [tensor_to_image(pixels) for pixels in batch.media]
        starts = range(0, len(made), COLUMNS)
        rows = [row for start in starts for row in (given[start : start + COLUMNS], made[start : start + COLUMNS])]
        sheet = contact_sheet([picture for row in rows for picture in row], columns=min(COLUMNS, len(made)))
        save_image(sheet, self.folder / f"step-{step:08d}-image.png")

    def _clips(self, batch: MediaBatch, made: list[Audio], step: int) -> None:
        for number, (clip, length, audio) in enumerate(zip(batch.media, batch.lengths, made, strict=True)):
            save_audio(Audio(clip[0, :length], audio.sample_rate), self.folder / f"speech-{number}.wav")
            save_audio(audio, self.folder / f"step-{step:08d}-speech-{number}.wav")


def _beginning(audio: Audio) -> Audio:
    return replace(audio, samples=audio.samples[: SECONDS * audio.sample_rate])


def _prompt_text(document: Document) -> str:
    return " ".join(s.text if isinstance(s, Text) else f"<{s.modality}>" for s in document.segments)


def contact_sheet(images: Sequence, columns: int | None = None, pad: int = 2):
    """A grid of PIL images of equal size, as one PIL image."""
    from PIL import Image as PILImage

    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = images[0].size
    rows = math.ceil(len(images) / columns)
    sheet = PILImage.new("RGB", (columns * (width + pad) + pad, rows * (height + pad) + pad), "white")
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        sheet.paste(image, (pad + column * (width + pad), pad + row * (height + pad)))
    return sheet
