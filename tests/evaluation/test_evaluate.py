"""The whole evaluation on a pipeline that answers from the data: right answers score high, wrong ones low."""

import json
from types import SimpleNamespace

import pytest
import torch
from fake_pipeline import FakePipeline
from margins import seed
from PIL import Image as PILImage

from latentlm.config import MixtureHeadConfig, ModelConfig, TransformerConfig, parse_recipe
from latentlm.data.embedded import emoji
from latentlm.errors import UserError
from latentlm.evaluation import reconstruction
from latentlm.evaluation.evaluate import evaluate
from latentlm.evaluation.image import nearest, to_pixels
from latentlm.evaluation.protocol import QUICK, TASKS, Protocol
from latentlm.evaluation.reconstruction import psnr
from latentlm.evaluation.report import Figure, Report, interval, read_report
from latentlm.evaluation.seen import Seen

PICTURES = ("digits", "emoji", "shapes")
RATES = (
    "digits.prompt_accuracy",
    "digits.caption_accuracy",
    "emoji.top1",
    "emoji.top1_all",
    "shapes.held_out_draw_accuracy",
    "shapes.held_out_caption_accuracy",
    "shapes.seen_draw_accuracy",
    "shapes.seen_caption_accuracy",
    "shapes.answer_accuracy",
)


def recipe_of(*sources: dict, model: dict | None = None):
    """A recipe with these sources, and tokenizers where no model brings them."""
    rest = {"model": model} if model else {"tokenizers": {"image": "tiny", "speech": "tiny"}}
    return parse_recipe({"kind": "latentlm", "data": {"sources": list(sources)}, **rest})


@pytest.fixture(scope="module")
def right():
    return evaluate(FakePipeline(), tasks=PICTURES, quick=True, seed=seed())


@pytest.fixture(scope="module")
def wrong():
    return evaluate(FakePipeline(wrong=1.0), tasks=PICTURES, quick=True, seed=seed())


@pytest.mark.parametrize("name", RATES)
def test_rates_follow_the_answers(right, wrong, name, margin):
    margin("right answers", right.figures[name].value, at_least=0.95)
    margin("wrong answers", wrong.figures[name].value, at_most=0.1)


def test_frechet_ratio_of_real_digits_is_near_one(right, margin):
    figure = right.figures["digits.frechet_ratio"]
    margin("ratio", figure.value, at_least=0.5)
    margin("ratio", figure.value, at_most=1.5)
    assert figure.value == pytest.approx(
        right.figures["digits.frechet"].value / right.figures["digits.frechet_real"].value
    )


def test_every_figure_has_its_protocol(right):
    for name, figure in right.figures.items():
        if name.startswith("seconds."):
            continue
        assert figure.protocol, name
        if name.startswith(("emoji", "shapes")):
            assert "seed 0" in figure.protocol, name
            assert "QUICK" in figure.protocol, name
    drawn = right.figures["digits.prompt_accuracy"].protocol
    for part in ("100 drawn", "guidance 1,", "20 steps of dpm++2m", "ema weights", "float32"):
        assert part in drawn
    assert "memory" in right.figures["emoji.top1"].protocol


def test_requests_carry_the_protocol():
    pipeline = FakePipeline()
    evaluate(pipeline, tasks=["digits"], quick=True, guidance={"digits": 3.0}, steps=7, seed=5, solver="ddim")
    drawn = [request for request in pipeline.requests if request.to == "image"]
    assert {(r.guidance, r.steps, r.solver) for r in drawn} == {(3.0, 7, "ddim")}
    assert len({request.seed for request in drawn}) == len(drawn) == 10 * QUICK.digits_per_class
    assert [request.prompt.segments[0].text for request in drawn[:3]] == ["zero", "one", "two"]
    assert all(segment.condition and not segment.loss for request in drawn for segment in request.prompt.segments)
    assert {request.guidance for request in pipeline.requests if request.to == "text"} == {1.0}


def test_emoji_are_searched_among_those_trained_on():
    names = [item.name for item in emoji.subset(10)]
    pipeline = FakePipeline()
    report = evaluate(pipeline, tasks=["emoji"], quick=True, seen=Seen(emoji_names=names))
    assert sorted(request.prompt.segments[0].text for request in pipeline.requests) == sorted(names)
    assert "of the 10 pictures trained on, the named one is nearest" in report.figures["emoji.top1"].protocol
    assert report.figures["emoji.top1"].reference == 0.1
    assert report.figures["emoji.top1_all"].required is None
    with pytest.raises(ValueError, match="no emoji named 'blue apple'"):
        evaluate(pipeline, tasks=["emoji"], quick=True, seen=Seen(emoji_names=["blue apple"]))


