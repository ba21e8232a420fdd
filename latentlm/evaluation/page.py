"""The report as one HTML page that needs nothing else: pictures and sounds are in it, no network is asked.

Place in the flow: `Report` ──▶ report.html. Style in `page.css`, the players' buttons in `page.js`;
every text of the model is escaped.
"""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Iterable
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..media.sound import Audio
from ..weights import write_text
from .curves import loss_curve, read_losses, waveform
from .report import Exhibit, Figure, Gallery, Report

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

CARDS = {
    "digits.prompt_accuracy": "digits drawn right",
    "digits.frechet_ratio": "Fréchet distance × real",
    "digits.caption_accuracy": "digits read right",
    "emoji.top1": "emoji remembered",
    "speech.word_ratio": "words said × real",
    "speech.transcribe_accuracy": "words written down",
    "speech.stop_rate": "stops by itself",
    "shapes.held_out_draw_accuracy": "unseen shapes drawn",
    "shapes.held_out_caption_accuracy": "unseen shapes described",
    "text.bits_per_byte": "bits per byte of text",
    "documents.bits_per_byte": "bits per byte, own texts",
    "documents.exact_match": "own texts written right",
    "documents.image_loss": "loss of own pictures",
    "documents.speech_loss": "loss of own speech",
    "documents.stop_rate": "own speech stops by itself",
    "documents.image_psnr": "own pictures reconstructed",
    "documents.speech_stoi": "own speech reconstructed, STOI",
    "seconds.train": "training time",
    "seconds.total": "everything",
}
"""The figures at the top of the page, in order, in words."""

_THIN = "\u202f"  # a narrow space where no line breaks
_MOST_DIGITS = 12  # more than a difference of figures can need
_PERCENT = ("accuracy", "top1", "top1_all", "match", "rate", "colour", "shape", "place", "accuracy_real", "wer")


