"""A pipeline that answers from the data themselves, and wrongly as often as it is told to, for testing scorers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from latentlm.config import ModelConfig
from latentlm.data.embedded import digits, emoji, shapes
from latentlm.data.packing import DocumentEncoder
from latentlm.generation.request import Request
from latentlm.generation.scores import Scores
from latentlm.media.sound import Audio
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.model.latentlm import ModalitySpec
from latentlm.tokenizers.text import TextTokenizer
from latentlm.types import Document, GenerationOutput, Latents, MediaBatch, Text

RATE = 16000


class FakeModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = ModelConfig()
        self.modalities = {"image": ModalitySpec(4, 4), "speech": ModalitySpec(4)}


class FakeTokenizer:
    """Latents are the media's own pixels or samples; decoding adds noise of deviation `noise`."""

    rate = 12.5

    def __init__(self, kind: str, noise: float = 0.02):
        self.kind, self.noise, self.modality = kind, noise, kind
        self.config = SimpleNamespace(image_size=32, fit="crop")

    def batch(self, media: list) -> MediaBatch:
        from latentlm.media.picture import image_to_tensor

        return MediaBatch(torch.stack([image_to_tensor(m, 32) for m in media]), torch.full((len(media),), 32 * 32))

    def unbatch(self, media: torch.Tensor, counts: list[int]) -> list:
        from latentlm.media.picture import tensor_to_image

        return [tensor_to_image(pixels) for pixels in media]

    def encode(self, media: list) -> list[Latents]:
        from latentlm.media.picture import image_to_tensor

        values = [image_to_tensor(m, 32).flatten()[None] if self.kind == "image" else m.samples[None] for m in media]
        return [Latents(value, torch.zeros(()), "none") for value in values]

    def decode(self, latents: list[torch.Tensor]) -> list:
        from latentlm.media.picture import tensor_to_image

        generator = torch.Generator().manual_seed(0)
        noisy = [z + self.noise * torch.randn(z.shape, generator=generator) for z in latents]
        if self.kind == "image":
            return [tensor_to_image(z.view(3, 32, 32)) for z in noisy]
        return [Audio(z[0], RATE) for z in noisy]


class FakePipeline:
    """wrong: how often an answer is that to another question. clips: text -> its clips, for speech."""

    def __init__(self, wrong: float = 0.0, clips: dict[str, list[Audio]] | None = None, ends: bool = True):
        self.wrong, self.clips, self.ends = wrong, clips or {}, ends
        self.model = FakeModel()
        self.tokenizers = {"text": TextTokenizer(), "image": FakeTokenizer("image")}
        if clips:
            self.tokenizers["speech"] = FakeTokenizer("speech")
        self.encoder = DocumentEncoder(self.tokenizers["text"])
        self.requests: list[Request] = []
        self.scans = {word: [d for d in digits.load("train") if d.word == word] for word in digits.WORDS}
        self.emoji = {item.name: item.image for item in emoji.load("train")}
        self.heard = {id(clip): text for text, group in self.clips.items() for clip in group}
        self.seen = {id(d.image): d.word for d in digits.load("held_out")}

    def generate_batch(self, requests: list[Request]) -> list[GenerationOutput]:
        self.requests += requests
        return [GenerationOutput((self._answer(r),), "stop" if self.ends else "length") for r in requests]

    def score(self, document: Document, seed: int = 0) -> Scores:
        """Two bits a byte."""
        num = sum(len(s.text.encode()) for s in document.segments if isinstance(s, Text))
        return Scores(text_nats=2 * num * float(np.log(2)), num_text_tokens=num, num_text_bytes=num)

    def _answer(self, request: Request):
        generator = np.random.default_rng(request.seed)
        mistake = generator.random() < self.wrong
        if request.to == "text":
            return Text(self._read(request.prompt, mistake))
        text = request.prompt.segments[-1].text
        if request.to == "speech":
            said = generator.choice([other for other in self.clips if other != text]) if mistake else text
            return Speech(self.clips[said][generator.integers(len(self.clips[said]))])
        return Image(self._draw(text, mistake, generator))

    def _draw(self, text: str, mistake: bool, generator: np.random.Generator):
        if text in self.scans:
            word = str(generator.choice([w for w in self.scans if w != text])) if mistake else text
            return self.scans[word][generator.integers(len(self.scans[word]))].image.resize((32, 32), 0)
        if text in self.emoji:
            return self.emoji[str(generator.choice(list(self.emoji)))] if mistake else self.emoji[text]
        things = shapes.things("train")[:1] if mistake else shapes.parse_caption(text)
        return shapes.draw(things)

    def _read(self, prompt: Document, mistake: bool) -> str:
        if mistake:
            return "something else"
        given = prompt.segments[0]
        if isinstance(given, Text):
            return "and so on"
        if isinstance(given, Speech):
            return self.heard[id(given.content)]
        if len(prompt.segments) == 2:
            return shapes.answer(self._things(given.content), prompt.segments[1].text.strip())
        return self.seen.get(id(given.content)) or " and ".join(t.caption for t in self._things(given.content))

    @staticmethod
    def _things(image) -> tuple[shapes.Thing, ...]:
        for split in ("held_out", "train"):
            for index in range(120):
                for num in (1, 2):
                    if shapes.scene(split, index, num).image is image:
                        return shapes.scene(split, index, num).things
        raise AssertionError("not a picture of the first scenes")
