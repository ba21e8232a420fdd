"""What a checkpoint says of its run, and what is said where it does not fit."""

from pathlib import Path

import pytest

from latentlm.training.record import check_identity, differences


def test_differences_are_dotted_leaves():
    then = {"model": {"head": {"width": 16, "num_layers": 1}, "prompt": "plain"}, "seed": 0}
    now = {"model": {"head": {"width": 32, "num_layers": 1}}, "seed": 0, "ema": True}
    assert differences(then, now) == [
        ("ema", None, True),
        ("model.head.width", 16, 32),
        ("model.prompt", "plain", None),
    ]
    assert differences(then, then) == []


def test_the_message_names_keys_and_is_never_long():
    then = {"model": dict.fromkeys("abcdef", "x" * 10_000)}
    with pytest.raises(ValueError, match=r"^c: was made with model\.a = 'xx.*; model\.b = .* and 3 more; ") as refused:
        check_identity(Path("c"), then, {"model": {}})
    assert len(str(refused.value)) < 1000
    check_identity(Path("c"), then, then)
