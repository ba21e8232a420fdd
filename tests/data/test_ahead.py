"""Batches made ahead are those of the loader itself, and so is the state, wherever a run stops."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
import torch
from sets import flac, picture_parquet, write_parquet
from small import random_latents
from test_shards import write

from latentlm.config import DataConfig, ImageTokenizerConfig, MediaConfig, SourceConfig, SpeechTokenizerConfig
from latentlm.data import ahead
from latentlm.data.ahead import DocumentsAhead, MediaAhead
from latentlm.data.examples import open_media_loader
from latentlm.data.loader import DocumentLoader
from latentlm.data.packing import DocumentEncoder
from latentlm.data.shards import ShardDocuments
from latentlm.modalities.image import Image
from latentlm.types import Document, Text

NUM = 230
"""Documents: each names its own number, so that a batch says which it holds."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    documents = [
        Document((Text(f"{i:03d}", condition=True, loss=False), Image(random_latents(4, 6, i, "sigma"))))
        for i in range(NUM)
    ]
    path = str(tmp_path_factory.mktemp("shards") / "set")
    write(path, [documents[:100], documents[100:200], documents[200:]])
    return path


def loader(tokenizers, folder, *, rank=0, world=1, num_lanes=4, seed=3, dropout=0.3) -> DocumentLoader:
    config = DataConfig(sources=(SourceConfig(shards=folder),), sequence_length=40, rows=2, condition_dropout=dropout)
    encoder = DocumentEncoder(tokenizers["text"])
    lanes = {"seed": seed, "num_lanes": num_lanes, "rank": rank, "world": world}
    return DocumentLoader([ShardDocuments(folder)], config, encoder, {"image": 6}, **lanes)


def several_steps(made, num: int = ahead.DEPTH + 3) -> None:
    """More than lie ready."""
    for _ in range(num):
        made.next_step()


def flat(batches) -> list:
    """All that a step's batches hold, as lists."""
    found = []
    for batch in batches:
        found.append((batch.seed, batch.ids.tolist(), batch.text_targets.tolist(), batch.positions.tolist()))
        found += [(name, s.values.tolist(), s.index.tolist()) for name, s in sorted(batch.latents.items())]
    return found


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_make_the_batches_of_the_loader(tokenizers, folder, threads):
    plain, made = loader(tokenizers, folder), DocumentsAhead(loader(tokenizers, folder), threads)
    for _ in range(12):
        assert flat(made.next_step()) == flat(plain.next_step())
        assert made.state_dict() == plain.state_dict()
    assert made.waited > 0
    made.close()


@pytest.mark.parametrize("stop", [0, 1, 5])
def test_a_run_that_stops_in_mid_epoch_goes_on_with_the_very_next_document(tokenizers, folder, stop):
    whole = loader(tokenizers, folder)
    steps = [flat(whole.next_step()) for _ in range(12)]
    first = DocumentsAhead(loader(tokenizers, folder), 2)
    assert [flat(first.next_step()) for _ in range(stop)] == steps[:stop]
    time.sleep(0.2)  # what lies ready by now is no part of the state
    state = json.loads(json.dumps(first.state_dict()))
    first.close()
    second = DocumentsAhead(loader(tokenizers, folder), 1)
    second.next_step()  # and what lay ready there is forgotten
    second.load_state_dict(state)
    assert [flat(second.next_step()) for _ in range(12 - stop)] == steps[stop:]
    second.close()


