"""Examples in the --help of commands."""


def examples(*lines: str) -> str:
    """A section of examples for --help, one command per line."""
    return "Examples:\n\n" + "\n".join(f"    {line}" for line in lines)