def write_report(report: Report, folder: str | Path, train_log: str | Path | None = None) -> None:
    """report.json and report.html into `folder`; the page has loss curves where `train_log` is a train.jsonl."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    report.save_json(folder / "report.json")
    write_text(folder / "report.html", render_page(report, train_log))


def render_page(report: Report, train_log: str | Path | None = None) -> str:
    """The whole page as text."""
    losses = read_losses(train_log) if train_log is not None else {}
    sections = [_gallery(gallery) for gallery in report.galleries]
    links = [(gallery.name, gallery.title) for gallery in report.galleries] + [("figures", "All figures")]
    if losses:
        links.insert(-1, ("training", "Training"))
    menu = "".join(f'<a href="#{escape(name)}">{escape(title)}</a>' for name, title in links)
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    cards = "".join(_card(report.figures[name], title) for name, title in CARDS.items() if name in report.figures)
    body = [
        f"<h1>{escape(report.title)}</h1>",
        f'<p class="lede">{escape(report.subtitle)} {_verdict(report)}</p>',
        f"<nav>{menu}</nav>",
        f'<div class="cards">{cards}</div>',
        *sections,
        _training(losses) if losses else "",
        _table(report.figures.values()),
        f'<h2 id="remarks">Remarks</h2><ul class="note">{notes}</ul>' if notes else "",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{_beside('page.css')}</style></head>\n<body><main>"
        + "\n".join(part for part in body if part)
        + f"</main><script>{_beside('page.js')}</script></body></html>\n"
    )


def _verdict(report: Report) -> str:
    asked = [figure for figure in report.figures.values() if figure.passed is not None]
    met = sum(bool(figure.passed) for figure in asked)
    if not asked:
        return ""
    kind = "good" if met == len(asked) else "bad"
    return f'<b class="{kind}">{met} of {len(asked)}</b> requirements are met.'


def _card(figure: Figure, title: str) -> str:
    beside = []
    if figure.required is not None:
        mark = '<span class="good">✓</span>' if figure.passed else '<span class="bad">✗</span>'
        beside.append(f"{mark} required {_bound(figure)}")
    if figure.reference is not None:
        beside.append(f"{escape(figure.reference_name)}: {_show(figure.name, figure.reference)}")
    return (
        f'<div class="card"><div class="name">{escape(title)}</div>'
        f'<div class="value">{_measured(figure)}</div>'
        f'<div class="beside">{"<br>".join(beside)}</div></div>'
    )


# ------------------------------------------------------------------ galleries


def _gallery(gallery: Gallery) -> str:
    if gallery.columns:
        content = _dense(gallery)
    elif all(item.sound is not None for item in gallery.exhibits):
        content = f'<div class="sounds">{"".join(_sound(item) for item in gallery.exhibits)}</div>'
    elif all(item.picture is None for item in gallery.exhibits):
        content = f'<div class="written">{"".join(_tile(item) for item in gallery.exhibits)}</div>'
    else:
        content = f'<div class="tiles">{"".join(_tile(item) for item in gallery.exhibits)}</div>'
    head = f'<h2 id="{escape(gallery.name)}">{escape(gallery.title)}</h2><p class="note">{escape(gallery.note)}</p>'
    return head + content


def _dense(gallery: Gallery) -> str:
    heads = [f'<div class="head">{escape(item.title)}</div>' for item in gallery.exhibits[: gallery.columns]]
    cells = [
        f'<div class="{_class(item)}">{_image(item.picture, item.title)}</div>'
        for item in gallery.exhibits
        if item.picture
    ]
    style = f"grid-template-columns: repeat({gallery.columns}, minmax(0, 56px))"
    return f'<div class="grid-dense" style="{style}">{"".join(heads + cells)}</div>'


def _tile(item: Exhibit) -> str:
    pictures = [(item.reference, f"{item.title}, the real one"), (item.picture, item.title)]
    shown = "".join(_image(picture, label) for picture, label in pictures if picture is not None)
    pair = f'<div class="pair">{shown}</div>' if shown else ""
    text = f'<div class="text">{escape(item.text)}</div>' if item.text else ""
    return f'<div class="tile {_class(item)}">{pair}<div class="title">{escape(item.title)}</div>{text}</div>'


def _sound(item: Exhibit) -> str:
    assert item.sound is not None
    data = base64.b64encode(wav_bytes(item.sound)).decode()
    text = f'<div class="text">{escape(item.text)}</div>' if item.text else ""
    button = f'<button class="play" aria-label="play {escape(item.title)}">▶&#xFE0E;</button>'
    return (
        f'<div class="tile sound {_class(item)}">{button}'
        f'<div class="words"><div class="title">{escape(item.title)}</div>{text}</div>{waveform(item.sound)}'
        f'<audio preload="none" src="data:audio/wav;base64,{data}"></audio></div>'
    )


def _class(item: Exhibit) -> str:
    return "wrong" if item.mark is False else ""


def _image(picture: PILImage, label: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(label)}" title="{escape(label)}" src="data:image/png;base64,{data}">'


def wav_bytes(audio: Audio) -> bytes:
    """A WAV file of 16 bits."""
    samples = audio.samples.detach().float().cpu().clamp(-1, 1).numpy()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(audio.sample_rate)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


# ------------------------------------------------------------------ figures


def _training(losses: dict[str, tuple[list[float], list[float]]]) -> str:
    charts = "".join(
        f'<div class="card"><div class="name">{escape(name)}</div>{loss_curve(name, *curve)}</div>'
        for name, curve in losses.items()
    )
    note = (
        "Losses over steps: faint as logged, bold averaged. Text and end in nats, image and speech mean square. "
        "What is held out was never learnt; what is sampled are answers to training prompts."
    )
    return f'<h2 id="training">Training</h2><p class="note">{note}</p><div class="curves">{charts}</div>'


def _table(figures: Iterable[Figure]) -> str:
    rows = "".join(_row(figure) for figure in sorted(figures, key=lambda figure: figure.name))
    columns = {"": "", "figure": "", "value": "number", "required": "number", "reference": "number", "protocol": ""}
    heads = "".join(f'<th class="{kind}">{head}</th>' for head, kind in columns.items())
    note = (
        "Every figure with what the same procedure gives for the reference, what is asked for, and how it was measured."
    )
    return (
        f'<h2 id="figures">All figures</h2><p class="note">{note}</p>'
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _row(figure: Figure) -> str:
    kind, mark = {True: ("pass", "✓"), False: ("fail", "✗"), None: ("", "")}[figure.passed]
    error = f" ± {_show(figure.name, figure.error)}" if figure.error is not None else ""
    reference = ""
    if figure.reference is not None:
        reference = f"{_show(figure.name, figure.reference)}<br><small>{escape(figure.reference_name)}</small>"
    return (
        f'<tr class="{kind}"><td class="mark">{mark}</td><td class="figure">{escape(figure.name)}</td>'
        f'<td class="number"><b>{_measured(figure)}</b>{error}</td>'
        f'<td class="number">{_bound(figure)}</td><td class="number reference">{reference}</td>'
        f'<td class="protocol">{escape(figure.protocol)}</td></tr>'
    )


def _measured(figure: Figure) -> str:
    """The value, with as many digits as tell one that misses its bound from one that meets it."""
    shown, more = _show(figure.name, figure.value), 0
    while figure.passed is False and more < _MOST_DIGITS and shown == _show(figure.name, figure.required[1], more):
        more += 1
        shown = _show(figure.name, figure.value, more)
    return shown


def _bound(figure: Figure) -> str:
    if figure.required is None:
        return ""
    sign, bound = figure.required
    return f"{ {'>=': '≥', '<=': '≤'}[sign] } {_show(figure.name, bound)}"


def _show(name: str, value: float, more: int = 0) -> str:
    """A value with its unit, which the name tells, and `more` decimals than usual."""
    if name.startswith("seconds."):
        return f"{value / 60:.{1 + more}f}{_THIN}min" if value >= 120 else f"{value:.{1 + more}f}{_THIN}s"
    last = name.split(".")[-1]
    if last.endswith(_PERCENT):
        return f"{100 * value:.{1 + more}f}{_THIN}%"
    if last.endswith("psnr"):
        return f"{value:.{1 + more}f}{_THIN}dB"
    return f"{value:.{2 + more}f}" if 0.1 <= abs(value) < 1000 else f"{value:.{3 + more}g}"


@cache
def _beside(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
