"""A JSONL file read line by line: the documents of `Manifest`, without keeping any of them."""

from __future__ import annotations

import gc
import json
import pickle
import threading
import weakref
import zipfile

import fsspec
import pytest
from sets import flac, pixels, png, shown, write_lines

from latentlm.config import SourceConfig
from latentlm.data import sources
from latentlm.data.manifest import Manifest
from latentlm.data.readers.files import Location
from latentlm.types import Text

LINES = [
    {"segments": [{"text": "a cat", "condition": True}, {"image": "0.png"}]},
    {"segments": [{"speech": "a.flac", "condition": True}, {"text": "hello"}]},
    {"segments": [{"image": "0.png", "condition": True}, {"text": "a cat", "loss": True}]},
    {"segments": [{"text": "größer\u2028noch"}]},
    {"segments": [{"image": "1.png"}]},
]


@pytest.fixture
def manifest(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    (tmp_path / "a.flac").write_bytes(flac(0))
    path = write_lines(tmp_path / "set.jsonl", LINES)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\n  \n", 1))  # a BOM, empty lines
    return path


def contents(document):
    return [
        (
            s.text
            if isinstance(s, Text)
            else s.content.tobytes()
            if s.modality == "image"
            else s.content.samples.tolist()
        )
        for s in document.segments
    ], [(s.condition, s.loss) for s in document.segments]


def test_the_documents_are_those_of_a_manifest(manifest):
    found = pickle.loads(pickle.dumps(sources.documents(SourceConfig(path=str(manifest)))))
    assert [contents(d) for d in found] == [contents(d) for d in Manifest(manifest)]
    assert [found.place(i).rpartition(":")[2] for i in (0, 1, 4)] == ["1", "4", "7"]
    assert found.texts(2) == ["a cat"]


def test_media_come_once_each_and_are_not_kept(manifest):
    config = SourceConfig(path=str(manifest))
    pictures = sources.media(config, "image")
    assert [picture.tobytes() for picture in pictures] == [shown(0), shown(1)]
    assert len(sources.media(config, "speech")) == 1
    seen = weakref.ref(sources.documents(config)[0].segments[1].content)
    gc.collect()
    assert seen() is None


def test_media_behind_urls(tmp_path):
    with fsspec.open(f"memory://{tmp_path.name}/in/1.png", "wb") as file:
        file.write(png(1))
    (tmp_path / "here.png").write_bytes(png(2))
    lines = [{"image": "in/1.png"}, {"image": f"file://{tmp_path}/here.png"}]
    url = f"memory://{tmp_path.name}/set.jsonl"
    local = write_lines(tmp_path / "set.jsonl", [{"segments": [line]} for line in lines])
    with fsspec.open(url, "wb") as file:
        file.write(local.read_bytes())
    assert [pixels(d) for d in sources.documents(SourceConfig(path=url))] == [shown(1), shown(2)]


def test_a_url_keeps_what_it_says_of_its_file_system(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("set/0.png", png(0))
        archive.writestr("set/a.jsonl", json.dumps({"segments": [{"image": "0.png"}]}))
    found = sources.documents(SourceConfig(path=f"zip://set/a.jsonl::{tmp_path}/a.zip"))
    assert pixels(found[0]) == shown(0)


def test_the_file_systems_of_a_thread_go_with_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "abc")
    location = Location.of(f"zip://a.txt::{tmp_path}/a.zip")
    seen = []

    def look() -> None:
        seen.append(weakref.ref(location.system))
        assert location.system is seen[0]()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    gc.collect()
    assert seen[0]() is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"segments": [{"txt": "a"}]}', r"set\.jsonl:2: unknown key 'segments.0.txt', did you mean 'text'"),
        (b'{"segments": ', r"set\.jsonl:2: not JSON"),
        (b'{"segments": [{"text": "\xff"}]}', r"set\.jsonl:2: not UTF-8 text at byte 24"),
        (b'{"segments": [{"image": "no.png"}]}', r"set\.jsonl:2: segments\.0\.image: .*no\.png: no such file"),
    ],
)
def test_a_wrong_line_is_named_when_it_is_read(tmp_path, line, said):
    path = tmp_path / "set.jsonl"
    path.write_bytes(b'{"segments": [{"text": "fine"}]}\n' + line + b"\n")
    found = sources.documents(SourceConfig(path=str(path)))
    assert found[0].segments[0].text == "fine"
    with pytest.raises(ValueError, match=said):
        found[1]


def test_a_manifest_has_no_task_and_no_columns(manifest):
    with pytest.raises(ValueError, match="its lines say what each document is"):
        sources.documents(SourceConfig(path=str(manifest), task="text_to_image"))
    with pytest.raises(ValueError, match="a manifest has no columns"):
        sources.documents(SourceConfig(path=str(manifest), columns={"image": "png"}))