def test_all_emoji_are_asked_for_when_all_were_trained_on(right):
    assert right.figures["emoji.top1_all"].required == (">=", 0.95)


def test_a_blank_picture_is_nearest_to_nothing_in_particular():
    atlas = to_pixels([item.image for item in emoji.load()])
    blank = to_pixels([PILImage.new("RGB", (32, 32), "white")])
    found = nearest(blank.expand(5, -1), atlas)
    assert len(set(found.tolist())) == 1
    assert torch.equal(nearest(atlas[:50], atlas), torch.arange(50))


def test_text_has_its_references():
    report = evaluate(FakePipeline(), tasks=["text"], quick=True)
    bits = {name: figure.value for name, figure in report.figures.items()}
    assert bits["text.bits_per_byte"] == pytest.approx(2.0)
    assert bits["text.bits_per_byte_ngram2"] < bits["text.bits_per_byte_ngram0"] < bits["text.bits_per_byte_uniform"]
    assert report.figures["text.bits_per_byte"].reference == bits["text.bits_per_byte_ngram2"]


@pytest.mark.parametrize(("context", "named"), [(300, {"prose", "shapes"}), (70, {"shapes"}), (8, set())])
def test_documents_longer_than_the_context_are_left_out(context, named):
    pipeline = FakePipeline()
    pipeline.model.config = ModelConfig(transformer=TransformerConfig(context_length=context))
    report = evaluate(pipeline, tasks=["text"], quick=True)
    found = {name.split(".")[1].split("_")[0] for name in report.figures if name.endswith("_bits_per_byte")}
    assert found == named
    assert [note for note in report.notes if "longer than the context" in note]
    assert ("text.bits_per_byte" in report.to_dict()) == bool(named)


def test_reconstruction_psnr_is_that_of_the_noise():
    report = evaluate(FakePipeline(), tasks=["reconstruction"], quick=True)
    # noise of 0.02 on a range of 2 is 0.01 on a range of 1, that is 40 dB, less what clipping takes away
    for name in ("digits", "shapes", "emoji"):
        figure = report.figures[f"reconstruction.{name}_psnr"]
        assert 39.5 < figure.value < 44
        assert figure.reference < 25
    image = torch.rand(2, 4, 4, 3)
    assert psnr(image, image) == 100
    assert psnr(torch.zeros(1, 2, 2, 3), torch.ones(1, 2, 2, 3)) == pytest.approx(0)


def test_a_model_without_speech_says_so():
    report = evaluate(FakePipeline(), tasks=["speech"], quick=True)
    assert report.notes == ["speech: not measured, the model has no speech."]
    flat = report.to_dict()
    assert flat.pop("seconds.evaluate_speech", None) is None
    assert flat == {"protocol.speech": "not measured, the model has no speech"}  # no key without a value


@pytest.mark.parametrize("missing", ["espeakng_loader", "pocketsphinx", "jiwer"])
def test_what_is_not_installed_is_said_of_every_figure_that_needs_it(monkeypatch, missing):
    pipeline = FakePipeline(clips={"one": []})
    monkeypatch.setattr(reconstruction, "find_spec", lambda name: None if name == missing else object())
    flat = evaluate(pipeline, tasks=["speech"], quick=True).to_dict()
    assert flat["protocol.speech"] == f"not measured, {missing} not installed: pip install {missing.replace('_', '-')}"


def test_a_model_of_classes_is_measured_as_far_as_it_goes():
    pipeline = FakePipeline()
    pipeline.tokenizers["text"] = SimpleNamespace(is_classes=True)
    report = evaluate(pipeline, quick=True)
    assert "reconstruction.digits_psnr" in report.figures
    reason = "not measured, the model is class-conditional and has no text"
    flat = report.to_dict()
    assert {flat[f"protocol.{task}"] for task in TASKS if task not in ("reconstruction", "documents")} == {reason}
    assert flat["protocol.reconstruction.speech"] == "not measured, the model has no speech"


def test_what_was_not_trained_on_is_left_out_unless_it_is_asked_for():
    seen = Seen.of(recipe_of({"name": "digits", "task": "text_to_image"}))
    report = evaluate(FakePipeline(), quick=True, seen=seen)
    assert {name.split(".")[0] for name in report.figures} == {"digits", "reconstruction", "seconds"}
    assert {name.split("_")[0] for name in report.figures if "reconstruction" in name} == {
        "reconstruction.digits",
        "seconds.evaluate",
    }
    (note,) = report.notes
    assert note.startswith("left out: emoji, shapes, speech, text (the model was not trained on their sources")
    assert not [key for key in report.to_dict() if "emoji" in key or "speech" in key]
    asked = evaluate(FakePipeline(), quick=True, seen=seen, tasks=["text"])
    assert "text.bits_per_byte" in asked.figures


