"""The examples that commands show under their options in --help."""


def examples(*lines: str) -> str:
    """Markdown of commands to copy, one per line; at most 74 columns each, or a terminal of 80 wraps them."""
    return "Examples:\n\n" + "\n".join(f"    {line}" for line in lines)
