"""Makes prose.txt from the two documents in Debian's `miscfiles` (public domain, see prose.LICENSE.txt).

    python -m latentlm.data.embedded.make_prose /usr/share/state/us-declaration.gz /usr/share/state/us-constitution.gz

One paragraph per line; headings, dates of ratification and lists of names are left out.
"""

from __future__ import annotations

import gzip
import re
import sys
from pathlib import Path

SHORTEST = 60  # characters; what is shorter is a heading or a name


def paragraphs(text: str) -> list[str]:
    joined = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    return [
        block
        for block in joined
        if len(block) >= SHORTEST
        and block[-1] in ".;:,-"
        and not re.match(r"Passed by Congress|Proposed|\[|\w[\w ]+:", block)
    ]


def main(sources: list[Path], output: Path) -> None:
    texts = [gzip.decompress(source.read_bytes()).decode("ascii") for source in sources]
    kept = [paragraph for text in texts for paragraph in paragraphs(text)]
    output.write_text("".join(f"{paragraph}\n" for paragraph in kept), encoding="ascii")
    print(f"{len(kept)} paragraphs, {output.stat().st_size} bytes")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]], Path(__file__).with_name("prose.txt"))