def test_a_recipe_tells_what_was_seen():
    own = {"manifest": "a.jsonl", "held_out": "b.jsonl"}
    seen = Seen.of(recipe_of(own, own, {"name": "prose", "task": "text"}))
    assert seen.held_out == ("b.jsonl",)
    assert [task for task in TASKS if seen.part(task)] == ["text", "reconstruction", "documents"]
    assert all(map(Seen().part, TASKS))
    named = {"manifest": "a.txt", "held_out": "b.txt"}
    kept = [{"path": "c.parquet", "task": "text", "held_out": 5}, {"shards": "d", "held_out": "e"}, {"shards": "f"}]
    seen = Seen.of(recipe_of(named, *kept))
    assert seen.held_out == ("b.txt",)
    assert [source.label for source in seen.streamed] == ["c.parquet", "d"]
    tuned = Seen.of(recipe_of(own, model={"start": "tiny"}))  # what tiny has seen is not in this recipe
    assert tuned.held_out == ("b.jsonl",)
    assert [task for task in TASKS if tuned.part(task)] == ["reconstruction", "documents"]


@pytest.mark.parametrize(("limits", "num"), [([], 0), ([3], 3), ([3, 7], 7), ([5000], 1362), ([3, None], None)])
def test_a_recipe_tells_which_emoji_it_trains_on(limits, num):
    emoji_sources = [{"name": "emoji", "task": "text_to_image", "limit": limit} for limit in limits]
    names = Seen.of(recipe_of({"name": "digits", "task": "text_to_image"}, *emoji_sources)).emoji_names
    assert (names if names is None else len(names)) == num


def test_a_model_without_a_diffusion_head_has_no_solver_to_choose():
    pipeline = FakePipeline()
    pipeline.model.config = ModelConfig(head=MixtureHeadConfig())
    for given in ({"steps": 5}, {"solver": "ddim"}):
        with pytest.raises(UserError, match="steps and solver are for diffusion heads, and this model has none"):
            evaluate(pipeline, tasks=["emoji"], quick=True, **given)
    figure = evaluate(pipeline, tasks=["emoji"], quick=True).figures["emoji.top1"]
    assert "guidance 2, ema weights" in figure.protocol
    assert "steps" not in figure.protocol


def test_text_is_measured_of_the_corpora_that_were_trained_on():
    report = evaluate(FakePipeline(), quick=True, seen=Seen.of(recipe_of({"name": "prose", "task": "text"})))
    assert {name for name in report.figures if name.startswith("text.")} >= {"text.prose_bits_per_byte"}
    assert "text.shapes_bits_per_byte" not in report.figures
    assert "reconstruction.digits_psnr" not in report.figures


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="unknown evaluation 'digit'"):
        evaluate(FakePipeline(), tasks=["digit"])
    with pytest.raises(ValueError, match=r"solver 'dpm\+\+2s' is unknown, did you mean 'dpm\+\+2m'"):
        evaluate(FakePipeline(), tasks=["text"], solver="dpm++2s")
    with pytest.raises(ValueError, match="unknown task 'music'"):
        Protocol().with_guidance({"music": 2.0})


def test_report_json_is_flat_and_complete(right, tmp_path):
    right.save_json(tmp_path / "report.json")
    flat = read_report(tmp_path / "report.json")
    for name in right.figures:
        assert flat[name] == right.figures[name].value
        assert f"protocol.{name}" in flat
    for name, value in flat.items():
        group = name.split(".")[0]
        assert isinstance(value, str if group in ("protocol", "reference_name") else (float, int)), name
    assert flat["digits.prompt_accuracy"] == right.figures["digits.prompt_accuracy"].value
    assert flat["required.digits.prompt_accuracy"] == 0.97
    assert list(tmp_path.iterdir()) == [tmp_path / "report.json"]


def test_numbers_that_are_not_finite_are_left_out_and_do_not_pass(tmp_path):
    report = Report()
    report.add("digits.frechet_ratio", float("nan"), "a test")
    assert report.figures["digits.frechet_ratio"].passed is False
    assert not report.passed
    report.save_json(tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text())
    assert "digits.frechet_ratio" not in found
    assert found["protocol.digits.frechet_ratio"] == "the value is nan; a test"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        report.save_json(tmp_path / "nowhere" / "report.json")


def test_requirements_have_a_direction():
    assert Figure("a", 0.9, "", required=(">=", 0.9)).passed is True
    assert Figure("a", 0.9, "", required=("<=", 0.8)).passed is False
    assert Figure("a", 0.9, "").passed is None


def test_wilson_interval():
    assert interval(0.5, 100) == pytest.approx(0.096, abs=0.002)
    assert interval(1.0, 1000) < 0.005
