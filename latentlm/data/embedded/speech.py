"""Synthetic speech: digit words and short phrases spoken by eSpeak NG in 30 voices, six of which are held out.

Place in the flow: raw items for `data.sources`; 16 kHz mono. eSpeak NG (GPL-3) runs in a process of its own (see
`espeak_process`); it comes with `pip install espeakng-loader`. Clips are trimmed, brought to one loudness, and kept in
memory and in one file per split in the cache folder.
Splits: "train" is 24 voices saying the digit words, and each train phrase in six of them; "held_out" is six other
voices saying the digit words and the held-out phrases, each in three.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from ...errors import UserError
from ...media.sound import Audio
from ...weights import replacing
from ..cache_dir import default_cache_dir
from .phrases import DIGITS, phrases

SAMPLE_RATE = 16000
SILENCE_SECONDS = 0.04
LOUDNESS = 0.08
"""Root mean square of a clip, relative to full scale; peaks are limited to PEAK."""
PEAK = 0.95
VOICES_PER_PHRASE = {"train": 6, "held_out": 3}
_FORMAT = 1  # of the cache file and of the treatment of clips


@dataclass(frozen=True)
class Voice:
    """One speaker: an eSpeak voice (language+variant), pitch 0..99, speed in words per minute."""

    name: str
    espeak: str
    pitch: int
    speed: int


@dataclass(frozen=True)
class Planned:
    """A text to be spoken and its voice; `kind` is "digit" or "phrase"."""

    text: str
    voice: Voice
    kind: str


@dataclass(frozen=True)
class Utterance(Planned):
    """A spoken text: one clip at 16 kHz."""

    audio: Audio


def _voices(*table: tuple[str, int, int]) -> tuple[Voice, ...]:
    named = ((name, name if name.startswith("en-") else f"en-us+{name}", pitch, speed) for name, pitch, speed in table)
    return tuple(Voice(name.lower(), *rest) for name, *rest in named)


# Chosen among all English variants: a recogniser hears their digit words, and equal requests give equal samples.
VOICES = {
    "train": _voices(
        ("en-us", 45, 140), ("Alex", 50, 145), ("Denis", 38, 150), ("Diogo", 58, 130), ("Gene", 42, 140),
        ("Gene2", 60, 140), ("Henrique", 35, 135), ("Reed", 50, 150), ("adam", 58, 140), ("anika", 60, 120),
        ("announcer", 45, 150), ("belinda", 62, 140), ("benjamin", 40, 135), ("caleb", 65, 145), ("croak", 50, 135),
        ("grandpa", 50, 150), ("john", 45, 130), ("klatt", 55, 130), ("klatt4", 38, 145), ("m1", 62, 140),
        ("m3", 50, 130), ("m5", 45, 150), ("en-us-nyc", 70, 135), ("robosoft3", 55, 115),
    ),
    "held_out": _voices(
        ("Hugo", 55, 140), ("m6", 50, 145), ("michel", 40, 140), ("mike2", 48, 140), ("klatt3", 50, 135),
        ("miguel", 65, 140),
    ),
}  # fmt: skip


def load(split: str = "train", cache_dir: Path | str | None = None) -> list[Utterance]:
    """All utterances of a split (train 1,440; held_out 180), digit words first. Spoken at the first call, then cached.

    cache_dir defaults to $LATENTLM_CACHE, else $XDG_CACHE_HOME/latentlm, else ~/.cache/latentlm.
    Raises UserError if eSpeak NG is not installed.
    """
    return list(_load(split, Path(cache_dir) if cache_dir else default_cache_dir()))


def plan(split: str) -> list[Planned]:
    """The utterances of a split, in order, before they are spoken. Phrases are divided among the voices in turn."""
    voices, turns = VOICES[split], VOICES_PER_PHRASE[split]
    digits = [Planned(word, voice, "digit") for voice in voices for word in DIGITS]
    spoken = [
        Planned(text, voices[(turns * index + turn) % len(voices)], "phrase")
        for turn in range(turns)
        for index, text in enumerate(phrases(split))
    ]
    return digits + spoken


def speak(requests: Sequence[tuple[str, Voice]]) -> list[Audio]:
    """Speak texts, each in its voice, in one run of the speaking process. UserError if eSpeak NG is not installed."""
    _espeak_version()
    script = Path(__file__).with_name("espeak_process.py")
    lines = [
        json.dumps({"text": text, "voice": voice.espeak, "pitch": voice.pitch, "speed": voice.speed})
        for text, voice in requests
    ]
    # -P: the folder of the script stays off the module path
    process = subprocess.run(
        [sys.executable, "-P", str(script)], input="\n".join(lines).encode(), capture_output=True, check=False
    )
    if process.returncode != 0:
        raise RuntimeError(f"the speaking process failed: {process.stderr.decode(errors='replace').strip()[-500:]}")
    return _parse(process.stdout, len(lines))


def _parse(answers: bytes, num_expected: int) -> list[Audio]:
    clips, offset = [], 0
    while offset < len(answers):
        rate, num_bytes = struct.unpack_from("<II", answers, offset)
        content = answers[offset + 8 : offset + 8 + num_bytes]
        offset += 8 + num_bytes
        if rate == 0:
            raise UserError(content.decode())
        clips.append(_tidy(np.frombuffer(content, dtype="<i2"), rate))
    assert len(clips) == num_expected, (len(clips), num_expected)
    return clips


def _tidy(samples: np.ndarray, rate: int) -> Audio:
    """samples (N,) int16 -> a clip at 16 kHz, of one loudness, with SILENCE_SECONDS of silence at both ends."""
    import soxr

    sound = soxr.resample(samples.astype(np.float32) / 32768, rate, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(sound) > 0.01 * np.abs(sound).max())
    sound = sound[loud[0] : loud[-1] + 1]
    gain = min(LOUDNESS / np.sqrt(np.mean(sound**2)), PEAK / np.abs(sound).max())
    sound = np.pad(sound * gain, round(SILENCE_SECONDS * SAMPLE_RATE))
    # 16 bits, as the cache file keeps them: a clip is the same from the process and from the file
    return _audio(np.round(sound * 32767).astype(np.int16))


def _audio(samples: np.ndarray) -> Audio:
    return Audio(torch.from_numpy(samples.astype(np.float32) / 32767), SAMPLE_RATE)


@cache
def _load(split: str, cache_dir: Path) -> tuple[Utterance, ...]:
    wanted = plan(split)
    key = json.dumps([_FORMAT, _espeak_version(), [(planned.text, asdict(planned.voice)) for planned in wanted]])
    path = cache_dir / f"speech-{split}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if path.is_file():
        with np.load(path) as archive:
            samples, ends = archive["samples"], archive["ends"]
        clips = [_audio(clip) for clip in np.split(samples, ends[:-1])]
    else:
        clips = speak([(planned.text, planned.voice) for planned in wanted])
        _write(path, clips)
    return tuple(
        Utterance(planned.text, planned.voice, planned.kind, clip) for clip, planned in zip(clips, wanted, strict=True)
    )


def _write(path: Path, clips: Sequence[Audio]) -> None:
    """Write the file of a split atomically: several processes may write it at the same time."""
    samples = [np.round(clip.samples.numpy() * 32767).astype(np.int16) for clip in clips]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, samples=np.concatenate(samples), ends=np.cumsum([len(clip) for clip in samples]))


def _espeak_version() -> str:
    try:
        return importlib.metadata.version("espeakng-loader")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "the embedded speech needs eSpeak NG, which is not installed: pip install espeakng-loader"
        ) from None
