"""Figures as people read them: units by name, and as many digits as the comparison beside them needs.

Place in the flow: `Report` ──▶ the page and the terminal.
"""

from __future__ import annotations

import math

from .report import Figure

THIN = "\u202f"  # a narrow no-break space
MAX_EXTRA_DIGITS = 12
_PERCENT = ("accuracy", "top1", "top1_all", "match", "rate", "colour", "shape", "place", "accuracy_real", "wer")


def show_value(name: str, value: float, extra: int = 0) -> str:
    """`value` with the unit of the figure `name`, and `extra` decimals beyond the usual ones."""
    if name.startswith("seconds."):
        return f"{value / 60:.{1 + extra}f}{THIN}min" if value >= 120 else f"{value:.{1 + extra}f}{THIN}s"
    last = name.split(".")[-1]
    if last.endswith(_PERCENT):
        return f"{100 * value:.{1 + extra}f}{THIN}%"
    if last.endswith("psnr"):
        return f"{value:.{1 + extra}f}{THIN}dB"
    return f"{value:.{2 + extra}f}" if extra or 0.1 <= abs(value) < 1000 else f"{value:.3g}"


def measured(figure: Figure) -> str:
    """The value. A value that misses its bound has enough digits to differ from the bound."""
    extra = _extra_digits(figure)
    shown = show_value(figure.name, figure.value, extra)
    while figure.passed is False and extra < MAX_EXTRA_DIGITS and shown == _bound_value(figure, extra):
        extra += 1
        shown = show_value(figure.name, figure.value, extra)
    return shown


def plus_minus(figure: Figure) -> str:
    """Half the width of the 95 % interval, in the digits of the value; empty where there is none."""
    return "" if figure.interval is None else show_value(figure.name, figure.interval, _extra_digits(figure))


def reference(figure: Figure) -> str:
    """The value of the reference, in the digits of the figure's own; empty where there is none."""
    return "" if figure.reference is None else show_value(figure.name, figure.reference, _extra_digits(figure))


def bound(figure: Figure) -> str:
    """The requirement as "≥ 97.0 %"; empty where there is none."""
    if figure.required is None:
        return ""
    return f"{ {'>=': '≥', '<=': '≤'}[figure.required[0]] } {_bound_value(figure)}"


def line(figure: Figure) -> str:
    """One line for the terminal: name, value ± interval, and the reference."""
    value = measured(figure) + (f" ± {plus_minus(figure)}" if figure.interval is not None else "")
    beside = f"   {figure.reference_name}: {reference(figure)}" if figure.reference is not None else ""
    return f"{figure.name:36} {value:20}{beside}".rstrip().replace(THIN, " ")


def _bound_value(figure: Figure, extra: int = 0) -> str:
    assert figure.required is not None
    return show_value(figure.name, figure.required[1], extra)


def _extra_digits(figure: Figure) -> int:
    """Decimals beyond the usual ones that show two significant digits of the standard error; 0 where there is none."""
    if not figure.standard_error or not math.isfinite(figure.standard_error):
        return 0
    usual = 3 if figure.name.endswith(_PERCENT) else 2
    return min(6, max(0, 1 - math.floor(math.log10(figure.standard_error)) - usual))
