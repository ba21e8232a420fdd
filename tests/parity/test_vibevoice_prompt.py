"""Scripts and voices against VibeVoice's own processor: equal ids for every script, equal sound to 1e-6."""

import json
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import tiny_vibevoice
import torch

from latentlm.config import SpeechTokenizerConfig
from latentlm.data.packing import DocumentEncoder
from latentlm.data.script import parse_script, script_prompt
from latentlm.interop.vibevoice import load
from latentlm.media.sound import Audio, load_audio
from latentlm.tokenizers.speech import SpeechTokenizer
from latentlm.tokenizers.text import TextTokenizer
from latentlm.types import Latents

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "vibevoice_prompts.json").read_text(encoding="utf-8"))
TOKENS = {"<start>": "<|vision_start|>", "<end>": "<|vision_end|>", "<latent>": "<|vision_pad|>"}
HOP = 3200


@pytest.fixture(scope="module")
def processor():
    """The real class, over a Qwen2 tokenizer with merges learned from the scripts and Qwen2's special tokens."""
    from tokenizers import pre_tokenizers
    from tokenizers.trainers import BpeTrainer
    from transformers import Qwen2Tokenizer, VibeVoiceAcousticTokenizerFeatureExtractor, VibeVoiceProcessor

    empty = Qwen2Tokenizer(vocab={}, merges=[])
    learner = empty.backend_tokenizer
    trainer = BpeTrainer(
        vocab_size=500, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    learner.train_from_iterator([piece for case in GOLDEN["cases"] for piece in case["pieces"]], trainer)
    learned = json.loads(learner.to_str())["model"]
    tokenizer = Qwen2Tokenizer(vocab=learned["vocab"], merges=[tuple(merge) for merge in learned["merges"]])
    tokenizer.add_special_tokens({"additional_special_tokens": list(TOKENS.values())})
    return VibeVoiceProcessor(VibeVoiceAcousticTokenizerFeatureExtractor(), tokenizer)


@pytest.fixture(scope="module")
def encoder(processor, tmp_path_factory):
    """Our encoder over the same tokenizer.json."""
    folder = tmp_path_factory.mktemp("tokenizer")
    processor.tokenizer.save_pretrained(folder)
    start, end, latent = map(processor.tokenizer.convert_tokens_to_ids, TOKENS.values())
    special = {"eos": processor.tokenizer.eos_token_id, "bod:speech": start, "eod": end}
    special |= {"proceed": latent, "latent": latent} | {"bos": None, "bod:image": None}
    return DocumentEncoder(TextTokenizer.from_backbone(folder / "tokenizer.json", len(processor.tokenizer), special))


def our_ids(encoder, case) -> list[int]:
    script = parse_script(case["script"])
    counts = [-(-samples // HOP) for samples in case["samples"]]
    voices = [Latents(torch.zeros(count, 4), torch.zeros(()), "none") for count in counts]
    document = script_prompt(script, dict(zip(script.speakers, voices, strict=False)))
    prompt = encoder(document, closed=False)
    encoder.open_span(prompt, "speech")
    assert [len(span.latents) for span in prompt.spans] == counts
    return prompt.ids


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_ids_are_those_of_the_processor_of_transformers(processor, encoder, case):
    text = "".join(TOKENS.get(piece, piece) for piece, _ in groupby(case["pieces"]))
    clips = [np.full(samples, 0.1, np.float32) for samples in case["samples"]]
    theirs = processor(text=text, audio=clips or None, sampling_rate=24000, return_tensors="pt")
    assert our_ids(encoder, case) == theirs["input_ids"][0].tolist()


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_ids_are_those_of_microsofts_processor(processor, encoder, case):
    tokenizer = processor.tokenizer
    theirs = [
        i
        for piece in case["pieces"]
        for i in (tokenizer.convert_tokens_to_ids([TOKENS[piece]]) if piece in TOKENS else tokenizer.encode(piece))
    ]
    assert our_ids(encoder, case) == theirs


@pytest.mark.filterwarnings("ignore:the script has 2 speakers")
def test_a_checkpoint_of_theirs_speaks_a_script(tmp_path):
    pipeline = load(tiny_vibevoice.save(tiny_vibevoice.build(), tmp_path))
    special = pipeline.model.special
    with torch.no_grad():  # a tie to the last bit, and argmax goes on
        pipeline.model.text_head.weight[[special.proceed, special.eod, special.bod["speech"], special.eos]] = 0
    clip = Audio(torch.randn(240, generator=torch.Generator().manual_seed(0)) * 0.1, 24000)
    said = [
        pipeline.generate("Speaker 1: Hi.\nSpeaker 2: Ho.", "speech", voices=voices, steps=2, max_latents=5)[0].samples
        for voices in ({}, {1: clip}, {2: clip})
    ]
    assert [len(samples) for samples in said] == [5 * tiny_vibevoice.HOP] * 3
    assert not any(torch.equal(one, two) for one, two in (said[:2], said[::2], said[1:]))


def tones(seconds: float, rate: int, level: float) -> np.ndarray:
    """Two channels (N, 2), unlike."""
    t = np.arange(round(seconds * rate)) / rate
    return level * np.stack((np.sin(2 * np.pi * 220 * t), np.sin(2 * np.pi * 350 * t) ** 2), axis=1)


@pytest.mark.parametrize(("suffix", "rate"), [(".wav", 44100), (".flac", 24000), (".ogg", 16000)])
def test_a_voice_clip_is_heard_as_by_their_extractor(processor, tmp_path, agree, notices, suffix, rate):
    """Read, mixed down and resampled by us, loudness and padding against theirs, as it enters the encoder."""
    import soundfile

    clips = []
    for number, level in enumerate((0.3, 1e-4)):
        soundfile.write(tmp_path / f"{number}{suffix}", tones(0.5 + number / 3, rate, level), rate)
        clips.append(load_audio(tmp_path / f"{number}{suffix}", 24000))
    click = torch.zeros(24000)
    click[::6000] = 0.9  # so quiet in the mean that its peaks would be clipped
    clips.append(Audio(click, 24000))
    theirs = processor.feature_extractor([clip.samples.numpy() for clip in clips], sampling_rate=24000)
    tokenizer, heard = build_tokenizer(), []
    tokenizer.encoder.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    latents = tokenizer.encode(clips)
    agree("VibeVoice voice clip", heard[0], theirs["input_values"][:, 0], 1e-6)
    assert [len(item) for item in latents] == (theirs["padding_mask"].sum(1) / HOP).ceil().int().tolist()


def build_tokenizer() -> SpeechTokenizer:
    config = {"strides": (40, 80), "depths": (1, 1, 1), "channels": 2, "latent_dim": 2, "loudness": -25}
    tokenizer = SpeechTokenizer(SpeechTokenizerConfig(**config)).eval()
    tokenizer.latent_mean.zero_()
    tokenizer.latent_std.fill_(1.0)
    return tokenizer
