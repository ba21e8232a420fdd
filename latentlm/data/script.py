"""Scripts: turns of several speakers, and the documents in which models read them.

Place in the flow: 2, a text and voice clips ──▶ `types.Document`, the prompt of long speech of several speakers.

    Speaker 1: Good morning.
    Speaker 2: Good morning to you. A line without a speaker
    goes on with the turn above it.

`speaker_labels.py` says what counts as a speaker's label. `script_prompt` lays a script out as the models of PAPER §6
were trained: a system line, "Voice input:" with a clip of each speaker that has one, "Text input:" with the turns,
"Speech output:"; the model then opens the span of speech. `script_document` lays out recordings in the same way for
training. Speakers are numbered from 0 there. Where the two reference processors contradict each other or themselves,
docs/scripts.md says which one is followed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import UserError
from ..media.sound import Audio
from ..modalities.speech import Speech
from ..types import Document, Latents, Segment, Text
from .placed import PlacedDocuments, place_of
from .speaker_labels import bare_label, plain_text, read_label, speaker_key, speaker_name, split_tags, straight_quotes

Voice = Audio | Latents

SYSTEM_LINE = (
    " Transform the text provided by various speakers into speech output, "
    "utilizing the distinct voice of each respective speaker.\n"
)
"""The system line that the models of PAPER §6 were trained with, verbatim."""


@dataclass(frozen=True)
class Turn:
    """One speaker's words, until another one speaks."""

    speaker: str
    text: str


@dataclass(frozen=True)
class Script:
    """Turns in order. A speaker is known by the name after the word Speaker: "1", "2", or any other.

    Names that differ only in case ("Anna", "anna") are one speaker, spelled as in the first turn.
    num_lines, has_labels, left_out: of a script that was read from text, the number of lines, whether any has a label,
    and the moods and time stamps of the labels, which are not spoken.
    """

    turns: tuple[Turn, ...]
    num_lines: int = field(default=1, compare=False)
    has_labels: bool = field(default=True, compare=False)
    left_out: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self):
        spelling: dict[str, str] = {}
        for turn in self.turns:
            spelling.setdefault(speaker_key(turn.speaker), speaker_name(turn.speaker))
        turns = tuple(replace(turn, speaker=spelling[speaker_key(turn.speaker)]) for turn in self.turns)
        object.__setattr__(self, "turns", turns)

    @property
    def speakers(self) -> dict[str, int]:
        """Each speaker's number in the prompt, from 0.

        If all speakers have numbers, Speaker k gets k - 1, or k if there is a Speaker 0. Otherwise speakers are
        numbered in the order in which they first speak.
        """
        names = list(dict.fromkeys(turn.speaker for turn in self.turns))
        if not all(name.isdecimal() for name in names):
            return {name: number for number, name in enumerate(names)}
        return {name: int(name) - ("0" not in names) for name in names}

    def cast(self, voices: Mapping[int | str, Voice]) -> dict[str, Voice]:
        """`voices` in the order of the speakers' numbers.

        Raises UserError for a voice whose speaker is not in the script, and for two voices of one speaker.
        """
        numbers = self.speakers
        names = {speaker_key(name): name for name in numbers}
        found: dict[str, Voice] = {}
        for given, clip in voices.items():
            name = names.get(speaker_key(given))
            if name is None:
                who, known = speaker_name(given), ", ".join(numbers)
                raise UserError(f"a voice for speaker {who!r}, who says nothing in the script (speakers: {known})")
            if name in found:
                raise UserError(f"two voices for speaker {name} (the second is given for {given!r}); give one")
            found[name] = clip
        return {name: found[name] for name in sorted(found, key=numbers.__getitem__)}

    @property
    def text(self) -> str:
        """The words alone, one line per turn."""
        return "\n".join(turn.text for turn in self.turns)

    def describe(self) -> str:
        """The speakers found, for people: "2 speakers: 1 (2 turns), Anna (1 turn)"."""
        if not self.has_labels:
            return f"no speaker lines: one voice reads its {counted(self.num_lines, 'line')}"
        counts = Counter(turn.speaker for turn in self.turns)
        shown = [f"{name} ({counted(count, 'turn')})" for name, count in counts.items()]
        left_out = f"; not read: {_listed(self.left_out)}" if self.left_out else ""
        return f"{counted(len(counts), 'speaker')}: {_listed(shown, 8)}{left_out}"


