"""The whole of VibeVoice's `generate` against `transformers`, with the same noise; and what is right where it errs.

Their `generate` also takes `guidance_scale` as that of text (`UnbatchedClassifierFreeGuidanceLogitsProcessor`): a third
pass, over the placeholder tokens instead of the latents, changes which token follows. Microsoft's code does not; it is
taken out here.
"""

from dataclasses import dataclass, field

import pytest
import torch
from tiny_vibevoice import END, EOS, GO_ON, HOP, LATENT, START, build, save
from torch import Tensor
from transformers import VibeVoiceAcousticTokenizerFeatureExtractor
from transformers.models.vibevoice import generation_vibevoice

from latentlm.diffusion.solvers import make_plan, sample
from latentlm.generation.engine import Engine
from latentlm.generation.request import Request
from latentlm.interop.vibevoice import load
from latentlm.media.sound import Audio
from latentlm.modalities.speech import Speech
from latentlm.types import Document, Text

STEPS, FRAMES = 5, 32
VOICES = {"A": 260, "B": 97}
PROMPTS = (
    ("A voice:", "A", " says hello to everyone"),
    ("plain words, no voice, and rather more of them than the others have",),
    ("x", "B", "y"),
)
"""Text, and voices by name; unlike lengths, one without a voice."""


def clip(name: str) -> Audio:
    generator = torch.Generator().manual_seed(ord(name))
    return Audio(torch.randn(VOICES[name], generator=generator) * 0.3, 24000)


def document(parts: tuple[str, ...]) -> Document:
    given = {"condition": True, "loss": False}
    return Document(tuple(Speech(clip(p), **given) if p in VOICES else Text(p, **given) for p in parts))


@dataclass
class Answer:
    """Tokens with GO_ON at latents, latents (N, C) and samples (N·hop,) of one request."""

    tokens: list[int] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    sounds: list[Tensor] = field(default_factory=list)


@pytest.fixture(scope="module", params=[(1.0, 0.5), (0.35, 1.0)], ids=["long", "unlike ends"])
def both(request, tmp_path_factory):
    """Their model and ours; the second one's answers are 5, 28 and more frames long."""
    go_on, gain = request.param
    theirs = build(go_on=go_on, gain=gain)
    return theirs, load(save(theirs, tmp_path_factory.mktemp("vibevoice")))


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return load(save(build(), tmp_path_factory.mktemp("vibevoice")))


def requests(chosen: list[int], guidance: float, frames: int = FRAMES) -> list[Request]:
    common = {"guidance": guidance, "steps": STEPS, "max_latents": frames}
    return [Request(document(PROMPTS[i]), "speech", seed=i, **common) for i in chosen]


def our_answers(ours, chosen: list[int], guidance: float) -> list[Answer]:
    active = ours._active_requests(requests(chosen, guidance))
    answers = [Answer() for _ in active]
    special = ours.model.special
    for event in Engine.of(ours.model, active, ours._streams).run():
        answer = answers[event.handle]
        if event.kind == "latent":
            answer.tokens.append(GO_ON)
            answer.latents.append(event.value)
        elif event.kind == "sound":
            answer.sounds.append(event.value)
        elif event.kind == "close":
            answer.tokens.append(special.eod)
        elif event.kind == "open" and answer.tokens:
            answer.tokens.append(START)
    for answer, request in zip(answers, active, strict=True):
        if request.finish_reason == "stop":
            answer.tokens.append(EOS)
    return answers


def our_noise(ours, request: Request) -> torch.Generator:
    """A request's generator as it is when its first latent is sampled: its voices were drawn from it."""
    (request,) = ours._active_requests([request])
    for span in request.prompt.spans:
        span.latents.sample(request.generator)
    return request.generator


