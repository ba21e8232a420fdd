"""A tokenizer on two processes is the one that a single process trains: the scale of its noise is shared, too."""

from pathlib import Path

import pytest
import torch

import latentlm
from latentlm.config import Recipe, parse_recipe
from latentlm.training.run import train
from latentlm.weights import read_weights


def recipe(steps: int) -> Recipe:
    return parse_recipe(
        {
            "kind": "image_tokenizer",
            "tokenizer": {"image_size": 8, "patch_size": 4, "latent_dim": 4, "width": 16, "num_heads": 2},
            "data": {"sources": [{"name": "digits", "limit": 64}], "batch_size": 8},
            "training": {
                "steps": steps,
                "global_micro_batches": 4,
                "precision": "fp32",
                "optimizer": {"schedule": "constant", "warmup_steps": 0, "learning_rate": 0.003},
            },
        }
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("tokenizers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(latentlm.__file__).parents[1]))
        train(recipe(12), folder / "one")
        train(recipe(12), folder / "two", processes=2)
        train(recipe(6), folder / "resumed", processes=2)
        train(recipe(12), folder / "resumed", processes=2, resume=True)
    return {name: read_weights(folder / name / "model/model.safetensors") for name in ("one", "two", "resumed")}


def without_key_bias(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The bias of the keys adds the same to all scores of a query: its gradient is rounding alone, scaled by Adam."""
    return {
        name: torch.stack(value.chunk(3))[::2] if name.endswith("qkv.bias") else value
        for name, value in tensors.items()
    }


def test_two_processes_equal_one(weights, margin):
    one, two = (without_key_bias(weights[name]) for name in ("one", "two"))
    assert two.keys() == one.keys()
    margin("largest difference", max(float((two[name] - one[name]).abs().max()) for name in one), at_most=2e-5)
    assert weights["two"]["posterior.num_batches"] == 12 * 4


def test_a_run_of_two_processes_goes_on_bit_by_bit(weights):
    for name, value in weights["two"].items():
        assert torch.equal(weights["resumed"][name], value), name
