"""Documents of one's own: their losses, answers to them, and what the losses become under other conditions."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
from fake_pipeline import FakePipeline
from small import clip, picture, small_model

import latentlm
from latentlm import cli
from latentlm.config import MixtureHeadConfig, ModelConfig, SamplingConfig
from latentlm.data.embedded import digits, shapes
from latentlm.data.embedded.digits import WORDS
from latentlm.data.manifest import Manifest
from latentlm.data.script import script_document
from latentlm.evaluation.documents import evaluate_documents
from latentlm.evaluation.evaluate import evaluate
from latentlm.evaluation.losses import with_conditions_of_others
from latentlm.evaluation.page import render_page
from latentlm.evaluation.protocol import QUICK, Protocol
from latentlm.evaluation.report import Report
from latentlm.generation.pipeline import Pipeline
from latentlm.media.picture import save_image
from latentlm.media.sound import save_audio
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.modalities.vectors import from_data
from latentlm.types import Document, GenerationOutput, Text

GIVEN = {"condition": True, "loss": False}
generator = np.random.default_rng(0)
RED, BLUE = picture(generator), picture(generator)
SOUND = clip(generator)


def measured(pipeline, documents, **protocol) -> Report:
    report = Report()
    evaluate_documents(pipeline, Protocol(steps=2, **protocol), report, documents, "own.jsonl")
    return report


def test_every_kind_of_document_has_its_figures_and_is_shown(pipeline):
    documents = [
        Document((Text("a plain text"),)),
        Document((Text("red", **GIVEN), Image(RED))),
        Document((Text("blue", **GIVEN), Image(BLUE))),
        Document((Image(RED, **GIVEN), Text("red"))),
        Document((Text("hello", **GIVEN), Speech(SOUND))),
        Document((Speech(SOUND, **GIVEN), Text("hello"))),
        Document((Text("An apple "), Image(RED), Text(" and nothing else."))),
    ]
    report = measured(pipeline, documents)
    names = "bits_per_byte text_loss image_loss speech_loss image_condition_gain exact_match"
    names += " stop_rate length_ratio image_psnr"
    judged = {"documents.wer": ("jiwer",), "documents.speech_wer": ("pocketsphinx", "jiwer")}
    installed = {name for name, packages in judged.items() if all(map(find_spec, packages))}
    assert set(report.figures) == {f"documents.{name}" for name in names.split()} | installed
    assert all("not installed" in report.left_out[name] for name in set(judged) - installed)
    assert "not class words" in report.left_out["documents.image_class_accuracy"]
    for name, package in (("stoi", "pystoi"), ("pesq", "pesq")):
        reason = "no clip of 0.5 s" if find_spec(package) else "is not installed"
        assert reason in report.left_out[f"documents.speech_{name}"]
    kinds = ("text", "sounds", "image", "speech", "image-tokenizer", "speech-tokenizer")
    assert [g.name for g in report.galleries] == [f"documents-{kind}" for kind in kinds]
    assert [len(g.exhibits) for g in report.galleries] == [1, 1, 2, 1, 2, 2]
    assert report.galleries[0].exhibits[0].title == "[image] → red"
    assert report.galleries[2].exhibits[0].reference is RED
    assert "7 documents" not in report.figures["documents.image_loss"].protocol
    assert report.figures["documents.image_loss"].protocol.startswith(
        "3 documents of own.jsonl with image as a target; diffusion loss per latent"
    )
    assert all("QUICK" not in figure.protocol for figure in report.figures.values())
    for figure in measured(pipeline, documents, counts=QUICK).figures.values():
        assert "QUICK run, noisy" in figure.protocol or "no language model" in figure.protocol
    page = render_page(report)
    assert "your own texts written exactly" in page
    assert "Speech transcribed" in page


def test_losses_are_those_of_score_and_stand_beside_those_under_other_conditions(pipeline):
    documents = [Document((Text(word, **GIVEN), Image(image))) for word, image in (("red", RED), ("blue", BLUE))]
    figure = measured(pipeline, documents).figures["documents.image_loss"]
    swapped = [Document((Text(word, **GIVEN), Image(image))) for word, image in (("blue", RED), ("red", BLUE))]
    own, others = ([pipeline.score(d).diffusion["image"] for d in these] for these in (documents, swapped))
    assert figure.value == pytest.approx(np.mean(own), rel=1e-5)
    assert figure.reference == pytest.approx(np.mean(others), rel=1e-5)
    assert figure.value != figure.reference


def test_answers_of_vectors_may_be_twice_the_longest_and_a_loss_has_the_unit_of_its_head(tokenizers, monkeypatch):
    arrays = [generator.standard_normal((num, 2)).astype(np.float32) for num in (400, 600)]
    text = tokenizers["text"].with_modalities(["vectors"])
    own = {"text": text, "vectors": from_data(arrays)}
    pipeline = Pipeline(small_model(own, MixtureHeadConfig(num_layers=1)), own)
    asked = []

    def answer(_, requests):
        asked.extend(requests)
        return [GenerationOutput((latentlm.Vectors(arrays[0]),), "stop", 400) for _ in requests]

    monkeypatch.setattr(Pipeline, "generate_batch", answer)
    documents = [Document((Text("a", **GIVEN), latentlm.Vectors(array))) for array in arrays]
    report = measured(pipeline, documents)
    assert {request.max_latents for request in asked} == {1200}
    assert "with vectors as a target; nats per latent" in report.figures["documents.vectors_loss"].protocol


def test_conditions_are_swapped_within_a_kind_for_others():
    one, two = Document((Text("one", **GIVEN), Image(RED))), Document((Text("two", **GIVEN), Image(BLUE)))
    again, alone = Document((Text("one", **GIVEN), Image(BLUE))), Document((Image(RED, **GIVEN), Text("one")))
    free = Document((Text("free"), Image(RED)))
    found = with_conditions_of_others([one, again, two, alone, free])
    assert [d.segments[0].text for d in found[:3]] == ["two", "two", "one"]
    assert [d.segments[1] for d in found[:3]] == [d.segments[1] for d in (one, again, two)]
    assert found[3:] == [alone, free]


@pytest.mark.parametrize("wrong", [0.0, 1.0])
def test_right_answers_score_high_and_wrong_ones_low(wrong):
    pairs = [(item.image, WORDS[item.label]) for item in digits.load("held_out")[:30]]
    documents = [Document((Image(image, **GIVEN), Text(word))) for image, word in pairs]
    figures = measured(FakePipeline(wrong=wrong), documents).figures
    assert figures["documents.exact_match"].value == 1 - wrong
    assert figures["documents.wer"].value == 2 * wrong  # two words in place of one
    words = [word for _, word in pairs]
    assert figures["documents.exact_match"].reference == max(map(words.count, words)) / 30


def test_what_the_context_cannot_hold_is_left_out_and_counted(pipeline):
    limit = pipeline.model.config.transformer.context_length
    long, short = Document((Text("a" * limit),)), Document((Text("b"),))
    report = measured(pipeline, [long, short])
    assert report.notes == ["documents: 1 are longer than the context and were left out."]
    assert report.figures["documents.bits_per_byte"].protocol.startswith("1 texts")
    report = measured(pipeline, [long])
    assert not report.figures
    assert report.to_dict()["protocol.documents"] == "not measured, all are longer than the context"


def test_a_manifest_is_measured_only_where_there_is_one(tmp_path):
    quiet = evaluate(FakePipeline(), quick=True, tasks=None)
    assert not [note for note in quiet.notes if "documents" in note]
    asked = evaluate(FakePipeline(), quick=True, tasks=["documents"])
    assert asked.notes == ["documents: not measured, no held-out documents: name a manifest of them with --manifest."]


def test_a_model_of_scripts_is_asked_by_scripts(pipeline, tmp_path, monkeypatch):
    save_audio(SOUND, tmp_path / "a.wav")
    line = {"segments": [{"text": "hello", "condition": True}, {"speech": "a.wav"}]}
    (tmp_path / "own.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.setattr(pipeline.model, "config", pipeline.model.config.model_copy(update={"prompt": "script"}))
    report = evaluate(pipeline, tasks=["documents"], manifests=[tmp_path / "own.jsonl"], steps=2, guidance=1.0)
    (document,) = Manifest(tmp_path / "own.jsonl")
    expected = pipeline.score(script_document(document)).diffusion["speech"]
    assert report.figures["documents.speech_loss"].value == pytest.approx(expected)
    assert expected != pipeline.score(document).diffusion["speech"]


def test_documents_are_drawn_with_the_model_s_own_guidance(tmp_path):
    save_image(RED, tmp_path / "a.png")
    line = {"segments": [{"text": "seven", "condition": True}, {"image": "a.png"}]}
    (tmp_path / "own.jsonl").write_text(json.dumps(line) + "\n")
    for given, expected in ((None, 1.25), ({"documents": 3.0}, 3.0)):
        fake = FakePipeline()
        fake.model.config = ModelConfig(sampling=SamplingConfig(guidance=1.25))
        evaluate(fake, tasks=["documents"], manifests=[tmp_path / "own.jsonl"], guidance=given)
        assert {request.guidance for request in fake.requests} == {expected}


@pytest.fixture
def manifest(tmp_path):
    lines = [[{"text": shapes.sentence("held_out", number)}] for number in range(2)]
    lines += [[{"text": "seven", "condition": True}, {"text": " is a number"}]]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"segments": line}) + "\n" for line in lines))
    return tmp_path / "own.jsonl"


def test_the_command_measures_a_manifest_and_nothing_else(manifest, capsys, margin):
    out = manifest.with_name("own.json")
    cli.main(["evaluate", "tiny", "--manifest", str(manifest), "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["documents.bits_per_byte"] > 0
    bits = found["documents.bits_per_byte"] / found["reference.documents.bits_per_byte"]
    margin("bits per byte over those of the reference", bits, at_most=1.0)
    assert found["documents.exact_match"] == 0
    assert None not in found.values()
    assert "3 texts of" in found["protocol.documents.bits_per_byte"]


@pytest.mark.parametrize("own", [False, True])
def test_the_command_measures_a_tokenizer_by_itself(tmp_path, tokenizers, own, capsys):
    tokenizers["image"].save(tmp_path / "run" / "model")
    (tmp_path / "own.jsonl").write_text('{"segments": [{"image": "a.png"}]}\n')
    save_image(RED, tmp_path / "a.png")
    given = ["--manifest", str(tmp_path / "own.jsonl")] if own else []
    cli.main(["evaluate", str(tmp_path / "run"), "--quick", "--out", str(tmp_path / "a.json"), *given])
    found = {name for name, value in json.loads((tmp_path / "a.json").read_text()).items() if value is not None}
    wanted = {"documents.image_psnr"} if own else {f"reconstruction.{n}_psnr" for n in ("digits", "shapes", "emoji")}
    assert {name for name in found if "." in name and name.split(".")[0] in ("documents", "reconstruction")} == wanted
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(tmp_path / "run"), "--only", "digits", "--out", str(tmp_path / "a.json")])
    assert "is a tokenizer" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a tokenizer, not a model"):
        latentlm.load(tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no such manifest"), ('{"segments": [{"txt": "a"}]}\n', "own.jsonl:1: unknown key 'segments.0.txt'")],
)
def test_what_is_wrong_with_a_manifest_is_one_line(manifest, capsys, text, message):
    manifest.unlink()
    if text:
        manifest.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", "tiny", "--manifest", str(manifest), "--out", str(manifest.with_name("own.json"))])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
