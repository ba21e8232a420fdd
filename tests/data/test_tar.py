"""WebDataset tars as a source: members by key and suffix, read one by one."""

from __future__ import annotations

import json
import pickle

import pytest
from sets import flac, pixels, png, shown, word, write_tar

from latentlm.config import SourceConfig
from latentlm.data import sources
from latentlm.data.encoding.plan import Job
from latentlm.data.encoding.workers import encode


def config(path, **fields) -> SourceConfig:
    return SourceConfig(path=str(path), **({"task": "text_to_image"} | fields))


def members(first: int, num: int, text: str = "txt") -> dict[str, bytes]:
    found = {}
    for number in range(first, first + num):
        found[f"set/{number:04d}.png"] = png(number)
        found[f"set/{number:04d}.{text}"] = word(number).encode() + b"\n"
    return found


def test_members_of_one_key_make_a_document(tmp_path):
    write_tar(tmp_path / "a-0.tar", members(0, 5))
    write_tar(tmp_path / "a-1.tar", members(5, 4, text="cls"))
    found = pickle.loads(pickle.dumps(sources.documents(config(tmp_path / "a-*.tar"))))
    assert len(found) == 9
    for number in (8, 0, 5, 4):
        assert pixels(found[number]) == shown(number)
        assert found[number].segments[0].text == word(number)
    assert found.place(6) == f"{tmp_path}/a-1.tar: set/0006"


@pytest.mark.parametrize(
    ("value", "columns"),
    [
        ("a cat", {}),
        ({"caption": "a cat"}, {}),
        ({"caption": "a cat"}, {"text": "json"}),
        ({"alt": "a cat", "text": "no"}, {"text": "json.alt"}),
    ],
)
def test_text_may_stand_in_json(tmp_path, value, columns):
    write_tar(tmp_path / "a.tar", {f"{i}.json": json.dumps(value).encode() for i in range(2)})
    found = sources.documents(config(tmp_path / "a.tar", columns=columns, task="text"))
    assert found[1].segments[0].text == "a cat"


def test_sound_and_a_named_suffix(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.voice.flac": flac(0), "0.flac": flac(1, 200), "0.txt": b"hello"})
    fields = {"task": "speech_to_text", "columns": {"speech": "voice.flac"}}
    speech, text = sources.documents(config(tmp_path / "a.tar", **fields))[0].segments
    assert len(speech.content.samples) == 300
    assert text.text == "hello"


def test_what_is_wrong_is_named_with_file_and_member(tmp_path):
    write_tar(tmp_path / "a.tar", members(0, 2) | {"set/0002.png": b"nothing", "set/0002.txt": b"x", "3.png": png(3)})
    found = sources.documents(config(tmp_path / "a.tar"))
    with pytest.raises(ValueError, match=r"a\.tar: set/0002: image: not a readable image"):
        found[2]
    with pytest.raises(ValueError, match=r"a\.tar: 3: text: no such member \(the row has \.png\)"):
        found[3]
    with pytest.raises(ValueError, match=r"a\.tar: no \.wav or .* for speech \(its first row has png, txt\)"):
        sources.documents(config(tmp_path / "a.tar", task="text_to_speech"))
    write_tar(tmp_path / "apart.tar", {"0.png": png(0), "1.png": png(1), "0.txt": b"late"})
    with pytest.raises(ValueError, match=r"apart\.tar: 0: its members are not consecutive"):
        sources.documents(config(tmp_path / "apart.tar"))
    (tmp_path / "bad.tar").write_bytes(b"not a tar" * 200)
    with pytest.raises(ValueError, match=r"bad\.tar: not a readable tar"):
        sources.documents(config(tmp_path / "bad.tar"))
    whole = write_tar(tmp_path / "cut.tar", members(0, 3)).read_bytes()
    place = whole.rindex(png(2))
    (tmp_path / "cut.tar").write_bytes(whole[: place + 20])
    with pytest.raises(ValueError, match=r"cut\.tar: not a readable tar.*unexpected end"):
        sources.documents(config(tmp_path / "cut.tar", task="text"))


def test_text_that_is_not_unicode_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0.json": b'{"text": "half \\ud800"}'})
    with pytest.raises(ValueError, match=r"a\.tar: 0: the text is not Unicode: .*ud800"):
        encode(Job((SourceConfig(path=str(path), task="text"),), {}, str(tmp_path / "out")))
