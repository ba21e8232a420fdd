"""The golden model of the authors' code (tests/golden) in the files that their training writes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentlm.generation.pipeline import Pipeline
from latentlm.interop import unilm, unilm_vae

GOLDEN = Path(__file__).parent / "golden" / "unilm"
REFERENCE = "microsoft/unilm 768a3c8"
SCALE, BIAS = 0.25, 0.5
CONFIG = {
    "hidden_size": 32,
    "depth": 2,
    "diffusion_depth": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "posi_scale": 2,
    "num_classes": 10,
    "prediction_type": "v_prediction",
    "image_size": 16,
    "vae": "vae.pt",
}
VAE_CONFIG = {"img_size": 16, "patch_size": 4, "latent_size": 4, "std": 0.75, "encoder_arch": "vit-base"}


def golden(name: str) -> tuple[dict, dict]:
    """The weights, fp32 and without their prefix, and everything else."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    weights = {key.removeprefix("model."): t.float() for key, t in tensors.items() if key.startswith("model.")}
    return weights, {key: t for key, t in tensors.items() if not key.startswith("model.")}


def write_checkpoint(folder: Path) -> Path:
    weights, rest = golden("transformer")
    save_file(weights, folder / "model.safetensors")
    average = [rest[key].float() for key in sorted(rest) if key.startswith("ema.")]
    state = {"scaling_factor": SCALE, "bias_factor": BIAS, "steps": 1000, "ema": {"shadow_params": average}}
    torch.save(state, folder / "other_state.pth")
    torch.save({"config": VAE_CONFIG, "model": golden("sigma_vae")[0]}, folder / "vae.pt")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Their tokenizer files name an architecture, not its size: "vit-base" becomes tiny."""
    patch.setattr(unilm_vae, "BASE", {"width": 16, "encoder_layers": 2, "decoder_layers": 2, "num_heads": 2})


def load_tiny(folder: Path, weights: str = "ema") -> Pipeline:
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        return unilm.load(folder, weights)