def test_two_processes_share_the_batches_of_one_and_one_goes_on_for_both(tokenizers, folder):
    whole = loader(tokenizers, folder)
    halves = [DocumentsAhead(loader(tokenizers, folder, rank=rank, world=2)) for rank in range(2)]
    for _ in range(5):
        batches, parts = whole.next_step(), [half.next_step() for half in halves]
        assert flat(batches) == flat([parts[lane % 2][lane // 2] for lane in range(4)])
    states = [half.state_dict() for half in halves]
    union = {"step": 5, "lanes": {k: v for state in states for k, v in state["lanes"].items()}}
    for half in halves:
        half.close()
    alone = DocumentsAhead(loader(tokenizers, folder))
    alone.load_state_dict(union)
    for _ in range(5):
        assert flat(alone.next_step()) == flat(whole.next_step())
    alone.close()


def test_no_document_comes_twice_in_an_epoch(tokenizers, folder):
    made = DocumentsAhead(loader(tokenizers, folder, num_lanes=1, dropout=0.0))
    taken: list[int] = []
    while len(taken) < 2 * NUM:
        for batch in made.next_step():
            for row, start in (batch.positions == 0).logical_and(batch.documents >= 0).nonzero().tolist():
                taken.append(int(bytes(batch.ids[row, start + 1 : start + 4].tolist())))
    made.close()
    assert sorted(taken[:NUM]) == list(range(NUM))
    assert sorted(taken[NUM : 2 * NUM]) == list(range(NUM))
    assert taken[:NUM] != taken[NUM : 2 * NUM]


def test_an_error_in_a_thread_is_raised_by_the_step_that_needed_it(tokenizers, folder, monkeypatch):
    made = DocumentsAhead(loader(tokenizers, folder))
    made.next_step()

    def broken(self, index):
        raise ValueError("part-7: broken")

    monkeypatch.setattr(ShardDocuments, "__getitem__", broken)
    with pytest.raises(ValueError, match="part-7: broken"):
        several_steps(made)
    made.close()


def test_pinned_batches_are_asked_for_where_a_gpu_is(tokenizers, folder, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self.shape) or self)
    made = DocumentsAhead(loader(tokenizers, folder, num_lanes=1), pin=True)
    (batch,) = made.next_step()
    made.close()
    assert batch.ids.shape in pinned
    assert batch.latents["image"].values.shape in pinned


# ------------------------------------------------------------------ media, by processes

IMAGES = ImageTokenizerConfig(image_size=8, patch_size=4, latent_dim=6, width=16, num_heads=2)
SOUNDS = SpeechTokenizerConfig(sample_rate=8000, strides=(4,), depths=(1, 1), channels=4, max_channels=8, latent_dim=4)


def media_arguments(tmp_path, modality: str, rank: int = 0, world: int = 1) -> tuple:
    if modality == "image":
        path = picture_parquet(tmp_path / "a.parquet", 23)
        data = MediaConfig(sources=(SourceConfig(path=str(path)),), batch_size=4, flip=True, crop=0.4)
        return data, IMAGES, 5, 2, rank, world
    path = write_parquet(tmp_path / "a.parquet", {"audio": [flac(i, 200 + 10 * i) for i in range(23)]})
    source = SourceConfig(path=str(path), columns={"speech": "audio"})
    return MediaConfig(sources=(source,), batch_size=4, seconds=0.03, gain=6.0), SOUNDS, 5, 2, rank, world


def media_flat(batches) -> list:
    return [(batch.seed, batch.media.tolist(), batch.lengths.tolist()) for batch in batches]


OPEN = "latentlm.data.examples:open_media_loader"


@pytest.mark.parametrize(("modality", "workers"), [("image", 2), ("image", 3), ("speech", 2)])
def test_processes_make_the_batches_of_the_loader_also_after_a_stop(tmp_path, modality, workers):
    arguments = media_arguments(tmp_path, modality)
    plain = open_media_loader(*arguments)
    steps, states = [], []
    for _ in range(7):
        states.append(plain.state_dict())
        steps.append(media_flat(plain.next_step()))
    made = MediaAhead(open_media_loader(*arguments), workers, OPEN, *arguments)
    for number in range(4):
        assert made.state_dict() == states[number]
        assert media_flat(made.next_step()) == steps[number]
    state = made.state_dict()
    made.load_state_dict(state)
    assert [media_flat(made.next_step()) for _ in range(3)] == steps[4:]
    made.close()


def test_two_ranks_share_the_media_batches_of_one(tmp_path):
    plain = open_media_loader(*media_arguments(tmp_path, "image"))
    halves = [open_media_loader(*media_arguments(tmp_path, "image", rank, 2)) for rank in range(2)]
    for _ in range(3):
        parts = [half.next_step()[0] for half in halves]
        assert media_flat(parts) == media_flat(plain.next_step())


def test_a_worker_that_fails_or_is_killed_is_said(tmp_path):
    broken = write_parquet(tmp_path / "b.parquet", {"image": [b"nothing"] * 3})
    data = MediaConfig(sources=(SourceConfig(path=str(broken)),), batch_size=2)
    arguments = (data, IMAGES, 0, 1)
    made = MediaAhead(open_media_loader(*arguments), 1, OPEN, *arguments)
    with pytest.raises(ValueError, match=r"b\.parquet: row \d: image: not a readable image"):
        made.next_step()
    made.close()
    arguments = media_arguments(tmp_path, "image")
    made = MediaAhead(open_media_loader(*arguments), 1, OPEN, *arguments)
    made.next_step()
    os.kill(made._processes[0].process.pid, signal.SIGKILL)
    with pytest.raises(ValueError, match=r"a worker process was ended by signal 9 \(SIGKILL\)"):
        several_steps(made, 1000)  # those that it had made already come first
    made.close()


def test_media_in_memory_are_kept_and_those_of_a_path_are_not(tmp_path):
    arguments = media_arguments(tmp_path, "image")
    config = arguments[0].model_copy(update={"crop": 0.0})
    streamed = open_media_loader(config, *arguments[1:])
    embedded = open_media_loader(
        MediaConfig(sources=(SourceConfig(name="digits", limit=5),), batch_size=9), IMAGES, 0, 1
    )
    for made in (streamed, embedded):
        made.next_step()
    assert len(streamed.prepare._whole._known) == 0
    assert len(embedded.prepare._whole._known) == 5


def test_skipping_is_taking_without_reading(tmp_path):
    one, two = (open_media_loader(*media_arguments(tmp_path, "image")) for _ in range(2))
    for _ in range(3):
        one.next_step()
    two.sources = ()  # nothing to read from
    two.skip(3)
    assert one.state_dict() == two.state_dict()
