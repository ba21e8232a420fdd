"""Tests two claims of the method on real digits over several seeds: how C_σ and the guidance scale affect quality.

    python benchmarks/claims.py --out docs/results/claims.json          (can be stopped; continues where it was)
    python benchmarks/claims.py --plot docs/results/claims.json         (two PNGs and the tables, from the JSON alone)
    python benchmarks/claims.py --target mean --out claims_mean.json    (the same, with μ as the target of diffusion)

For each seed and each C_σ a small σ-VAE is trained on the 1,500 training digits, a small LatentLM on its sampled
latents, and 500 digits are drawn at each guidance scale and judged by the packaged judge. Everything but C_σ and the
seed is equal: data order, initial weights and number of steps. C_σ = 0 is posterior "none": a plain autoencoder.
All C_σ of one seed come before the next seed. Single thread, fp32; CPU seconds are counted, not the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from claims_plot import plot
from figures import hardware

import latentlm
from latentlm.config import ImageTokenizerRecipe, LatentLMRecipe, parse_recipe
from latentlm.data import documents
from latentlm.data.embedded import digits
from latentlm.evaluation.judge import NUM_CLASSES, Scans, accuracy, compare, load_judge, real_scans, to_scans
from latentlm.evaluation.protocol import Protocol, answer_media, ask, before_answer
from latentlm.generation.pipeline import Pipeline
from latentlm.training.logs import read_log
from latentlm.training.run import train

C_SIGMAS = (0.0, 0.1, 0.3, 0.6, 1.0)
GUIDANCES = (1.0, 1.5, 2.0, 3.0)
DIGITS_PER_CLASS = 50
SOLVER_STEPS = 10
FRECHET_DRAWS = 40


@dataclass(frozen=True)
class Setting:
    """Settings of a study: optimiser steps of the two trainings, digits drawn per class, and the target of diffusion.

    target: "sample", the sampled z, or "mean", the posterior mean μ. The input is always z.
    """

    tokenizer_steps: int = 300
    model_steps: int = 450
    digits_per_class: int = DIGITS_PER_CLASS
    target: str = "sample"


SMOKE = Setting(tokenizer_steps=5, model_steps=5, digits_per_class=5)


# ------------------------------------------------------------------ what is trained


def tokenizer_recipe(c_sigma: float, seed: int, setting: Setting) -> ImageTokenizerRecipe:
    """A tokenizer of 8×8 scans, with 16 latents of 8 channels; C_σ relative to std(μ)."""
    posterior = {"kind": "sigma", "c_sigma": c_sigma} if c_sigma else {"kind": "none"}
    return parse_recipe(
        {
            "kind": "image_tokenizer",
            "tokenizer": {
                "image_size": 8,
                "patch_size": 2,
                "latent_dim": 8,
                "width": 64,
                "encoder_layers": 2,
                "decoder_layers": 2,
                "num_heads": 4,
                "posterior": posterior | {"weight": 1e-3},
            },
            "data": {"batch_size": 64, "sources": [{"name": "digits"}]},
            "training": _training(setting.tokenizer_steps, seed)
            | {"optimizer": {"learning_rate": 2e-3, "weight_decay": 0.01, "warmup_steps": 50}},
        }
    )


def model_recipe(tokenizer: Path, seed: int, setting: Setting) -> LatentLMRecipe:
    """A model from word to digit; its input is the sampled z, its diffusion target `setting.target`."""
    return parse_recipe(
        {
            "kind": "latentlm",
            "tokenizers": {"image": str(tokenizer), "text": {"kind": "bpe", "vocab_size": 300}},
            "model": {
                "transformer": {"width": 128, "num_layers": 4, "num_heads": 4, "context_length": 128},
                "head": {"num_layers": 3},
                "diffusion": {"target": setting.target, "timesteps_per_latent": 4},
            },
            "data": {
                "sequence_length": 128,
                "rows": 4,
                "condition_dropout": 0.1,
                "sources": [{"name": "digits", "task": "text_to_image"}],
            },
            "training": _training(setting.model_steps, seed)
            | {
                "loss_weights": {"text": 0.1},
                "optimizer": {"learning_rate": 2e-3, "weight_decay": 0.01, "warmup_steps": 30},
            },
        }
    )


def _training(steps: int, seed: int) -> dict[str, Any]:
    every = {"log_every": 50, "save_every": steps, "keep": 1}
    return {"steps": steps, "seed": seed, "precision": "fp32", "threads": 1, "ema": 0.99} | every


# ------------------------------------------------------------------ one run


def run(c_sigma: float, seed: int, setting: Setting, folder: Path) -> dict[str, Any]:
    """The record of one C_σ and one seed: trains tokenizer and model, draws digits, judges them."""
    began = time.process_time()
    tokenizer_folder = train_whole(tokenizer_recipe(c_sigma, seed, setting), folder / "tokenizer")
    tokenized = time.process_time()
    pipeline = latentlm.load(train_whole(model_recipe(tokenizer_folder, seed, setting), folder / "model"))
    trained = time.process_time()
    with torch.no_grad():
        reconstruction = reconstruct(pipeline.tokenizers["image"], seed)
        generated = {f"{scale:g}": draw(pipeline, scale, seed, setting) for scale in GUIDANCES}
    seconds = {"tokenizer": tokenized - began, "model": trained - tokenized, "drawing": time.process_time() - trained}
    return {
        "c_sigma": c_sigma,
        "seed": seed,
        "reconstruction": reconstruction,
        "guidance": generated,
        "cpu_seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def train_whole(recipe: ImageTokenizerRecipe | LatentLMRecipe, folder: Path) -> Path:
    """`train`, but raises SystemExit if a signal ended the training early, so that no half-trained model is measured.

    The runs that are already in the JSON stay.
    """
    trained = train(recipe, folder)
    step = read_log(folder / "train.jsonl")[-1]["step"]
    if step < recipe.training.steps:
        raise SystemExit(
            f"stopped at step {step} of {recipe.training.steps}; this run is dropped, earlier ones are kept"
        )
    return trained


def reconstruct(tokenizer, seed: int) -> dict[str, float]:
    """Reconstruction of held-out digits from the posterior means and from sampled z: mean squared error of pixels in
    [0, 1], and the judge's accuracy."""
    held_out, judge = real_scans("held_out"), load_judge()
    posteriors = tokenizer.encode([item.image for item in digits.load("held_out")])
    generator = torch.Generator().manual_seed(seed)
    ways = {"mean": [p.mean for p in posteriors], "sample": [p.sample(generator) for p in posteriors]}
    found = {}
    for way, latents in ways.items():
        scans = Scans(to_scans(tokenizer.decode(latents)), held_out.labels)
        found[f"{way}_mse"] = float((scans.values - held_out.values).square().mean())
        found[f"{way}_accuracy"] = accuracy(judge, scans)
    return found


