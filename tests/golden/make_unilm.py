"""Runs the authors' own code on tiny sizes and keeps inputs, weights and outputs for tests/parity/test_unilm.py.

    python tests/golden/make_unilm.py CHECKOUT/LatentLM tests/golden/unilm

CHECKOUT is a clone of microsoft/unilm; torch, numpy, diffusers, timm and torchscale must be importable. What their
modules import and these sizes never run (triton, fairscale, torchvision) is replaced by empty stand-ins. Weights are
random and rounded to bf16, so that half the bytes hold them exactly; no layer is left at zero. This file is ours.
"""

import importlib.abc
import importlib.machinery
import json
import sys
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock, patch

import torch
from safetensors.torch import save_file

STAND_INS = ("triton", "fairscale", "torchvision")
SEEDS = (11, 12, 13)  # of the noise of each generated picture
LABELS = (3, 7, 0)
STEPS, GUIDANCE = 6, 2.5


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        wanted = name.split(".")[0] in STAND_INS
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if wanted else None

    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__path__, module.__name__, module.__spec__ = [], spec.name, spec
        return module

    def exec_module(self, module):
        pass


def randomise(module, seed, scale=1.0):
    """Every parameter: normal noise of about 1/√fan_in, around 1 for the weights of norms, rounded to bf16."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 25
        value = torch.randn(parameter.shape, generator=generator) * scale * fan_in**-0.5
        if parameter.dim() == 1 and name.endswith("weight"):
            value += 1
        parameter.data = value.bfloat16().float()
    return module.eval().requires_grad_(False)


def weights(module, prefix="model."):
    return {prefix + name: tensor.bfloat16().contiguous() for name, tensor in module.state_dict().items()}


def sequence_of_noise(seed):
    """(16, 4): latent by latent, as a request of ours draws it; one large draw would give other numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(4, generator=generator) for _ in range(16)])


def image_model():
    """Their Transformer: hidden states, head, a guided generation; raw weights and the EMA's list."""
    from models import EMAModel, Transformer
    from schedule.dpm_solver import DPMSolverMultistepScheduler

    size = {"hidden_size": 32, "depth": 2, "diffusion_depth": 2, "num_heads": 2, "num_kv_heads": 1}
    make = partial(Transformer, input_size=4, in_channels=4, num_classes=10, posi_scale=2, **size)
    model = randomise(make(), 1)
    model.final_layer.linear.weight.data *= 0.125  # a sequence of sixteen latents that amplifies no rounding
    averaged = EMAModel(randomise(make(), 2).parameters()).state_dict()["shadow_params"]
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor(LABELS)
    inputs = {"latents": draw(3, 4, 4, 4), "noisy": draw(3, 4, 4, 4), "timesteps": torch.arange(48).view(3, 16) * 20}
    condition = model.forward_parallel(inputs["latents"].clone(), labels)
    head = model.forward_diffusion(inputs["noisy"].clone(), inputs["timesteps"].float(), condition)

    noise = torch.stack([sequence_of_noise(seed) for seed in SEEDS])
    scheduler = DPMSolverMultistepScheduler(beta_schedule="cosine", prediction_type="v_prediction")

    def sample(predict, x):
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            x = scheduler.step(predict(x, t.repeat(len(x)).to(x)), t, x).prev_sample
        return x

    steps = iter(noise.unbind(1))
    with patch("torch.randn", lambda *shape, **_: next(steps).repeat(2, 1).view(shape)):
        prompts = torch.cat((labels, torch.full_like(labels, 10)))
        generated = model.sample_with_cfg(prompts, GUIDANCE, sample)
    other = make()
    for parameter, value in zip(other.parameters(), averaged, strict=True):
        parameter.data = value
    outputs = {
        "condition": condition,
        "head": head,
        "noise": noise,
        "generated": generated,
        "ema_condition": other.eval().forward_parallel(inputs["latents"].clone(), labels).detach(),
    }
    ema = {f"ema.{number:03d}": tensor.bfloat16() for number, tensor in enumerate(averaged)}
    return weights(model) | ema | inputs | outputs


