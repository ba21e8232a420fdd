"""The step drawn ahead changes nothing but the time it takes."""

from __future__ import annotations

import threading

import pytest
from tiny_run import TinyLoader, make_batch

from latentlm.training.prefetch import Prefetcher


def seeds(batches) -> list[int]:
    return [batch.seed for batch in batches]


def test_steps_and_positions_are_those_of_the_loader_alone():
    plain, ahead = TinyLoader(2), Prefetcher(TinyLoader(2))
    assert ahead.state_dict() == plain.state_dict()
    for _ in range(4):
        assert seeds(ahead.next_step()) == seeds(plain.next_step())
        assert ahead.state_dict() == plain.state_dict()


def test_a_loaded_position_drops_what_was_drawn_ahead():
    plain, ahead = TinyLoader(2), Prefetcher(TinyLoader(2))
    for _ in range(3):
        ahead.next_step()
    ahead.load_state_dict({"streams": {"0": 7, "1": 7}})
    plain.load_state_dict({"streams": {"0": 7, "1": 7}})
    assert ahead.state_dict() == plain.state_dict()
    assert seeds(ahead.next_step()) == seeds(plain.next_step())


def test_the_next_step_is_drawn_while_this_one_is_used():
    drawn = [threading.Event() for _ in range(3)]

    class Telling(TinyLoader):
        def next_step(self):
            batches = super().next_step()
            drawn[self.positions[0] - 1].set()
            return batches

    ahead = Prefetcher(Telling(1))
    ahead.next_step()
    assert drawn[1].wait(timeout=10)
    assert not drawn[2].is_set()


class Broken(TinyLoader):
    def next_step(self):
        if self.positions[0] == 1:
            raise OSError("apple.png: gone")
        return super().next_step()


def test_an_error_comes_with_the_step_it_belongs_to():
    ahead = Prefetcher(Broken(1))
    ahead.next_step()
    assert ahead.state_dict() == {"streams": {"0": 1}}
    with pytest.raises(OSError, match=r"apple\.png: gone"):
        ahead.next_step()
    ahead.load_state_dict({"streams": {"0": 5}})
    assert seeds(ahead.next_step()) == [make_batch(0, 5).seed]
