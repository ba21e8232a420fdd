"""The header of a run and the output of --dry-run: parameters, data, cost of a step, memory.

Place in the flow: 5, between a built `Run` and the trainer. The part that differs between kinds of recipe is a
`Workload`, made by `workload.py`. Memory is estimated by these rules:
    weights     as they are stored, and with bf16 a copy of 2 bytes per weight
    gradients   the size of the trained weights
    optimiser   AdamW: twice the trained weights; Muon: once, for the matrices of the blocks
    average     4 bytes per trained weight, unless training.ema is 0
    activations `Workload.activations_rule`
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from ..config import TrainingConfig
from .distributed import World
from .objective import Objective, Run, plain
from .optim import is_block_matrix
from .parallelize import resolve_precision

MEGABYTE = 1e6
MEMORY_RULE = (
    "weights as stored (plus a copy of 2 bytes each with bf16), gradients and two AdamW moments of the trained "
    "weights (one with Muon), 4 bytes per averaged weight; without tokenizers and cached latents; on a CPU, the "
    "measured peaks were 1.2 to 1.6 times this"
)


@dataclass(frozen=True)
class SourceOutline:
    """The training data of one source.

    name         what the recipe calls it, and its task
    share        of the documents that are drawn, 0 to 1
    num_items    documents, pictures or clips
    num_tokens   positions of all documents; an estimate unless `exact`; None where the unit is not tokens
    """

    name: str
    share: float
    num_items: int
    num_tokens: float | None = None
    exact: bool = True


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The data of a run and the cost of one of its steps.

    items             what the sources hold: documents, pictures or clips
    sources           one entry per source of the recipe
    step              the size of a step in words
    flops             floating-point operations of a step, forward and backward
    flops_rule        how they are counted
    activations       bytes that the forward pass of one micro-batch keeps for the backward pass
    activations_rule  how they are counted
    tokenizers        parameters of the tokenizers that the run uses and does not train, by name
    example           one document as the model reads it; None if there is nothing to show
    """

    items: str = "documents"
    sources: Sequence[SourceOutline] = ()
    step: str
    flops: float
    flops_rule: str
    activations: float
    activations_rule: str
    tokenizers: Mapping[str, int] = field(default_factory=dict)
    example: str | None = None


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters by part of the model: its children, with each entry of `heads` by itself; tied weights once."""
    parts: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        parts |= {f"head {key}": head for key, head in child.named_children()} if name == "heads" else {name: child}
    seen: set[int] = set()
    counts = {name: _count(part.parameters(), seen) for name, part in parts.items()}
    own = _count(model.parameters(), seen)
    return {name: num for name, num in (counts | {"others": own}).items() if num}


def _count(parameters: Iterable[nn.Parameter], seen: set[int]) -> int:
    """Elements of the parameters that are not in `seen`, which is extended by them."""
    new = {id(value): value.numel() for value in parameters if id(value) not in seen}
    seen.update(new)
    return sum(new.values())


def memory(run: Run, training: TrainingConfig, precision: str, activations: float | None) -> dict[str, float]:
    """Bytes by purpose, per process that holds all weights, by the rules of this file's header."""
    objective = run.objective or plain(run.model, training.optimizer)
    modules = [run.model, *(phase.module for phase in objective.phases), *objective.frozen]
    weights = {id(value): value for module in modules for value in [*module.parameters(), *module.buffers()]}
    stored = sum(value.numel() * value.element_size() for value in weights.values())
    trained = _trained(objective)
    size = sum(value.numel() * value.element_size() for _, value, _ in trained)
    averaged = [value for value in run.model.parameters() if value.requires_grad] if training.ema else []
    found = {
        "weights": stored + (2 * sum(v.numel() for v in weights.values()) if precision == "bf16" else 0),
        "gradients": size,
        "optimiser": sum(
            value.numel() * value.element_size() * (1 if kind == "muon" and is_block_matrix(name, value) else 2)
            for name, value, kind in trained
        ),
        "average": 4 * sum(value.numel() for value in averaged),
    }
    return {name: float(size) for name, size in found.items()} | ({"activations": activations} if activations else {})


