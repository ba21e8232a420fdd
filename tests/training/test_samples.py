"""Samples during training: files for every modality, from the sources' own prompts."""

import json

import numpy as np
from small import clip, picture

from latentlm.data.cache import LatentCache, ResolvedDocuments
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.training.samples import SampleWriter, contact_sheet
from latentlm.types import Document, Text


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
    writer = SampleWriter(pipeline, [ResolvedDocuments(source, cache) for source in sources], tmp_path)
    figures = writer(pipeline.model, 7)
    record = json.loads((tmp_path / "step-00000007.json").read_text())
    assert {entry["to"] for entry in record} == {"image", "speech", "text"}
    assert all(entry["answer"] is not None for entry in record if entry["to"] == "text")
    assert (tmp_path / "step-00000007-image.png").is_file()
    assert list(tmp_path.glob("step-00000007-speech-*.wav"))
    ended = [entry["finish_reason"] == "stop" for entry in record if entry["to"] == "speech"]
    assert figures == {"sampled texts right": 0.0, "sampled speech that ends": sum(ended) / len(ended)}
    answers = [entry["answer"] for entry in record if entry["to"] == "text"]
    writer.real = [answers[0]] * len(writer.real)  # as if the model had said what is real
    assert writer(pipeline.model, 7)["sampled texts right"] == answers.count(answers[0]) / len(answers)


def test_a_contact_sheet_holds_every_picture():
    generator = np.random.default_rng(0)
    pictures = [picture(generator) for _ in range(5)]
    sheet = np.asarray(contact_sheet(pictures, columns=3, pad=1))
    assert sheet.shape == (19, 28, 3)
    assert np.array_equal(sheet[10:18, 10:18], np.asarray(pictures[4]))
