"""Speaker labels: finds whether a line of a script begins a turn, and the speaker.

Place in the flow: 2, a line of text ──▶ `Label`, of which `script.py` makes turns.

    Speaker 1: words            a number, or a name ("Speaker Anna", "Speaker Dr. Bell", "Speaker José Luis")
    SPEAKER_00: words           labels of diarisation and transcription: also Speaker1, spk_0, S1, [S1], [SPEAKER_00]
    Speaker 1 (happy): words    brackets in the label are left out, as is a time stamp in front of it
    - **Speaker 1:** words      list bullets, quotation marks and Markdown emphasis around the label are left out

A name of several words needs capitals or quotation marks: "Speaker volume is low: turn it up" is a sentence. A line
that looks like a label but is not one raises UserError; the caller adds the file and the line's number.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from ..errors import UserError

SINGLE = (0xAD, 0x61C, 0x180E, 0x200B, 0x200E, 0x200F, 0xFEFF)
RANGES = (range(0x202A, 0x202F), range(0x2060, 0x2065), range(0x2066, 0x206A))
INVISIBLE = dict.fromkeys((*SINGLE, *(c for some in RANGES for c in some)))
"""Characters without width that no spelling needs: soft hyphen, zero-width space, byte order mark, text directions."""

LOOSE_JOINERS = re.compile("(?<!\\S)[\u200c\u200d]+|[\u200c\u200d]+(?=[\\s:：]|$)")
"""Zero-width joiners at the edge of a word. Between letters they are part of the spelling (Hindi, Persian)."""

JOINERS = dict.fromkeys((0x200C, 0x200D))

QUOTES = str.maketrans({**dict.fromkeys("‘’‚‛", "'"), **dict.fromkeys("“”„‟", '"')})
"""Curly quotation marks and apostrophes to straight ones."""

COLONS = ":：﹕∶︓"
TIME = r"\d+(?:[:.,]\d+)+s?(?:\s*(?:-->?|[-–—]|to)\s*\d+(?:[:.,]\d+)+s?)?"
PREFIX = re.compile(
    rf"(?:[-–—•·‣◦]\s*|[*+]\s+|[>#]+\s*|\d+[.)]\s+)*(?P<time>{TIME}\s+|[\[(]\s*{TIME}\s*[\])]\s*)?(?:[-–—]\s+)?"
)
"""What may stand in front of a label: list bullets, quote and heading marks, a time stamp."""

IN_BRACKETS = r"\([^()]*\)|\[[^\[\]]*\]|（[^（）]*）"
HEAD = re.compile(rf"((?:[^{COLONS}()\[\]（）]|{IN_BRACKETS}){{1,80}}?)\s*[{COLONS}]\s*(.*)", re.DOTALL)
"""Groups: the text in front of the first colon outside brackets, and the text behind it."""

TAG = re.compile(rf"[*_`~]*[\[(<{{]([^\[\]()<>{{}}]{{1,60}})[\])>}}][*_`~]*\s*([{COLONS}]?)[*_`~]*\s*(.*)", re.DOTALL)
"""Groups: the text in brackets, the colon if there is one, the words."""

BRACKETS = re.compile(IN_BRACKETS)
MARKS = re.compile(r"""[*_`~"']+""")
"""Markdown emphasis and quotation marks in front of a label."""
NUMBERED = r"(?:speakers?|spk)[\s_#.-]*(?:(?:no|nr|number)\b\.?\s*)?\d+"
KEYWORD = re.compile(
    r"(?:speaker|spk)(?:[\s_#.-]*(?:(?:no|nr|number)\b\.?\s*)?(?P<number>\d+)|[\s_]+(?P<name>.+))?|s_?(?P<tag>\d{1,3})",
    re.IGNORECASE,
)
"""A label without brackets, marks and colon. Groups: the number, the name, or the number of a label such as S1."""
INNER_TAG = re.compile(r"(?=\[\s*(?:s|spk|speaker)[\s_#-]*\d+\s*\])", re.IGNORECASE)
UNREADABLE = re.compile(rf"[\W_]*{NUMBERED}", re.IGNORECASE)
"""The beginning of a line that was meant to open a turn."""
INNER_LABEL = re.compile(rf"\b{NUMBERED}\s*(?:{IN_BRACKETS})?[*_`~)\]>}}»”’\"']*\s*[{COLONS}]", re.IGNORECASE)
"""A label that does not begin its line."""

