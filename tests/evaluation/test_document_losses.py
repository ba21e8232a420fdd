"""Losses have standard errors, and as many digits as a difference between two models needs."""

import numpy as np
import pytest
import torch
from fake_pipeline import FakePipeline
from small import picture

from latentlm.evaluation.documents import evaluate_documents
from latentlm.evaluation.formatting import line, measured, plus_minus
from latentlm.evaluation.losses import score_others
from latentlm.evaluation.page import render_page
from latentlm.evaluation.protocol import Protocol
from latentlm.evaluation.report import Report
from latentlm.evaluation.statistics import mean_per_element
from latentlm.generation.scores import Scores
from latentlm.modalities.image import Image
from latentlm.types import Document, Text

GIVEN = {"condition": True, "loss": False}


def test_a_mean_over_equal_documents_has_the_usual_standard_error():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = mean_per_element(values, np.ones(400))
    assert found.value == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(values.std(ddof=1) / 20)
    assert mean_per_element([3.0], [2]).standard_error is None
    assert mean_per_element([0, 0, 0], [1, 2, 3]).standard_error is None


def test_the_standard_error_of_a_mean_over_unequal_documents_is_its_spread():
    generator = np.random.default_rng(0)

    def sample():
        counts = generator.integers(1, 20, 100)
        return mean_per_element(counts * generator.normal(1, 0.3, 100), counts)

    found = [sample() for _ in range(300)]
    assert np.mean([mean.standard_error for mean in found]) == pytest.approx(
        np.std([mean.value for mean in found]), rel=0.15
    )


class Scored(FakePipeline):
    """Losses of about 0.4 that vary by the picture; the condition of another document costs about 0.005 more."""

    def __init__(self, pairs: dict):
        super().__init__()
        self.pairs = pairs
        self.model.heads = torch.nn.ModuleDict({"image": torch.nn.Identity()})
        self.model.heads["image"].unit = "diffusion loss per latent"

    def score(self, document: Document, seed: int = 0) -> Scores:
        word, image = document.segments[0].text, document.segments[1].content
        own, noise = self.pairs[id(image)]
        return Scores(
            0.0, 0, 0, diffusion={"image": 0.4 + noise + (0.005 + noise / 50) * (word != own)}, num_latents={"image": 4}
        )


def test_a_small_gain_by_the_condition_is_told_from_noise():
    generator = np.random.default_rng(0)
    images = [picture(generator) for _ in range(40)]
    words = [["red", "blue"][i % 2] for i in range(40)]
    noise = generator.normal(0, 0.05, 40)
    pipeline = Scored({id(image): (word, n) for image, word, n in zip(images, words, noise, strict=True)})
    report = Report()
    documents = [Document((Text(word, **GIVEN), Image(image))) for word, image in zip(words, images, strict=True)]
    score_others(pipeline, Protocol(), report, documents, "own.jsonl")
    loss, gain = (report.figures[f"documents.image_{name}"] for name in ("loss", "condition_gain"))
    assert loss.reference - loss.value == pytest.approx(gain.value)
    assert gain.value == pytest.approx(0.005, abs=0.001)
    assert loss.standard_error > gain.value  # too large to see the difference by
    assert gain.standard_error < gain.value / 10
    flat = report.to_dict()
    assert flat["standard_error.documents.image_loss"] == loss.standard_error
    assert flat["interval.documents.image_loss"] == pytest.approx(1.96 * loss.standard_error)


def test_documents_without_a_condition_have_no_gain_by_it():
    pipeline = FakePipeline()
    report = Report()
    evaluate_documents(pipeline, Protocol(), report, [Document((Text("a"),)), Document((Text("b"),))], "own.jsonl")
    assert set(report.figures) == {"documents.bits_per_byte"}
    assert report.figures["documents.bits_per_byte"].value == pytest.approx(2)


def test_losses_that_differ_in_the_third_digit_are_shown_to_differ():
    report = Report()
    report.add(
        "documents.image_loss", 0.43127, "a test", reference=0.43412, reference_name="other", standard_error=3e-4
    )
    (figure,) = report.figures.values()
    assert (measured(figure), plus_minus(figure)) == ("0.43127", "0.00059")
    assert line(figure).split() == ["documents.image_loss", "0.43127", "±", "0.00059", "other:", "0.43412"]
    page = render_page(report)
    assert "<b>0.43127</b> ± 0.00059" in page
    assert "0.43412<br>" in page
