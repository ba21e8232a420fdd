"""Scripts: who says what, line by line, and the documents that models read them as.

Place in the flow: 2, a text file and voice clips ──▶ `types.Document`, the prompt of long, many-voiced speech.

    Speaker 1: Good morning.
    Speaker 2: Good morning to you. A line without a speaker
    goes on with the turn above it.

`script_prompt` lays a script out as VibeVoice was trained (PAPER §6): a system line, "Voice input:" with a clip of
each speaker that has one, "Text input:" with the turns, "Speech output:". The model then opens the span of speech.
`script_document` lays out recordings in the same way, to learn from.
Speakers are numbered from 0 there. Departures from the two reference processors, where these contradict each other or
themselves, are listed in docs/numerics.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..media.sound import Audio
from ..modalities.speech import Speech
from ..types import Document, Latents, Segment, Text
from .placed import PlacedDocuments, place_of

Voice = Audio | Latents

SPEAKER = re.compile(r"speaker\s+(\w[\w.'’-]*(?: [\w.'’-]+){0,2})\s*[:：]\s*(.*)", re.IGNORECASE)
"""A line that opens a turn: a name of up to three words, a plain or a full-width colon, and the first words."""

NO_COLON = re.compile(r"speaker\s+\d+(?!.*[:：])", re.IGNORECASE)
"""A line that was meant to open a turn."""

SYSTEM_LINE = (
    " Transform the text provided by various speakers into speech output, "
    "utilizing the distinct voice of each respective speaker.\n"
)
"""What VibeVoice was trained on, to the letter."""


@dataclass(frozen=True)
class Turn:
    """What one speaker says without a break."""

    speaker: str
    text: str


@dataclass(frozen=True)
class Script:
    """Turns in order. A speaker is known by the name after the word Speaker: "1", "2", or any other."""

    turns: tuple[Turn, ...]

    @property
    def speakers(self) -> dict[str, int]:
        """Each speaker's number in the prompt, from 0.

        Numbered speakers keep their distances: the numbers written, less one unless somebody is Speaker 0. Names are
        numbered as they first speak.
        """
        names = list(dict.fromkeys(turn.speaker for turn in self.turns))
        if not all(name.isdecimal() for name in names):
            return {name: number for number, name in enumerate(names)}
        return {name: int(name) - ("0" not in names) for name in names}

    def cast(self, voices: Mapping[int | str, Voice]) -> dict[str, Voice]:
        """`voices` in the order of the speakers' numbers. Raises UserError for one of somebody who does not speak."""
        numbers = self.speakers
        found = {speaker_name(name): clip for name, clip in voices.items()}
        for name in found:
            if name not in numbers:
                known = ", ".join(numbers)
                raise UserError(f"a voice for speaker {name!r}, who says nothing in the script (speakers: {known})")
        return {name: found[name] for name in sorted(found, key=numbers.__getitem__)}

    @property
    def text(self) -> str:
        """The words alone, a turn a line."""
        return "\n".join(turn.text for turn in self.turns)


def speaker_name(name: int | str) -> str:
    """A speaker as scripts and voices are matched by: 1, "1" and "01" are one."""
    name = str(name)
    return str(int(name)) if name.isdecimal() else name


def read_script(path: str | Path) -> Script:
    """The script in a UTF-8 text file. UserError names the file, and the line where one is wrong."""
    return parse_script(read_text(path), str(path))