class Recorder:
    """Runs their `generate` with our noise, and keeps its latents."""

    def __init__(self, theirs, monkeypatch, generators: list[torch.Generator]):
        self.model, self.generators = theirs, generators
        self.latents: list[list[Tensor]] = [[] for _ in generators]
        step, draw = theirs._step_negative_branch, theirs._sample_audio_latent
        monkeypatch.setattr(theirs, "_step_negative_branch", lambda mask, *a: self._remember(mask) or step(mask, *a))
        monkeypatch.setattr(theirs, "_sample_audio_latent", lambda *a: self._keep(draw(*a)))
        monkeypatch.setattr(generation_vibevoice, "torch", self)
        text_guidance = "transformers.generation.utils.UnbatchedClassifierFreeGuidanceLogitsProcessor"
        monkeypatch.setattr(text_guidance, lambda *args, **kwargs: lambda ids, scores: scores)

    def __getattr__(self, name: str):
        return getattr(torch, name)

    def _remember(self, mask: Tensor) -> None:
        self.rows = mask.nonzero()[:, 0].tolist()

    def randn(self, *shape: int) -> Tensor:
        """Condition rows first, guidance rows after them; the latter's noise is never used."""
        noise = torch.stack([torch.randn(LATENT, generator=self.generators[row]) for row in self.rows])
        assert shape == (2 * len(noise), LATENT)
        return torch.cat((noise, noise))

    def _keep(self, latents: Tensor) -> Tensor:
        for row, latent in zip(self.rows, latents[:, 0], strict=True):
            self.latents[row].append(latent)
        return latents


def padded(ours, chosen: list[int], guidance: float) -> dict[str, Tensor]:
    """The same prompts as their processor lays them out: left-padded ids, and all voices in order."""
    prompts = [request.prompt.ids for request in ours._active_requests(requests(chosen, guidance))]
    width = max(map(len, prompts))
    rows = [[EOS] * (width - len(ids)) + ids for ids in prompts]
    inputs = {
        "input_ids": torch.tensor(rows),
        "attention_mask": torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]),
    }
    voices = [clip(part).samples.numpy() for i in chosen for part in PROMPTS[i] if part in VOICES]
    if voices:
        extract = VibeVoiceAcousticTokenizerFeatureExtractor(pad_to_multiple_of=HOP)
        inputs |= dict(extract(voices, sampling_rate=24000))
    return inputs


@torch.no_grad()
def their_answers(theirs, ours, monkeypatch, chosen: list[int], guidance: float) -> list[Answer]:
    generators = [our_noise(ours, request) for request in requests(chosen, guidance)]
    recorder = Recorder(theirs, monkeypatch, generators)
    inputs = padded(ours, chosen, guidance)
    output = theirs.generate(
        **inputs,
        guidance_scale=guidance,
        num_diffusion_steps=STEPS,
        max_new_tokens=FRAMES,
        do_sample=False,
        return_dict_in_generate=True,
    )
    monkeypatch.undo()
    answers = []
    for row, tokens in enumerate(output.sequences[:, inputs["input_ids"].shape[1] :].tolist()):
        tokens = tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
        answers.append(Answer(tokens, recorder.latents[row], [output.audio[row].flatten()]))
    return answers


@pytest.mark.parametrize("guidance", [1.0, 1.3])
@pytest.mark.parametrize("chosen", [[0], [0, 1, 2]], ids=["alone", "ragged batch"])
def test_generate(both, monkeypatch, agree, chosen, guidance):
    theirs, ours = both
    expected = their_answers(theirs, ours, monkeypatch, chosen, guidance)
    lengths = [len(answer.latents) for answer in expected]
    assert min(lengths) >= 30 or len(set(lengths)) > 1 or chosen == [0]
    for mine, yours in zip(our_answers(ours, chosen, guidance), expected, strict=True):
        assert mine.tokens[: len(yours.tokens)] == yours.tokens
        count = len(yours.latents)
        agree("VibeVoice generate, latents", torch.stack(mine.latents[:count]), torch.stack(yours.latents), 1e-4)
        agree("VibeVoice generate, audio", torch.cat(mine.sounds)[: count * HOP], torch.cat(yours.sounds), 1e-4)


def follow(monkeypatch, model, script: list[int]) -> None:
    """Let the text head choose the tokens of `script`, one after the other."""
    rest = iter(script)

    def choose(hidden: Tensor, tokens: tuple[int, ...]) -> Tensor:
        chosen = torch.full((len(hidden), len(tokens)), -torch.inf)
        chosen[:, tokens.index(next(rest))] = 0
        return chosen

    monkeypatch.setattr(model, "end_logits", choose)


