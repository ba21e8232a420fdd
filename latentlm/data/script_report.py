"""The speakers in the scripts of a data set, for people: part of what `latentlm data validate` prints.

Place in the flow: 2, beside `manifest.py` and the readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import UserError
from .script import Script, Turn, counted, parse_script


def spoken_text(segments: Sequence) -> str | None:
    """The script in the segments of a document or manifest line: its condition texts, one per line.

    None if the last segment is not speech to generate, or there is no condition text.
    """
    *given, last = segments
    texts = [segment.text for segment in given if segment.modality == "text" and segment.condition]
    return "\n".join(texts) if texts and last.modality == "speech" and not last.condition else None


def describe_speakers(texts: Iterable[tuple[str, str | None]]) -> list[str]:
    """Lines about the speakers in many scripts; empty where no script has a label.

    texts: the place of each document and its `spoken_text`. A second line counts the texts that `parse_script` refuses,
    with the reason for the first.
    """
    turns: list[Turn] = []
    num_scripts, refused = 0, []
    for place, text in texts:
        try:
            script = None if text is None else parse_script(text, place)
        except UserError as error:
            refused.append(str(error))
            continue
        if script is not None and script.has_labels:
            num_scripts += 1
            turns += script.turns
    lines = [f"{counted(num_scripts, 'script')}, {Script(tuple(turns)).describe()}"] if turns else []
    if refused:
        lines.append(f"{counted(len(refused), 'text')} that models of scripts refuse, the first: {refused[0]}")
    return lines
