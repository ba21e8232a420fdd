"""The demo's budget: what it may take as a whole, whatever came before the training."""

import pytest

from latentlm.config import load_recipe
from latentlm.demo import AROUND_MINUTES, SETUP_MINUTES, WHOLE_MINUTES, run, training_minutes


@pytest.mark.parametrize("before", [0.0, 20.0, 60.0, 170.0])
def test_training_leaves_time_for_the_rest(before):
    recipe = load_recipe("demo")
    minutes = training_minutes(recipe, before)
    assert minutes <= recipe.training.max_minutes
    assert before / 60 + minutes + AROUND_MINUTES <= WHOLE_MINUTES


def test_training_takes_the_recipes_minutes_where_they_fit():
    recipe = load_recipe("demo", {"training.max_minutes": 3.0})
    assert training_minutes(recipe, 60.0) == 3.0


def test_a_slow_network_does_not_eat_up_the_training():
    assert training_minutes(load_recipe("demo"), 3600.0) == WHOLE_MINUTES - AROUND_MINUTES - SETUP_MINUTES


@pytest.mark.parametrize("left", ["checkpoints", "model"])
def test_a_folder_that_holds_a_run_is_refused_before_anything_is_done(tmp_path, left):
    (tmp_path / left).mkdir()
    with pytest.raises(ValueError, match="already holds a run; move it away"):
        run(tmp_path, say=lambda text: pytest.fail(text))