@torch.no_grad()
def test_every_start_begins_the_guidance_branch_and_the_streams_anew(ours, monkeypatch):
    """Where the reference errs. At a second <start> it keeps a copy of the first one and feeds <start> again, so that
    its null context is two starts; with others in the batch, <end> comes in between; and its two streams run on.
    """
    first, second, guidance = 3, 4, 1.7
    follow(monkeypatch, ours.model, [GO_ON] * first + [END, START] + [GO_ON] * second + [END, EOS])
    (answer,) = our_answers(ours, [1], guidance)
    assert answer.tokens == [GO_ON] * first + [END, START] + [GO_ON] * second + [END, EOS]

    model, generator = ours.model, our_noise(ours, requests([1], guidance)[0])
    (request,) = ours._active_requests(requests([1], guidance))
    plan = make_plan(model.heads["speech"].process, "dpm++2m", STEPS)
    condition = [model.embed_tokens(torch.tensor(i)) for i in request.prompt.ids]
    expected = []
    for count in (first, second):
        stream, null = ours._streams["speech"](), [model.embed_tokens(torch.tensor(START))]
        for _ in range(count):
            c, u = (last_hidden(model, inputs) for inputs in (condition, null))

            def predict(x: Tensor, t: float, c: Tensor = c, u: Tensor = u) -> Tensor:
                conditional, null = (model.heads["speech"](x, torch.tensor([t]), h) for h in (c, u))
                return null + guidance * (conditional - null)

            latent = sample(plan, predict, torch.randn(LATENT, generator=generator)[None])
            _, features = stream.push(latent)
            heard = model.embed_latents["speech"](latent) + model.embed_features["speech"](features)
            condition.append(heard[0])
            null.append(heard[0])
            expected.append(latent[0])
        condition += [model.embed_tokens(torch.tensor(i)) for i in (END, START)]
    torch.testing.assert_close(torch.stack(answer.latents), torch.stack(expected), atol=1e-4, rtol=0)


def last_hidden(model, inputs: list[Tensor]) -> Tensor:
    count = torch.arange(len(inputs))[None]
    return model.transformer(torch.stack(inputs)[None], count, torch.zeros_like(count))[:, -1]


def test_what_shares_the_batch_does_not_matter(ours):
    together = ours.generate_batch(requests([0, 1, 2], 1.3, frames=6))
    for i, output in enumerate(together):
        (alone,) = ours.generate_batch(requests([i], 1.3, frames=6))
        assert output.finish_reason == alone.finish_reason == "length"
        torch.testing.assert_close(*(o.segments[0].content.samples for o in (output, alone)), atol=1e-4, rtol=0)


def test_streamed_is_the_whole_and_several_spans_are_one_answer(ours, monkeypatch):
    script = [GO_ON, GO_ON, END, START, GO_ON, END, EOS]
    follow(monkeypatch, ours.model, script * 3)
    (request,) = requests([2], 1.3)
    (output,) = ours.generate_batch([request])
    assert [len(segment.content.samples) // HOP for segment in output.segments] == [2, 1]
    whole = torch.cat([segment.content.samples for segment in output.segments])
    streamed = torch.cat([piece.samples for piece in ours.stream(request)])
    (answer,) = ours.generate(document(PROMPTS[2]), "speech", guidance=1.3, steps=STEPS, seed=2, max_latents=FRAMES)
    torch.testing.assert_close(streamed, whole)
    torch.testing.assert_close(answer.samples, whole)


def test_a_saved_model_comes_back(ours, tmp_path):
    from latentlm.checkpoint import write_config
    from latentlm.generation.pipeline import load as load_ours
    from latentlm.weights import save_weights

    write_config(tmp_path, ours.model, ours.tokenizers)
    save_weights(tmp_path / "model.safetensors", ours.model.state_dict())
    again = load_ours(tmp_path)
    first, second = (p.generate_batch(requests([0], 1.3, frames=3))[0].segments[0].content for p in (ours, again))
    assert torch.equal(first.samples, second.samples)