def sigma_vae(encoder):
    """Their SigmaVAE with a ViT or a BEiT-3 encoder of tiny size: encode and decode."""
    from tokenizer_models import modeling_beit3_vision, modeling_common
    from tokenizer_models.modeling_sigma_vae import SigmaVAE

    def beit3(image_size):
        config = modeling_beit3_vision.EncoderConfig(
            img_size=image_size, patch_size=4, vocab_size=64, multiway=False, layernorm_embedding=False,
            normalize_output=True, no_output_layer=True, drop_path_rate=0, encoder_embed_dim=16,
            encoder_attention_heads=2, encoder_ffn_embed_dim=64, encoder_layers=2,
        )  # fmt: skip
        return modeling_beit3_vision.BEiT3Vision(config)

    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    vit = {"embed_dim": 16, "depth": 2, "num_heads": 2, "qkv_bias": True, "norm_layer": norm}
    with patch.object(modeling_common, "beit3_base_vision", beit3):
        model = SigmaVAE(
            encoder_config=vit | {"arch": encoder, "img_size": 16, "patch_size": 4, "in_chans": 3},
            decoder_config=vit | {"arch": "vit-base", "img_size": 4, "patch_size": 1, "in_chans": 4},
            patch_size=4,
            latent_size=4,
        )
    randomise(model, 4)
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(5))
    images, latents = draw(2, 3, 16, 16), draw(2, 4, 4, 4)
    outputs = {"mean": model.encode(images).mode(), "decoded": model.decode(latents)}
    return weights(model) | {"images": images, "latents": latents} | outputs


def kl16():
    """Their AutoencoderKL, narrower: 8 channels and groups, two levels, attention at the lower one."""
    from tokenizer_models import vae

    small = {"ch": 8, "num_res_blocks": 1, "resolution": 32}
    with (
        patch.object(vae, "Encoder", partial(vae.Encoder, **small)),
        patch.object(vae, "Decoder", partial(vae.Decoder, **small)),
        patch.object(vae, "Normalize", partial(vae.Normalize, num_groups=8)),
    ):
        model = randomise(vae.AutoencoderKL(embed_dim=4, ch_mult=(1, 2)), 6)
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(7))
    images, latents = draw(2, 3, 8, 8), draw(2, 4, 4, 4)
    posterior = model.encode(images)
    outputs = {"mean": posterior.mean, "std": posterior.std, "decoded": model.decode(latents)}
    return weights(model) | {"images": images, "latents": latents} | outputs


def names():
    """Names and shapes of every real size, on the meta device."""
    import tokenizer_models
    from models import Transformer_models

    def listing(module):
        return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}

    with torch.device("meta"), patch("torch.linspace", partial(torch.linspace, device="cpu")):  # they read values of it
        listed = {name: listing(make(input_size=16, in_channels=16)) for name, make in Transformer_models.items()}
        for encoder in ("beit3-base", "vit-base"):
            config = {"img_size": 256, "patch_size": 16, "encoder_arch": encoder, "decoder_arch": "vit-base"}
            listed[f"sigma-vae {encoder}"] = listing(tokenizer_models.sigma_vae(latent_size=16, std=0.75, **config))
        listed["KL-16"] = listing(tokenizer_models.AutoencoderKL(embed_dim=16, ch_mult=(1, 1, 2, 2, 4)))
    return listed


def main(checkout, folder):
    sys.meta_path.insert(0, StandIns())
    sys.path.insert(0, str(checkout))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensors in (
            ("transformer", image_model()),
            ("sigma_vae", sigma_vae("vit-base")),
            ("sigma_vae_beit3", sigma_vae("beit3-base")),
            ("kl16", kl16()),
        ):
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / f"{name}.safetensors")
    (folder / "names.json").write_text(json.dumps(names(), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
