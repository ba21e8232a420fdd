"""A folder of pictures as a source, on disk and behind fsspec URLs."""

from __future__ import annotations

import fsspec
import pytest
from sets import flac, picture_folder, pixels, png, shown, word

from latentlm.config import SourceConfig
from latentlm.data import sources
from latentlm.data.readers import open_path, signature
from latentlm.data.readers.files import Location, Strings


def config(path, **fields) -> SourceConfig:
    return SourceConfig(path=str(path), **({"task": "text_to_image"} | fields))


def test_a_folder_names_the_class_of_its_pictures(tmp_path):
    picture_folder(tmp_path / "photos", 7)
    (tmp_path / "photos" / "cat" / "notes.txt").write_text("passed over")
    (tmp_path / "photos" / ".hidden").mkdir()
    (tmp_path / "photos" / ".hidden" / "9.png").write_bytes(png(9))
    found = sources.documents(config(tmp_path / "photos"))
    assert [document.segments[0].text for document in found] == ["cat"] * 3 + ["fish"] * 2 + ["red dog"] * 2
    assert [pixels(document) for document in found] == [shown(i) for i in (0, 3, 6, 2, 5, 1, 4)]
    assert found.place(3) == f"{tmp_path}/photos/fish/2.png"


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_the_same_through_a_url(tmp_path, scheme):
    root = f"memory://{tmp_path.name}/photos" if scheme == "memory" else f"file://{tmp_path}/photos"
    for number in range(3):
        with fsspec.open(f"{root}/{word(number)}/{number}.png", "wb", auto_mkdir=True) as file:
            file.write(png(number))
    found = sources.documents(config(root))
    assert sorted(pixels(document) for document in found) == sorted(shown(i) for i in range(3))
    before = signature(root)
    with fsspec.open(f"{root}/cat/more.png", "wb") as file:
        file.write(png(5))
    assert signature(root) != before


def test_what_is_wrong_is_named(tmp_path):
    picture_folder(tmp_path / "photos", 3)
    (tmp_path / "photos" / "cat" / "0.png").write_bytes(b"nothing")
    (tmp_path / "photos" / "red_dog" / "sound.flac").write_bytes(flac(0))
    found = sources.documents(config(tmp_path / "photos"))
    with pytest.raises(ValueError, match=r"photos/cat/0\.png: image: .*not a readable image"):
        found[0]
    with pytest.raises(ValueError, match=r"red_dog/sound\.flac: image: is speech, the task needs image"):
        found[3]
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "0.png").write_bytes(png(0))
    with pytest.raises(ValueError, match=r"flat/0\.png: has no text: the folder of a file names its class"):
        sources.documents(config(tmp_path / "flat"))
    assert len(sources.media(config(tmp_path / "flat", task="all"), "image")) == 1
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none: the folder is empty"):
        open_path(str(tmp_path / "none"), {})
    with pytest.raises(ValueError, match="nowhere: no such file"):
        open_path(str(tmp_path / "nowhere"), {})
    with pytest.raises(ValueError, match=r"nosuch://x: .*nosuch"):
        open_path("nosuch://x", {})
    (tmp_path / "flat" / "a.tar").touch()
    (tmp_path / "flat" / "b.parquet").touch()
    with pytest.raises(ValueError, match=r"holds \.parquet and \.tar files; give each kind"):
        open_path(str(tmp_path / "flat"), {})


def test_files_of_this_machine_are_listed_as_fsspec_lists_them(tmp_path, monkeypatch):
    names = (
        "a/x.png",
        "a-b/x.png",
        "a.png",
        "ab/c/d.png",
        "ab/c.png",
        ".h/x.png",
        "a/.h.png",
        "größer/ß.png",
        "b/e f.png",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "none").symlink_to(tmp_path / "nowhere")
    folder = Location.of(f"{tmp_path}/")
    hidden = (".h/", "/.h")
    listed = sorted(path for path in folder.system.find(folder.path) if not any(part in path for part in hidden))
    assert [file.path for file in folder.files()] == listed
    assert len(listed) == 9
    monkeypatch.setattr(type(folder.system), "find", None)  # which holds a record of every file in memory
    assert len(folder.files()) == 9


def test_packed_strings_are_the_strings():
    words = ["", "a", "größer", "\udcff.png", "x" * 300]
    packed = Strings(words)
    assert list(packed) == words
    with pytest.raises(IndexError):
        packed[5]
