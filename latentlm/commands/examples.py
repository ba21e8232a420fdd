"""How the commands show their examples in --help."""


def examples(*lines: str) -> str:
    """Commands to copy, one a line, under the options."""
    return "Examples:\n\n" + "\n".join(f"    {line}" for line in lines)
