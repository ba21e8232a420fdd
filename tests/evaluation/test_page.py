"""The page carries everything in itself, escapes what the model wrote, and draws what the log holds."""

import base64
import io
import json
import re
import wave

import pytest
import torch
from fake_pipeline import FakePipeline
from PIL import Image as PILImage

from latentlm.evaluation.curves import loss_curve, read_losses, waveform
from latentlm.evaluation.evaluate import evaluate
from latentlm.evaluation.page import render_page, wav_bytes, write_report
from latentlm.evaluation.report import Exhibit, Gallery, Report
from latentlm.media.sound import Audio


@pytest.fixture
def report():
    report = Report("A test")
    report.add("digits.prompt_accuracy", 0.5, "ten <digits>", reference=0.99, reference_name="real")
    report.add("emoji.top1", 1.0, "memory")
    picture, sound = PILImage.new("RGB", (4, 4), "red"), Audio(torch.zeros(160), 16000)
    exhibits = (Exhibit("a <b>name</b>", "<script>alert(1)</script>", False, picture, picture),)
    report.galleries.append(Gallery("drawn", "Drawn & kept", "one", exhibits))
    report.galleries.append(Gallery("said", "Said", "two", (Exhibit("one", sound=sound),)))
    report.galleries.append(Gallery("grid", "Grid", "three", (Exhibit("x", picture=picture),) * 4, columns=2))
    report.galleries.append(Gallery("written", "Written", "four", (Exhibit("once", "upon a time"),)))
    return report


def test_nothing_is_loaded_from_elsewhere(report):
    page = render_page(report)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "url(" not in page
    assert "http" not in page


def test_text_is_escaped(report):
    page = render_page(report)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "a &lt;b&gt;name&lt;/b&gt;" in page
    assert "ten &lt;digits&gt;" in page


def test_marks_and_verdict(report):
    page = render_page(report)
    assert page.count('<tr class="fail">') == 1
    assert page.count('<tr class="pass">') == 1
    assert '<b class="bad">1 of 2</b>' in page
    assert "50.0\u202f%" in page
    assert "≥ 97.0\u202f%" in page


def test_pictures_and_sounds_survive(report):
    page = render_page(report)
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", page)
    assert len(pictures) == 2 + 4
    assert PILImage.open(io.BytesIO(base64.b64decode(pictures[0]))).getpixel((0, 0)) == (255, 0, 0)
    (sound,) = re.findall(r"data:audio/wav;base64,([^\"]+)", page)
    with wave.open(io.BytesIO(base64.b64decode(sound))) as file:
        assert (file.getframerate(), file.getnframes(), file.getsampwidth()) == (16000, 160, 2)


def test_wav_is_clipped_and_kept():
    samples = torch.tensor([0.0, 0.5, -0.5, 3.0])
    with wave.open(io.BytesIO(wav_bytes(Audio(samples, 8000)))) as file:
        values = torch.frombuffer(bytearray(file.readframes(4)), dtype=torch.int16)
    assert values.tolist() == [0, 16384, -16384, 32767]


def test_loss_curves_from_a_log(report, tmp_path):
    log = tmp_path / "train.jsonl"
    lines = [json.dumps({"step": k, "losses": {"text": 3 / k, "image": 1.0}}) for k in range(1, 50)]
    log.write_text("\n".join(lines) + '\n{"step": 50, "los')  # killed in the middle of a line
    losses = read_losses(log)
    assert set(losses) == {"text", "image"}
    assert losses["text"][0][-1] == 49
    page = render_page(report, log)
    assert page.count("<polyline") == 4
    assert 'aria-label="text loss from' in page
    points = re.search(r'class="raw" points="([^"]+)"', loss_curve("text", *losses["text"])).group(1)
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert heights == sorted(heights)  # a falling loss goes down the page
    assert "nan" not in page


def test_waveform_of_nothing_and_of_something():
    assert "<rect" not in waveform(Audio(torch.zeros(0), 16000))
    loud = waveform(Audio(torch.sin(torch.arange(1600.0)), 16000))
    assert loud.count("<rect") == 64
    assert "nan" not in loud


def test_a_whole_evaluation_renders(tmp_path):
    report = evaluate(FakePipeline(wrong=0.3), tasks=["digits", "shapes"], quick=True)
    write_report(report, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") >= 100 + 24 + 40
    for gallery in report.galleries:
        assert f'id="{gallery.name}"' in page
    assert (tmp_path / "report.json").is_file()


def test_a_miss_is_not_rounded_into_a_pass():
    report = Report("A test")
    report.add("digits.caption_accuracy", 285 / 297, "asked for 96%")  # 95.96%
    report.add("digits.frechet_ratio", 1.50004, "asked for 1.5")
    page = render_page(report)
    assert "<b>1.50004</b>" in page
    assert "<b>95.96\u202f%</b>" in page
    assert "96.0\u202f%</b>" not in page