MAX_NAME_WORDS = 8
MAX_PARTICLE = 3
"""Letters of a lower-case word within a name, as in "Anna von der Heide"."""


@dataclass(frozen=True)
class Label:
    """A label of a line: the speaker, the words behind it, and the moods and time stamps that are left out."""

    speaker: str
    words: str
    left_out: tuple[str, ...] = ()


def plain_text(text: str) -> str:
    """`text` composed (NFC) and without the INVISIBLE characters."""
    return LOOSE_JOINERS.sub("", unicodedata.normalize("NFC", text).translate(INVISIBLE))


def straight_quotes(text: str) -> str:
    """`text` with ' for curly apostrophes and single quotation marks, and " for curly double ones."""
    return text.translate(QUOTES)


def speaker_name(name: int | str) -> str:
    """A speaker's name in one spelling: 1, "1", "01", "Speaker 1" and "SPEAKER_01" all give "1". Case is kept."""
    text = " ".join(straight_quotes(plain_text(str(name))).translate(JOINERS).split())
    found = KEYWORD.fullmatch(text)
    if found:
        text = found["number"] or found["tag"] or found["name"] or text
    text = _unquoted(text)
    return str(int(text)) if text.isdecimal() else text


def speaker_key(name: int | str) -> str:
    """The key by which speakers are compared: `speaker_name`, whatever its case."""
    return unicodedata.normalize("NFC", speaker_name(name).casefold())


def split_tags(line: str) -> list[str]:
    """The turns of a line that begins with a tag in brackets, as in "[S1] Hi. [S2] Hello."; any other line whole."""
    if not INNER_TAG.match(line):
        return [line]
    return [part.strip() for part in INNER_TAG.split(line) if part.strip()]


def read_label(line: str) -> Label | None:
    """The label that a line (stripped `plain_text`) begins with, or None.

    Raises UserError for a line that looks like a label but is not one, and for a second label within the line.
    """
    prefix = PREFIX.match(line)
    body = line[prefix.end() :]
    tag, head = TAG.fullmatch(body), HEAD.fullmatch(body)
    found = _tagged(tag) if tag else None
    if found is None and head:
        found = _labelled(head[1], head[2])
    if found is None:
        wide = unicodedata.normalize("NFKC", body)  # full-width letters as plain ones
        if any(map(UNREADABLE.match, (body, line, wide))) or _is_name_alone(body):
            fault = "is no label that is known" if head else "has no colon"
            raise UserError(f"{line[:40]!r} {fault}; write 'Speaker 1: words'")
        _refuse_inner_label(line)
        return None
    _refuse_inner_label(found.words)
    time = (prefix["time"].strip(),) if prefix["time"] else ()
    return Label(found.speaker, found.words, (*time, *found.left_out))


def bare_label(line: str, capitals: bool) -> str | None:
    """The name in a line such as "Anna: Hi.", a label without the word Speaker; None for other lines.

    capitals: accept only names whose words all begin with a capital, or with a letter of a script without case.
    """
    found = HEAD.fullmatch(line[PREFIX.match(line).end() :])
    if not found or len(found[1]) > 40 or found[2].startswith("//"):
        return None
    head = BRACKETS.sub(" ", MARKS.sub("", found[1])) if found[1].strip()[0] not in "[(" else found[1].strip("[]()")
    words = head.split()
    if not 1 <= len(words) <= 3 or not all(map(_is_word, words)) or not words[0][0].isalnum():
        return None
    if words[-1][-1].isdigit() and found[2][:1].isdigit():  # a time, a verse
        return None
    return " ".join(words) if not capitals or all(map(_is_capital, words)) else None


