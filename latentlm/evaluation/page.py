"""The report as one HTML file that loads nothing else: its pictures, sounds, style and script are inside.

Place in the flow: `Report` ──▶ report.html. The template is `page.html.jinja`, the style `page.css`, the players'
buttons `page.js`. The template escapes all text.
"""

from __future__ import annotations

import base64
import io
import wave
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..media.sound import Audio
from ..weights import write_text
from . import formatting
from .curves import loss_curve, read_losses, waveform
from .report import Report

if TYPE_CHECKING:
    from jinja2 import Template
    from PIL.Image import Image as PILImage

CARDS = {
    "digits.prompt_accuracy": "digits drawn right",
    "digits.frechet_ratio": "Fréchet distance ÷ real",
    "digits.caption_accuracy": "digits read right",
    "emoji.top1": "emoji remembered",
    "speech.word_ratio": "words said ÷ real",
    "speech.transcribe_accuracy": "words written down",
    "speech.stop_rate": "speech ended by the model",
    "shapes.held_out_draw_accuracy": "unseen shapes drawn",
    "shapes.held_out_caption_accuracy": "unseen shapes described",
    "text.bits_per_byte": "bits per byte of text",
    "documents.bits_per_byte": "bits per byte, your own texts",
    "documents.exact_match": "your own texts written exactly",
    "documents.image_class_accuracy": "your own classes drawn right",
    "documents.image_frechet_ratio": "Fréchet distance ÷ real",
    "documents.image_loss": "loss of your own pictures",
    "documents.speech_wer": "word errors in your own speech",
    "documents.speaker_similarity": "speaker similarity",
    "documents.speech_loss": "loss of your own speech",
    "documents.stop_rate": "your own speech ended by the model",
    "documents.image_psnr": "your own pictures reconstructed",
    "documents.speech_stoi": "your own speech reconstructed, STOI",
    "seconds.train": "training time",
    "seconds.total": "total time",
}
"""The figures at the top of the page, in order, and their titles there."""


def write_report(report: Report, folder: str | Path, train_log: str | Path | None = None) -> None:
    """Write report.json and report.html into `folder`; the page has loss curves where `train_log` is a train.jsonl."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    report.save_json(folder / "report.json")
    write_text(folder / "report.html", render_page(report, train_log))


def render_page(report: Report, train_log: str | Path | None = None) -> str:
    """The page as HTML text."""
    from markupsafe import Markup

    losses = read_losses(train_log) if train_log is not None else {}
    page = _template().render(
        report=report,
        cards=[(report.figures[name], title) for name, title in CARDS.items() if name in report.figures],
        requirements=[figure for figure in report.figures.values() if figure.passed is not None],
        losses={name: Markup(loss_curve(name, *curve)) for name, curve in losses.items()},
        style=Markup(_read("page.css")),
        script=Markup(_read("page.js")),
    )
    return page.lstrip() + "\n"


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {
        "png": _png_url,
        "wav": lambda audio: _data_url("audio/wav", wav_bytes(audio)),
        "waveform": lambda audio: Markup(waveform(audio)),
        "measured": formatting.measured,
        "plus_minus": formatting.plus_minus,
        "reference": formatting.reference,
        "bound": formatting.bound,
    }
    return environment.from_string(_read("page.html.jinja"))


def _png_url(picture: PILImage) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return _data_url("image/png", buffer.getvalue())


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def wav_bytes(audio: Audio) -> bytes:
    """A mono WAV file of 16-bit samples; samples outside [-1, 1] are clipped."""
    samples = audio.samples.detach().float().cpu().clamp(-1, 1).numpy()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(audio.sample_rate)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def _read(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
