"""What a checkpoint says of its run, and what is said where it does not fit."""

import json
from pathlib import Path

import pytest

from latentlm.training.state import FORMAT_VERSION, RunProgress, TrainerState, differences


def test_differences_are_dotted_leaves():
    then = {"model": {"head": {"width": 16, "num_layers": 1}, "prompt": "plain"}, "seed": 0}
    now = {"model": {"head": {"width": 32, "num_layers": 1}}, "seed": 0, "ema": True}
    assert differences(then, now) == [
        ("ema", None, True),
        ("model.head.width", 16, 32),
        ("model.prompt", "plain", None),
    ]
    assert differences(then, then) == []


def record(**identity):
    return TrainerState(identity, RunProgress(3), 3, {"lanes": {}}, [{}], {})


def test_the_message_names_keys_and_is_never_long():
    then = record(model=dict.fromkeys("abcdef", "x" * 10_000))
    with pytest.raises(ValueError, match=r"^c: was made with model\.a = 'xx.*; model\.b = .* and 3 more; ") as refused:
        then.check(Path("c"), {"model": {}})
    assert len(str(refused.value)) < 1000
    then.check(Path("c"), then.identity)


def test_round_trip_with_and_without_a_version():
    fields = json.loads(json.dumps(record(model=1).dump()))
    assert TrainerState.parse(Path("c"), fields) == record(model=1)
    assert fields.pop("format_version") == FORMAT_VERSION
    assert TrainerState.parse(Path("c"), fields) == record(model=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "c: format_version is 2, this release reads 1"),
        ({"stranger": 1}, "c: trainer.json was written by another release .*'stranger'"),
        ({"state": {"step": 3}}, "c: trainer.json was written by another release .*'window'"),
        ({"state": {"epoch": 3, "window": {}}}, "c: trainer.json was written by another release .*'epoch'"),
        ({"state": None}, "c: trainer.json was written by another release"),
    ],
)
def test_a_record_of_another_release_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainerState.parse(Path("c"), record().dump() | changes)
