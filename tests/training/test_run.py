"""`train` from a recipe: what is stopped early is not passed off as trained, and goes on later."""

import pytest
import yaml

from latentlm.config import RecipeError, parse_recipe
from latentlm.training import run as module
from latentlm.training.run import STOPPED, ProcessFailed, train
from latentlm.training.trainer import Trainer


def recipe(**training):
    return parse_recipe(
        {
            "kind": "image_tokenizer",
            "tokenizer": {"image_size": 8, "patch_size": 4, "latent_dim": 4, "width": 16, "num_heads": 2},
            "data": {"sources": [{"name": "digits", "limit": 64}], "batch_size": 8},
            "training": {"steps": 6, "log_every": 1, **training},
        }
    )


def test_a_tokenizer_is_trained_calibrated_and_saved(tmp_path):
    folder = train(recipe(), tmp_path / "run")
    from latentlm.tokenizers.load import load_tokenizer

    assert load_tokenizer(folder).latent_std > 0
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["kind"] == "image_tokenizer"
    with pytest.raises(ValueError, match="already holds a run"):
        train(recipe(), tmp_path / "run")


def test_a_run_stopped_by_a_signal_raises_and_resumes(tmp_path, monkeypatch):
    class Impatient(Trainer):
        def _step(self, clock):
            super()._step(clock)
            self._stop = self.state.step == 2

    monkeypatch.setattr(module, "Trainer", Impatient)
    with pytest.raises(ProcessFailed) as stopped:
        train(recipe(), tmp_path / "run")
    assert stopped.value.code == STOPPED
    monkeypatch.undo()
    train(recipe(), tmp_path / "run", resume=True)
    assert len((tmp_path / "run" / "train.jsonl").read_text().splitlines()) == 6


def test_a_tokenizer_is_not_sharded(tmp_path):
    with pytest.raises(ValueError, match=r"training.parallel shard is for language models"):
        train(recipe(parallel="shard", accumulation=2), tmp_path / "run", processes=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_weights": {"mze": 1.0}}, "training.loss_weights: no loss 'mze', did you mean 'mse'?"),
        ({"freeze": ["encoder"]}, "training.freeze is for language models"),
    ],
)
def test_keys_that_mean_nothing_to_a_tokenizer_are_named(changes, message):
    with pytest.raises(RecipeError, match=message):
        recipe(**changes)


def test_processes_must_divide_the_micro_batches_before_anything_starts(tmp_path):
    with pytest.raises(ValueError, match="accumulation 1 is not a multiple of the 2 processes"):
        train(recipe(), tmp_path / "run", processes=2)
    assert not (tmp_path / "run").exists()