def _tagged(tag: re.Match) -> Label | None:
    """The label of `[Speaker 1] words`. Without a colon a name needs capitals: "[Speaker coughs]" is no label."""
    inside, colon, words = tag.groups()
    found = KEYWORD.fullmatch(inside.strip())
    if not found or not (colon or found["number"] or found["tag"] or all(map(_is_capital, inside.split()))):
        return None
    name = _name(found)
    return None if name is None else Label(name, words)


def _labelled(head: str, words: str) -> Label | None:
    """The label of a line, split at its colon."""
    left_out = tuple(BRACKETS.findall(head))
    head = straight_quotes(BRACKETS.sub(" ", head)).strip()
    marks = MARKS.match(head)
    if marks:
        head, words = _without_marks(head, words, marks[0])
    found = KEYWORD.fullmatch(" ".join(head.split()))
    name = _name(found) if found else None
    return None if name is None else Label(name, words, left_out)


def _without_marks(head: str, words: str, opening: str) -> tuple[str, str]:
    """Label and words without the marks `opening` and the closing ones: behind the label, its colon, or the words."""
    closing = opening[::-1]
    head = head[len(opening) :].strip()
    if closing in head:
        return head.replace(closing, "", 1).strip(), words
    straight = straight_quotes(words)
    if straight.startswith(closing):
        return head, words[len(closing) :].strip()
    return head, words[: len(words) - len(closing)].strip() if straight.endswith(closing) else words


def _name(found: re.Match) -> str | None:
    """The name in a match of KEYWORD; None where a sentence begins with Speaker. UserError where it may be either."""
    number, name = found["number"] or found["tag"], found["name"]
    if number:
        return speaker_name(number)
    if not name:
        raise UserError(f"{found[0]!r} names no speaker; write 'Speaker 1: words'")
    name = name.strip()
    if _unquoted(straight_quotes(name)) != straight_quotes(name):
        return speaker_name(name)
    words = name.translate(JOINERS).split()
    first, *inner = words[:-1] or words
    if words[0].isdecimal() and len(words) > 1:
        raise UserError(f"'Speaker {name}' is more than a number; write 'Speaker {words[0]}: words'")
    if all(map(_is_word, words)) and len(words) <= MAX_NAME_WORDS:
        particles = all(_is_capital(word) or len(word) <= MAX_PARTICLE for word in inner)
        if len(words) == 1 or (_is_capital(first) and _is_capital(words[-1]) and particles):
            return speaker_name(name)
    if not _is_capital(first) and len(words) > 2:
        return None
    raise UserError(
        f'is {name[:40]!r} a speaker? write a name with capitals or in quotation marks, as in \'Speaker "{name[:40]}": '
        "words', and put a sentence behind 'Speaker 1:'"
    )


def _is_name_alone(line: str) -> bool:
    """Whether the line is a label without colon and words, such as "Speaker Anna"."""
    words = line.split()
    return (
        2 <= len(words) <= 4
        and words[0].lower() == "speaker"
        and all(_is_word(word) and _is_capital(word) and word[-1] != "." for word in words[1:])
    )


def _refuse_inner_label(words: str) -> None:
    found = INNER_LABEL.search(words)
    if found:
        raise UserError(f"{found[0]!r} stands within a line; each speaker begins a line of its own")


def _unquoted(text: str) -> str:
    return text[1:-1].strip() if len(text) > 2 and text[0] == text[-1] and text[0] in "\"'" else text


def _is_word(word: str) -> bool:
    """Whether a word may stand in a name: letters with marks, digits, and signs as in O'Neil, Dr., Jean-Luc, host_1."""
    kinds = [unicodedata.category(c)[0] for c in word]
    return kinds[0] in "LN" and all(kind in "LMN" or c in ".'’-&_" for kind, c in zip(kinds, word, strict=True))


def _is_capital(word: str) -> bool:
    """Whether a word begins with no lower-case letter; letters of scripts without case count as capitals."""
    return not word[0].islower()