def read_text(path: str | Path) -> str:
    """A UTF-8 text file, with or without a byte order mark. UserError names the file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def parse_script(text: str, origin: str = "script") -> Script:
    """Lines `Speaker NAME: words`; a line without a speaker goes on with the turn above it, blank lines are skipped.

    Without any speaker the whole is one turn of speaker 1. Raises UserError, naming `origin` and the line, for words
    before the first speaker, a turn without words, and a missing colon.
    """
    opened: list[tuple[int, str, list[str]]] = []  # line number, speaker, pieces
    stray: list[tuple[int, str]] = []  # lines before any speaker
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        match = SPEAKER.fullmatch(line)
        if match:
            name, words = match.groups()
            opened.append((number, speaker_name(name), [words]))
        elif NO_COLON.match(line):
            raise UserError(f"{origin}:{number}: {line[:40]!r} has no colon; write 'Speaker 1: words'")
        elif line and opened:
            opened[-1][2].append(line)
        elif line:
            stray.append((number, line))
    if stray and opened:
        raise UserError(f"{origin}:{stray[0][0]}: words before the first speaker, {stray[0][1][:40]!r}")
    if stray:
        opened = [(stray[0][0], "1", [line for _, line in stray])]
    if not opened:
        raise UserError(f"{origin}: the script is empty")
    turns = []
    for number, name, pieces in opened:
        words = " ".join(piece for piece in pieces if piece)
        if not words:
            raise UserError(f"{origin}:{number}: Speaker {name} says nothing")
        turns.append(Turn(name, words))
    return Script(tuple(turns))


def script_prompt(script: Script, voices: Mapping[int | str, Voice]) -> Document:
    """`script` with `voices` (by speaker) as VibeVoice reads it; all of it condition, without loss.

    Raises UserError for a voice of somebody who does not speak.
    """
    numbers = script.speakers
    parts: list[str | Voice] = [SYSTEM_LINE]
    if voices:
        parts.append(" Voice input:\n")
    for name, clip in script.cast(voices).items():
        parts += [f" Speaker {numbers[name]}:", clip, "\n"]
    parts.append(" Text input:\n")
    parts += [f" Speaker {numbers[turn.speaker]}: {turn.text}\n" for turn in script.turns]
    parts.append(" Speech output:\n")
    return Document(tuple(map(_condition, parts)))


def script_document(document: Document) -> Document:
    """A recording to learn, laid out as VibeVoice will be asked for it: `script_prompt`, then the speech.

    `document`: given texts, which are the script, given clips of its speakers in the order of their numbers (all of
    them, or none), and last the speech. Raises UserError for a document of any other kind.
    """
    *given, spoken = document.segments
    texts = [segment.text for segment in given if isinstance(segment, Text)]
    clips = [segment.content for segment in given if isinstance(segment, Speech)]
    others = len(given) - len(texts) - len(clips) + sum(not segment.condition or segment.loss for segment in given)
    if others or not isinstance(spoken, Speech) or spoken.condition or not spoken.loss:
        raise UserError(
            "this model reads a script and speaks: a document has texts and clips of voices, all with condition: true, "
            f"then the speech, not {', '.join(map(_describe, document.segments))}"
        )
    script = parse_script("\n".join(texts))
    numbers = script.speakers
    if clips and len(clips) != len(numbers):
        raise UserError(f"{len(clips)} clips of voices for speakers {', '.join(numbers)}; give one of each, or none")
    voices = dict(zip(sorted(numbers, key=numbers.__getitem__), clips, strict=False))
    return Document((*script_prompt(script, voices).segments, spoken))


def apply_prompt_format(documents: Sequence[Document], layout: str, source: str) -> Sequence[Document]:
    """The documents of `source` as a model whose config says `prompt: layout` learns them and is asked."""
    return ScriptDocuments(documents, source) if layout == "script" else documents


class ScriptDocuments(PlacedDocuments):
    """The documents of a source, each as `script_document` lays it out; UserError names `source` and its number."""

    def __init__(self, documents: Sequence[Document], source: str):
        self.documents = documents
        self.source = source

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> Document:
        document = self.documents[index]
        try:
            return script_document(document)
        except UserError as error:
            raise UserError(f"data source {self.source!r}: document {index}: {error}") from None

    def place(self, index: int) -> str:
        return place_of(self.documents, index, self.source)


def _condition(part: str | Voice) -> Segment:
    kind = Text if isinstance(part, str) else Speech
    return kind(part, condition=True, loss=False)


def _describe(segment: Segment) -> str:
    return f"{'a given ' if segment.condition else ''}{segment.modality}"
