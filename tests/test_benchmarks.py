"""benchmarks/: the floor's formula against torch's own count, and every part at tiny sizes. Nothing here is timed."""

import gc
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import commands  # noqa: E402
import data as data_benchmark  # noqa: E402
import generation_speed  # noqa: E402
import long_form  # noqa: E402
import spine  # noqa: E402
from figures import Figure, instructions  # noqa: E402
from floor import step_flops  # noqa: E402
from products import Products  # noqa: E402

from latentlm.model.prepack import PATIENCE  # noqa: E402

SETTING = generation_speed.Setting(width=64, num_layers=2, num_heads=2, num_latents=12, steps=4, chunk=2, square=64)


def test_the_floor_counts_what_one_step_of_the_engine_multiplies():
    model = generation_speed.build(SETTING, torch.float64)  # torch does not see into the packed products of fp32
    stepper = generation_speed.Stepper(generation_speed.new_engine(model, SETTING, 3))
    stepper.advance(2)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the only kernel it counts on CPU
        stepper.advance(1)
    context = max(stepper.context)  # the engine attends to the longest row's length in all rows, masked
    needed = step_flops(model.config, 16, requests=3, guided=True, context=context, evaluations=4)
    assert counter.get_total_flops() == sum(needed.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # the products packed, and not
def test_the_products_by_themselves_are_those_of_the_floor(dtype):
    stepper = generation_speed.Stepper(generation_speed.new_engine(generation_speed.build(SETTING, dtype), SETTING, 3))
    stepper.advance(PATIENCE)
    products = Products(lambda: stepper.advance(1))
    needed = step_flops(stepper.engine.model.config, 16, requests=3, guided=True, context=1, evaluations=4)
    needed.pop("attention")
    assert products.flops == sum(needed.values())
    assert products.seconds() > 0


def test_every_part_of_a_step_is_counted():
    model = generation_speed.build(SETTING, torch.float32)
    needed = step_flops(model.config, 16, requests=3, guided=True, context=5, evaluations=4)
    R, M, W, D, G = 6, 3, 64, 64, 192
    assert needed == {
        "backbone": 2 * R * 2 * (D * 3 * D + D * D + 3 * D * G),
        "attention": 4 * R * 2 * D * 5,
        "embed": 2 * M * 16 * D,
        "condition": 2 * R * D * W,
        "modulation": 2 * R * 4 * W * (9 * W + 2 * W),
        "ffn": 2 * R * 4 * 3 * W * G * 3,
        "in_out": 2 * M * 4 * 16 * W + 2 * R * 4 * W * 16,
    }


@pytest.mark.parametrize(("required", "met"), [("< 1", False), ("<= 1", True), (">= 1", True), ("", None)])
def test_a_figure_knows_whether_its_requirement_is_met(required, met):
    assert Figure("a", "a", 1.0, "s", required).met is met


def test_the_instructions_of_bf16_are_named_with_what_limits_them(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": True, "amx_bf16": False})
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert instructions() == ["avx512_bf16"]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    assert instructions() == ["avx512_bf16", "at most AVX512_CORE"]


def test_peak_memory_covers_the_process_tree(margin):
    child = "x = bytearray(80 << 20); import time; time.sleep(1)"
    parent = f"import subprocess, sys; x = bytearray(40 << 20); subprocess.run([sys.executable, '-c', {child!r}])"
    peak, processes = commands.peak_memory([sys.executable, "-c", parent])
    margin("MiB", peak / 2**20, at_least=120)
    assert processes == 2


def test_a_command_that_fails_is_an_error_with_its_last_line():
    with pytest.raises(RuntimeError, match="exit code 3: nothing works"):
        commands.run([sys.executable, "-c", "import sys; print('nothing works', file=sys.stderr); sys.exit(3)"])


def test_a_smoke_run_writes_every_figure(tmp_path, capsys):
    recipe = {
        "kind": "latentlm",
        "model": {"transformer": {"width": 32, "num_layers": 1, "num_heads": 2}},
        "data": {"sequence_length": 512, "rows": 1, "sources": [{"name": "prose", "task": "text"}]},
        "training": {"steps": 4, "save_every": 2},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "spine.json"
    arguments = f"--smoke --threads 1 --dtypes fp32 bf16 --batches 2 --out {out}".split()  # both, whatever is native
    arguments += ["--block", "2", "--blocks", "2", "--repeats", "2", "--recipe", str(tmp_path / "small.yaml")]
    arguments += ["--only", "generation", "position", "churn", "training"]
    assert spine.main(arguments) == 0
    assert torch.get_num_threads() == 1  # training, the last part, keeps the threads asked for
    record = json.loads(out.read_text())
    main_dtype = "bf16" if record["hardware"]["bf16_native"] else "fp32"
    assert set(record["figures"]) == {
        "generation.fp32.batch2.floor_share",
        "generation.bf16.batch2.floor_share",
        f"generation.{main_dtype}.position_ratio",
        f"generation.{main_dtype}.churn",
        "training.overhead",
    }
    assert all(figure["measured"] > 0 for name, figure in record["figures"].items() if name != "training.overhead")
    churn = record["figures"][f"generation.{main_dtype}.churn"]
    assert churn["measured"] == abs(churn["detail"]["ratio"] - 1)
    floor = record["figures"]["generation.fp32.batch2.floor_share"]["detail"]
    assert floor["latents_per_second"] > 0
    assert floor["rate"]["square_gflops"] > 0
    assert len(record["figures"]["training.overhead"]["detail"]["ratios"]) == 2
    printed = capsys.readouterr().out
    assert "required" in printed
    assert "batch 2" in printed


def test_an_engine_is_compared_with_that_of_another_tree(tmp_path, capsys):
    out = tmp_path / "against.json"
    tree = FOLDER.parent
    arguments = f"--against {tree} --batch 2 --pairs 1 --threads 1 --smoke --out {out}".split()
    assert generation_speed.main(arguments) == 0
    figures = json.loads(out.read_text())["figures"]
    assert set(figures) == {"generation.fp32.batch2.against"}
    (figure,) = figures.values()
    assert figure["detail"]["ratios"] == [figure["measured"]]
    assert "latents per second over" in capsys.readouterr().out


def test_a_tree_without_an_engine_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match=f"engine_worker.py {tmp_path} ended with exit code 1"):
        generation_speed.main(f"--against {tmp_path} --batch 1 --pairs 1 --smoke".split())


@pytest.mark.filterwarnings("ignore:the script has 4 speakers")
def test_long_speech_is_measured_as_it_grows(tmp_path, capsys):
    out = tmp_path / "long_form.json"
    assert long_form.main(["--minutes", "0.02", "0.1", "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["minutes"] for row in printed["reached"]] == [0.02, 0.1]
    assert printed == json.loads(out.read_text())["figures"]["long_form.growth"]["detail"]
    assert printed["cache_kib_per_second"] == 2 * 2 * 2 * 2 * 16 * 4 * 7.5 / 1024  # k and v, branches, layers, heads


def test_nothing_is_kept_of_a_frame_that_was_said():
    pipeline = long_form.build(2048, width=16)
    request = long_form.Request(pipeline.prompt("Hello.", "speech"), "speech", steps=1, guidance=1.3, max_latents=40)
    gc.collect()  # of what other tests left, nothing may go meanwhile
    alive = [live_tensors() for _ in pipeline.stream(request)]
    assert len(alive) == 40
    assert len(set(alive[8:])) == 1  # by then every layer of the two tokenizers has its full past


def live_tensors() -> tuple[int, int]:
    """How many tensors there are, and their bytes."""
    sizes = [thing.nbytes for thing in gc.get_objects() if type(thing) is torch.Tensor]
    return len(sizes), sum(sizes)


def test_the_import_is_timed_in_a_fresh_process(margin):
    seconds = commands.printed_seconds(commands.IMPORT)
    assert seconds > 0
    margin("seconds", seconds, at_most=60)


def test_large_data_is_measured_in_small(tmp_path, capsys):
    out = tmp_path / "data.json"
    assert data_benchmark.main(["--scale", "smoke", "--folder", str(tmp_path / "kept"), "--out", str(out)]) == 0
    figures = json.loads(out.read_text())["figures"]
    names = [f"data.{name}.{what}" for name in ("pictures", "many") for what in ("startup", "memory", "wait")]
    assert set(figures) == {"data.encode.rate", *names}
    assert all(figure["measured"] > 0 for figure in figures.values())
    assert figures["data.encode.rate"]["detail"]["documents"] == 300
    assert figures["data.many.memory"]["met"]
    assert len(figures["data.many.startup"]["detail"]["step_seconds"]) == 2
    assert "1,000 documents: peak resident memory" in capsys.readouterr().out
