"""Lanes: exact weights, every item once an epoch, resumable, and the same batches for any number of processes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import random_latents

from latentlm.config import DataConfig, SourceConfig
from latentlm.data.loader import DocumentLoader, MediaLoader, Mixture, collate_media
from latentlm.data.packing import DocumentEncoder
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.types import Document, Text


def documents(kind: str, num: int) -> list[Document]:
    given_ = {"condition": True, "loss": False}
    if kind == "image":
        return [Document((Text(f"picture {i}", **given_), Image(random_latents(4, 6, i, "sigma")))) for i in range(num)]
    return [Document((Speech(random_latents(3 + i % 5, 5, i), **given_), Text(f"word {i}"))) for i in range(num)]


def loader(tokenizers, *, rank=0, world=1, num_lanes=4, dropout=0.5) -> DocumentLoader:
    sources = (SourceConfig(name="a", weight=3), SourceConfig(name="b", weight=1))
    config = DataConfig(sources=sources, sequence_length=48, rows=3, condition_dropout=dropout)
    return DocumentLoader(
        [documents("image", 17), documents("speech", 9)],
        config,
        DocumentEncoder(tokenizers["text"]),
        {"image": 6, "speech": 5},
        seed=3,
        num_lanes=num_lanes,
        rank=rank,
        world=world,
    )


def equal(one, two) -> bool:
    fields = ("ids", "positions", "documents", "text_targets", "end_targets")
    same = all(torch.equal(getattr(one, name), getattr(two, name)) for name in fields)
    latents = all(torch.equal(one.latents[m].values, two.latents[m].values) for m in one.latents)
    return same and latents and one.seed == two.seed


@given(weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=5), taken=st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_weights_are_kept_within_one_item(weights, taken):
    mixture = Mixture([range(7)] * len(weights), weights, seed=0, lane=0, num_lanes=1)
    for _ in range(taken):
        mixture.take(mixture.peek()[0])
    share = np.asarray(weights) / sum(weights) * taken
    assert np.abs(np.asarray(mixture.counts) - share).max() < len(weights)


def test_every_item_comes_once_an_epoch_over_all_lanes():
    lanes = [Mixture([range(12)], [1.0], seed=5, lane=m, num_lanes=4) for m in range(4)]
    epochs = []
    for _ in range(2):
        seen = []
        for _ in range(3):
            for lane in lanes:
                source, item = lane.peek()
                seen.append(item)
                lane.take(source)
        epochs.append(seen)
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1]


def test_two_processes_serve_the_lanes_of_one(tokenizers):
    whole = loader(tokenizers)
    halves = [loader(tokenizers, rank=rank, world=2) for rank in range(2)]
    for _ in range(3):
        batches = whole.next_step()
        parts = [half.next_step() for half in halves]
        for lane, batch in enumerate(batches):
            assert equal(batch, parts[lane % 2][lane // 2])


def test_resumed_equals_uninterrupted_also_on_another_number_of_processes(tokenizers):
    whole = loader(tokenizers)
    halves = [loader(tokenizers, rank=rank, world=2) for rank in range(2)]
    for _ in range(4):
        whole.next_step()
        for half in halves:
            half.next_step()
    states = [half.state_dict() for half in halves]
    union = states[0] | {"lanes": {k: v for state in states for k, v in state["lanes"].items()}}
    assert union == whole.state_dict()
    fresh = loader(tokenizers)
    fresh.load_state_dict(union)
    assert all(equal(a, b) for a, b in zip(fresh.next_step(), whole.next_step(), strict=True))


def test_conditions_are_dropped_at_the_rate_asked_for_and_only_before_latents(tokenizers):
    bos, bod = tokenizers["text"].special.bos, tokenizers["text"].special.bod
    starts = {"kept": 0, "dropped": 0}
    source = loader(tokenizers, num_lanes=1, dropout=0.3)
    for _ in range(150):
        (batch,) = source.next_step()
        first = batch.ids[(batch.positions == 0) & (batch.documents >= 0)].tolist()
        starts["dropped"] += sum(token == bod["image"] for token in first)
        starts["kept"] += sum(token == bos for token in first)
        assert bod["speech"] not in first  # speech → text keeps its condition
    rate = starts["dropped"] / (starts["kept"] + starts["dropped"])
    assert 0.3 * 0.75 - 0.06 < rate < 0.3 * 0.75 + 0.06
    source = loader(tokenizers, num_lanes=1, dropout=0.0)
    assert all(bod["image"] not in b.ids[b.positions == 0].tolist() for b in source.next_step())


def test_the_chance_of_an_item_belongs_to_its_place_in_the_lane():
    def chances(taken: int) -> list[float]:
        mixture = Mixture([range(7)], [1.0], seed=4, lane=1, num_lanes=2)
        mixture.counts = [taken]  # as a resumed run has it
        found = []
        for _ in range(2500 - taken):
            found.append(mixture.chance())
            assert mixture.chance() == found[-1]
            mixture.take(0)
        return found

    whole = chances(0)
    assert chances(1500) == whole[1500:]
    assert len(set(whole)) == 2500
    assert 0.45 < sum(whole) / 2500 < 0.55
    other = Mixture([range(7)], [1.0], seed=4, lane=0, num_lanes=2)
    assert other.chance() != whole[0]


def test_no_document_is_lost_between_batches(tokenizers):
    source = loader(tokenizers, num_lanes=1, dropout=0.0)
    mixture = source.lanes[0]
    taken = 0
    for _ in range(5):
        (batch,) = source.next_step()
        taken += int(sum(row.max() >= 0 for row in batch.documents)) and len(
            {int(i) for i in batch.documents.flatten() if i >= 0}
        )
        assert taken == mixture.index


def test_lanes_must_divide_over_the_processes(tokenizers):
    with pytest.raises(ValueError, match="global_micro_batches 3 is not a multiple of the 2 processes"):
        loader(tokenizers, num_lanes=3, world=2)


def test_a_state_of_another_recipe_is_refused(tokenizers):
    with pytest.raises(ValueError, match="no lane 0 over 2 sources"):
        loader(tokenizers).load_state_dict({"step": 1, "lanes": {"0": [1, 2, 3]}})


def test_a_source_whose_size_changed_is_refused(tokenizers):
    state = loader(tokenizers).state_dict()
    loader(tokenizers).load_state_dict({"step": state["step"], "streams": state["lanes"]})  # of an older release
    state["sizes"][1] += 1
    with pytest.raises(ValueError, match=r"data source number 1 changed: \d+ items, the checkpoint had"):
        loader(tokenizers).load_state_dict(state)


def test_an_empty_source_is_named():
    with pytest.raises(ValueError, match="source number 1 is empty"):
        Mixture([range(3), []], [1, 1], 0, 0, 1)


def test_media_batches_are_padded_and_repeatable():
    def make():
        clips = [torch.full((1, n), float(n)) for n in (3, 5, 4)]
        return MediaLoader([clips], [1.0], lambda c, rng: c + rng.random(), batch_size=3, seed=1, num_lanes=1)

    (one,), (two,) = make().next_step(), make().next_step()
    assert torch.equal(one.media, two.media)
    assert one.media.shape == (3, 1, 5)
    assert sorted(one.lengths.tolist()) == [3, 4, 5]
    short = one.lengths.tolist().index(3)
    assert one.media[short, 0, 3:].abs().sum() == 0
    assert one.target_counts() == {"examples": 3}
    assert collate_media([torch.ones(1, 2)]).media.shape == (1, 1, 2)


def test_the_lanes_of_a_process_share_the_order_of_an_epoch(tokenizers):
    lanes = loader(tokenizers).lanes
    orders = {id(mixture._orders) for mixture in lanes.values()}
    assert len(orders) == 1
    found = lanes[0]._orders
    for epoch in (0, 1, 2, 1, 5):
        expected = np.random.default_rng((3, 0, epoch)).permutation(17)
        assert found(0, epoch).tolist() == expected.tolist()
        assert len(found._known) <= 2