def read_script(path: str | Path) -> Script:
    """The script in a UTF-8 text file. UserError names the file, and the line where one is wrong."""
    return parse_script(read_text(path), str(path))


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark. UserError names the file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def parse_script(text: str, origin: str = "script") -> Script:
    """The turns of a text whose lines begin with labels (`speaker_labels.py`).

    A line without a label goes on with the turn above it, blank lines are skipped. Without any label the whole is one
    turn of speaker 1. The text is composed (NFC) and loses its characters without width.
    Raises UserError, naming `origin` and the line, for words before the first speaker, a turn without words, and
    a line that looks like a label but is not one.
    """
    lines = [
        (number, part)
        for number, line in enumerate(plain_text(text).splitlines(), 1)
        for part in split_tags(line.strip())
        if part
    ]
    if not lines:
        raise UserError(f"{origin}: the script is empty")
    opened: list[tuple[int, str, list[str]]] = []  # line number, speaker, pieces
    unlabelled: list[tuple[int, str]] = []
    left_out: list[str] = []
    for number, line in lines:
        try:
            label = read_label(line)
        except UserError as error:
            raise UserError(f"{origin}:{number}: {error}") from None
        if label is not None:
            opened.append((number, label.speaker, [label.words]))
            left_out += label.left_out
            continue
        unlabelled.append((number, line))
        if opened:
            opened[-1][2].append(line)
    _refuse_bare_labels(unlabelled, origin, has_labels=bool(opened))
    if opened and unlabelled and unlabelled[0][0] < opened[0][0]:
        raise UserError(f"{origin}:{unlabelled[0][0]}: words before the first speaker, {unlabelled[0][1][:40]!r}")
    has_labels = bool(opened)
    if not has_labels:
        opened = [(lines[0][0], "1", [line for _, line in lines])]
    turns = []
    for number, name, pieces in opened:
        words = " ".join(piece for piece in pieces if piece)
        if not words:
            raise UserError(f"{origin}:{number}: Speaker {name} says nothing")
        turns.append(Turn(name, words))
    return Script(tuple(turns), len(lines), has_labels, tuple(left_out))


def _refuse_bare_labels(lines: Sequence[tuple[int, str]], origin: str, has_labels: bool) -> None:
    """Raise UserError for lines such as "Anna: Hi.".

    In a text without labels only if they make a dialogue: at least half of the lines are of this kind, or there are
    several names and one occurs again.
    """
    found = [(number, name) for number, line in lines if (name := bare_label(line, capitals=has_labels))]
    num_names = len({name for _, name in found})
    is_dialogue = len(found) > 1 and (2 * len(found) >= len(lines) or 1 < num_names < len(found))
    if found and (has_labels or is_dialogue):
        number, name = found[0]
        remedy = "join this line to the one above it" if has_labels else "write the text as one line"
        raise UserError(
            f"{origin}:{number}: '{name}:' is no label; write 'Speaker {name}: words' or, if no {name} speaks, {remedy}"
        )


def join_scripts(scripts: Sequence[Script]) -> Script:
    """The turns of all scripts, one after the other."""
    return Script(
        tuple(turn for script in scripts for turn in script.turns),
        sum(script.num_lines for script in scripts),
        any(script.has_labels for script in scripts),
        tuple(item for script in scripts for item in script.left_out),
    )


def counted(number: int, noun: str) -> str:
    """For people: "1 turn", "1,200 turns"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _listed(items: Sequence[str], num: int = 3) -> str:
    return ", ".join(items[:num]) + (f" and {len(items) - num} more" if len(items) > num else "")


def script_prompt(script: Script, voices: Mapping[int | str, Voice]) -> Document:
    """`script` with `voices` (by speaker) as the models of PAPER §6 read it; all of it condition, without loss.

    Curly apostrophes and quotation marks become straight ones, as in the front ends that these models were released
    with: those for long speech replace ’, the one for short speech “ and ” too. Unreplaced, "it’s" is spoken as "it".
    Raises UserError as `Script.cast`.
    """
    numbers = script.speakers
    parts: list[str | Voice] = [SYSTEM_LINE]
    if voices:
        parts.append(" Voice input:\n")
    for name, clip in script.cast(voices).items():
        parts += [f" Speaker {numbers[name]}:", clip, "\n"]
    parts.append(" Text input:\n")
    parts += [f" Speaker {numbers[turn.speaker]}: {straight_quotes(turn.text)}\n" for turn in script.turns]
    parts.append(" Speech output:\n")
    return Document(tuple(map(_condition, parts)))


def script_document(document: Document) -> Document:
    """A recording as an example for training: `script_prompt` of its texts and clips, then the speech.

    document: condition texts, which are the lines of the script; condition clips of its speakers in the order of their
    numbers (one of each, or none); last the speech. Raises UserError for a document of any other kind.
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
    """The documents of `source` laid out for training a model whose config says `prompt: layout`."""
    return ScriptDocuments(documents, source) if layout == "script" else documents


class ScriptDocuments(PlacedDocuments):
    """The documents of a source, each laid out by `script_document`. UserError names `source` and the number."""

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