def _trained(objective: Objective) -> list[tuple[str, nn.Parameter, str]]:
    """(name, parameter, kind of its optimiser) of all that the phases train."""
    return [
        (name, value, phase.optimizer.kind)
        for phase in objective.phases
        for name, value in phase.module.named_parameters()
        if value.requires_grad
    ]


def outline(run: Run, training: TrainingConfig, world: World, work: Workload | None) -> list[str]:
    """The lines of the header: threads, model, tokenizers, data, step and memory."""
    parts = count_parameters(run.model)
    total = sum(parts.values())
    trained = sum(value.numel() for value in run.model.parameters() if value.requires_grad)
    share = "all trained" if trained == total else f"{_short(trained)} trained"
    lines = [
        f"threads     {torch.get_num_threads()}{' per process' if world.size > 1 else ''}",
        f"model       {_short(total)} parameters, {share}",
        *_wrapped(f"{n} {_short(c)}" for n, c in parts.items()),
    ]
    precision = resolve_precision(world.device, training.precision)
    sizes = memory(run, training, precision, work.activations if work else None)
    if work:
        if work.tokenizers:
            names = ", ".join(f"{name} {_short(num)}" for name, num in work.tokenizers.items())
            lines.append(f"tokenizers  {names} parameters, not trained")
        lines += _source_lines(work)
        lines.append(f"step        {work.step}; {_scientific(work.flops)} FLOPs")
    lines.append(f"memory      about {_bytes(sum(sizes.values()))}, without Python and the data")
    return lines + _wrapped(f"{name} {_bytes(size)}" for name, size in sizes.items())


def details(work: Workload) -> list[str]:
    """The lines that explain the header of --dry-run: the rules behind its figures, and one example document."""
    rules = {"FLOPs": work.flops_rule, "memory": MEMORY_RULE, "activations": work.activations_rule}
    lines = ["", "rules:", *(line for name, rule in rules.items() for line in _labelled(name, rule))]
    return lines + (["", f"example:    {work.example}"] if work.example else [])


def _labelled(name: str, text: str) -> list[str]:
    return textwrap.wrap(f"{name}: {text}", 80, initial_indent="  ", subsequent_indent="    ")


def _source_lines(work: Workload) -> list[str]:
    lines = []
    for source in work.sources:
        text = f"{source.name}: {source.num_items:,} {work.items}"
        if source.num_tokens is not None:
            about = "" if source.exact else "about "
            text += f", {about}{_short(source.num_tokens)} tokens per epoch"
        if len(work.sources) > 1:
            text += f", {source.share:.1%} of draws"
        lines.append(f"{'data' if not lines else '':<12}{text}")
    return lines


def _wrapped(items: Iterable[str], width: int = 80, indent: int = 12) -> list[str]:
    """`items` between commas, in lines of at most `width` characters."""
    lines, line = [], ""
    for item in items:
        if line and indent + len(line) + 2 + len(item) > width - 1:
            lines.append(line + ",")
            line = item
        else:
            line = f"{line}, {item}" if line else item
    return [" " * indent + each for each in [*lines, line] if each]


def _short(number: float) -> str:
    """12,345 · 8.90M · 1.23B."""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:,.0f}"


def _bytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / MEGABYTE:.3g} MB"


def _scientific(number: float) -> str:
    """3.4·10¹²."""
    digits, exponent = f"{number:.1e}".split("e")
    return f"{digits}·10{str(int(exponent)).translate(str.maketrans('0123456789-', '⁰¹²³⁴⁵⁶⁷⁸⁹⁻'))}"


def first_line(kind: str, training: TrainingConfig, world: World) -> str:
    """The first line of the header: kind of recipe, device, precision and processes."""
    precision = resolve_precision(world.device, training.precision)
    processes = f", {world.size} processes" if world.size > 1 else ""
    return f"{kind} on {world.device}, {precision}{processes}"
