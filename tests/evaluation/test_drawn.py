"""Pictures of a user's own class words: a classifier trained for the report tells right drawings from wrong ones."""

import re

import numpy as np
import pytest
import torch
from fake_pipeline import FakePipeline
from PIL import Image as PILImage

from latentlm.data import documents
from latentlm.evaluation import classifier
from latentlm.evaluation.classes import MIN_PER_CLASS, labelled_picture, split_classes, spread
from latentlm.evaluation.classifier import to_pixels, train_classifier
from latentlm.evaluation.documents import evaluate_documents
from latentlm.evaluation.protocol import Counts, Protocol
from latentlm.evaluation.report import Report
from latentlm.media.picture import image_to_tensor, tensor_to_image
from latentlm.modalities.image import Image
from latentlm.types import Document, GenerationOutput, Text

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
FEW = Protocol(steps=2, counts=Counts(drawn=60, draws=5, reconstructions=4))


@pytest.fixture(autouse=True)
def quick_training(monkeypatch, notices):
    """Colours are learnt at once; that the pictures are cropped is not the matter here."""
    monkeypatch.setattr(classifier, "MAX_EPOCHS", 6)


def coloured(word: str, seed: int) -> PILImage.Image:
    """A noisy picture of one colour, not square."""
    noise = np.random.default_rng(seed).normal(0, 30, (12, 16, 3))
    return PILImage.fromarray((np.array(COLOURS[word]) + noise).clip(0, 255).astype(np.uint8))


def labelled(num: int, start: int) -> list[Document]:
    """`num` documents word → picture, the words in turn."""
    words = [list(COLOURS)[i % 3] for i in range(num)]
    return [documents.text_to_image(word, coloured(word, start + i)) for i, word in enumerate(words)]


class Painter(FakePipeline):
    """Draws the colour of its prompt, or the next one where it is wrong; `alike`: always the very same picture."""

    alike = False

    def generate_batch(self, requests):
        self.requests += requests
        return [GenerationOutput((Image(self._paint(request)),), "stop") for request in requests]

    def _paint(self, request):
        names, word = list(COLOURS), request.prompt.segments[0].text
        shown = names[(names.index(word) + (self.wrong > 0)) % 3]
        return tensor_to_image(image_to_tensor(coloured(shown, 10_000 + (0 if self.alike else request.seed)), 32))


def measured(pipeline, held_out, training=()) -> Report:
    report = Report()
    evaluate_documents(pipeline, FEW, report, held_out, "own.jsonl", {"image": [training] if training else []})
    return report


@pytest.mark.parametrize("has_training", [True, False])
@pytest.mark.parametrize("wrong", [0.0, 1.0])
def test_drawings_of_class_words_are_judged(wrong, has_training, margin):
    report = measured(Painter(wrong), labelled(120, 0), labelled(90, 500) if has_training else ())
    figure = report.figures["documents.image_class_accuracy"]
    margin("share judged as it is", 1 - abs(figure.value - (1 - wrong)), at_least=0.95)
    margin("accuracy on real pictures", figure.reference, at_least=0.95)
    assert figure.reference == report.figures["documents.image_judge_accuracy"].value
    assert f"on {90 if has_training else 60} real pictures of the 3 classes" in figure.protocol
    assert report.figures["documents.image_judge_accuracy"].reference == pytest.approx(1 / 3, abs=0.15)
    (gallery,) = [gallery for gallery in report.galleries if gallery.name == "documents-image"]
    assert all(item.text.startswith("seen as ") == (item.mark is False) for item in gallery.exhibits)


def test_frechet_distance_is_one_for_real_pictures_and_grows_where_all_are_alike(margin):
    figures = measured(Painter(), labelled(120, 0), labelled(90, 500)).figures
    ratio = figures["documents.image_frechet_ratio"]
    assert ratio.reference == 1
    painter = Painter()
    painter.alike = True
    alike = measured(painter, labelled(120, 0), labelled(90, 500)).figures["documents.image_frechet_ratio"]
    margin("ratio of real pictures", ratio.value, at_most=2)
    margin("ratio of one picture many times", alike.value, at_least=3)
    assert re.search(r"draws of (\d+) against \1 held-out pictures, classes balanced", ratio.protocol)
    distance = figures["documents.image_frechet"]
    assert distance.value / distance.reference == pytest.approx(ratio.value)


def test_too_few_pictures_for_a_frechet_distance_are_said():
    report = measured(Painter(), labelled(24, 0), labelled(90, 500))
    assert "documents.image_class_accuracy" in report.figures
    assert "32 real held-out pictures" in report.left_out["documents.image_frechet_ratio"]


def test_descriptions_are_shown_and_not_judged():
    described = [documents.text_to_image(f"{word} number {i}", coloured(word, i)) for i, word in enumerate(COLOURS)]
    painter = FakePipeline()
    painter._answer = lambda request: Image(coloured("red", 0))
    report = measured(painter, described)
    assert "not class words" in report.left_out["documents.image_class_accuracy"]
    (gallery,) = [gallery for gallery in report.galleries if gallery.name == "documents-image"]
    assert [item.mark for item in gallery.exhibits] == [None] * 3


def test_which_words_are_classes():
    train, held_out = ([labelled_picture(d) for d in labelled(n, 0)] for n in (3 * MIN_PER_CLASS, 30))
    split = split_classes(train, held_out)
    assert split.classes == ("blue", "green", "red")
    assert (len(split.train), len(split.held_out)) == (3 * MIN_PER_CLASS, 30)
    assert split_classes(train[: 3 * MIN_PER_CLASS - 3], held_out[:10]) is None  # too few of each
    halves = split_classes([], [labelled_picture(d) for d in labelled(90, 0)])  # the words take turns
    assert halves.classes == ("blue", "green", "red")
    assert not {id(item.picture) for item in halves.train} & {id(item.picture) for item in halves.held_out}
    assert labelled_picture(Document((Text("red"),))) is None
    assert labelled_picture(documents.image_to_text(coloured("red", 0), "red ")).word == "red"


def test_documents_are_spread_over_all_and_the_same_each_time():
    found = spread([labelled(10, 0), labelled(20, 50)], 12)
    assert len(found) == 12
    assert spread([list(range(10)), list(range(10, 30))], 12) == spread([list(range(30))], 12)
    assert sorted(spread([list(range(30))], 12)) == spread([list(range(30))], 12)
    assert spread([], 5) == []


def test_a_classifier_is_a_function_of_pictures_and_seed(margin):
    pairs = [labelled_picture(document) for document in labelled(48, 0)]
    pixels = to_pixels([pair.picture for pair in pairs])
    labels = torch.tensor([list(COLOURS).index(pair.word) for pair in pairs])
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with torch.no_grad():  # as an evaluation runs
        first, second, other = (train_classifier(pixels, labels, 3, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
    assert not first.training
    margin("accuracy", (first.classify(pixels) == labels).float().mean(), at_least=0.9)
    shuffled = labels[torch.randperm(48, generator=torch.Generator().manual_seed(0))]
    margin("accuracy on shuffled labels", (first.classify(pixels) == shuffled).float().mean(), at_most=0.7)
