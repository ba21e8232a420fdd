"""The examples that commands show under their options in --help."""

import re

WIDTH = 74
"""Columns of a line, so that it can be copied from a terminal of 80."""


def examples(*lines: str) -> str:
    """Markdown of commands to copy, one per line; longer ones are continued as shells do."""
    return "Examples:\n\n" + "\n".join(f"    {folded(line)}" for line in lines)


def folded(line: str) -> str:
    """A command over several lines where it is longer than WIDTH, each but the first beginning with an option."""
    rows = [""]
    for piece in re.split(r" (?=--)", line):
        joined = f"{rows[-1]} {piece}".strip()
        if len(joined) > WIDTH and rows[-1]:
            rows.append(piece)
        else:
            rows[-1] = joined
    return " \\\n        ".join(rows)