def draw(pipeline: Pipeline, scale: float, seed: int, setting: Setting) -> dict[str, float]:
    """Draw digits at one guidance scale, classes balanced; returns the judge's accuracy and the Fréchet distances."""
    example = digits.load("train")[0].image  # only the word of the document is given to the model
    labels = [k for _ in range(setting.digits_per_class) for k in range(NUM_CLASSES)]
    prompts = [before_answer(documents.text_to_image(digits.WORDS[k], example)) for k in labels]
    protocol = Protocol(steps=SOLVER_STEPS, seed=seed, guidance={"digits": scale}, batch_size=len(labels))
    outputs = ask(pipeline, prompts, "image", protocol, "digits")
    scans = Scans(to_scans([answer_media(output) for output in outputs]), torch.tensor(labels))
    judge = load_judge()
    found = compare(scans, real_scans("all"), judge, FRECHET_DRAWS)
    return {
        "accuracy": accuracy(judge, scans),
        "frechet": found.distance,
        "frechet_real": found.real_distance,
        "frechet_ratio": found.ratio,
    }


# ------------------------------------------------------------------ the study, kept after every run


def study(out: Path, seeds: Sequence[int], c_sigmas: Sequence[float], setting: Setting) -> None:
    """Make every run that `out` does not have yet. Raises ValueError if `out` was made with other settings."""
    record = _open(out, setting)
    done = {(entry["c_sigma"], entry["seed"]) for entry in record["runs"]}
    for seed in seeds:
        for c_sigma in c_sigmas:
            if (c_sigma, seed) in done:
                continue
            with tempfile.TemporaryDirectory() as folder:
                entry = run(c_sigma, seed, setting, Path(folder))
            record["runs"].append(entry)
            _write(out, record)
            print(json.dumps(entry), flush=True)


def _open(out: Path, setting: Setting) -> dict[str, Any]:
    """The record in `out`, or a new one that holds both recipes (all but C_σ, seed and the tokenizer's path)."""
    recipes = (tokenizer_recipe(max(C_SIGMAS), 0, setting), model_recipe(Path("TOKENIZER"), 0, setting))
    settings = {
        "tokenizer": recipes[0].model_dump(mode="json"),
        "model": recipes[1].model_dump(mode="json"),
        "guidances": list(GUIDANCES),
        "digits_per_class": setting.digits_per_class,
        "solver_steps": SOLVER_STEPS,
        "frechet_draws": FRECHET_DRAWS,
        "judge_accuracy_on_real": accuracy(load_judge(), real_scans("held_out")),
    }
    if not out.is_file():
        return {"hardware": hardware(), "settings": settings, "runs": []}
    record = json.loads(out.read_text())
    for name in ("tokenizer", "model"):  # fills in options that are newer than the file
        record["settings"][name] = parse_recipe(record["settings"][name]).model_dump(mode="json")
    if record["settings"] != settings:
        raise ValueError(f"{out}: was made with other settings than this script's; choose another file")
    return record


def _write(out: Path, record: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(partial, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON to write or to continue")
    parser.add_argument("--plot", type=Path, nargs="+", help="JSONs to draw; the PNGs go beside the first")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--c-sigma", type=float, nargs="+", default=list(C_SIGMAS), choices=C_SIGMAS)
    parser.add_argument("--target", default="sample", choices=("sample", "mean"), help="target of diffusion")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, to check that it runs")
    arguments = parser.parse_args()
    if arguments.out is None and arguments.plot is None:
        parser.error("give --out, --plot or both")
    torch.set_num_threads(1)
    if arguments.out:
        setting = replace(SMOKE if arguments.smoke else Setting(), target=arguments.target)
        study(arguments.out, range(arguments.seeds), arguments.c_sigma, setting)
    if arguments.plot:
        plot(arguments.plot)


if __name__ == "__main__":
    main()
