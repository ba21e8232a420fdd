"""Samples during training: files for every modality, from the sources' own prompts."""

import json

import numpy as np
import pytest
from small import clip, picture

from latentlm.data.cache import LatentCache, ResolvedDocuments
from latentlm.training.samples import SampleWriter, contact_sheet
from latentlm.types import Document, Image, Speech, Text


def test_every_modality_is_sampled_and_written(pipeline, tmp_path):
    generator = np.random.default_rng(0)
    given = {"condition": True, "loss": False}
    image, sound = Image(picture(generator)), Speech(clip(generator))
    sources = [
        [Document((Text("a", **given), image))],
        [Document((Image(image.content, **given), Text("a")))],
        [Document((Text("b", **given), sound))],
        [Document((Text("plain"),))],
    ]
    cache = LatentCache({name: t for name, t in pipeline.tokenizers.items() if name != "text"})
    writer = SampleWriter(pipeline, [ResolvedDocuments(source, cache) for source in sources], sources[3], tmp_path)
    writer(pipeline.model, 7)
    record = json.loads((tmp_path / "step-00000007.json").read_text())
    assert {entry["to"] for entry in record} == {"image", "speech", "text"}
    assert all(entry["answer"] is not None for entry in record if entry["to"] == "text")
    assert (tmp_path / "step-00000007-image.png").is_file()
    assert list(tmp_path.glob("step-00000007-speech-*.wav"))
    (tmp_path / "held_out.jsonl").write_text('{"step": 6}\n{"step": 7}\n{"step": 14}\n')  # of a run stopped later
    writer(pipeline.model, 7)
    earlier, line = (tmp_path / "held_out.jsonl").read_text().splitlines()
    assert json.loads(earlier) == {"step": 6}
    expected = pipeline.score(sources[3][0]).bits_per_byte
    assert json.loads(line) == {"step": 7, "losses": {"held-out bits per byte": pytest.approx(expected)}}


def test_a_contact_sheet_holds_every_picture():
    generator = np.random.default_rng(0)
    pictures = [picture(generator) for _ in range(5)]
    sheet = np.asarray(contact_sheet(pictures, columns=3, pad=1))
    assert sheet.shape == (19, 28, 3)
    assert np.array_equal(sheet[10:18, 10:18], np.asarray(pictures[4]))
