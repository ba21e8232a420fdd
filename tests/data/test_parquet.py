"""Parquet as a source: bytes, structs and paths; row groups read by themselves, each thread for itself."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sets import flac, picture_parquet, pixels, png, shown, word, write_parquet

from latentlm.config import SourceConfig
from latentlm.data import sources
from latentlm.data.readers import open_path, parquet


def config(path, **fields) -> SourceConfig:
    return SourceConfig(path=str(path), **({"task": "text_to_image"} | fields))


def test_rows_become_documents_of_the_task(tmp_path):
    found = sources.documents(config(picture_parquet(tmp_path / "a.parquet", 10)))
    assert len(found) == 10
    for number in (7, 0, 9, 3):
        prompt, image = found[number].segments
        assert (prompt.text, prompt.condition, prompt.loss) == (word(number), True, False)
        assert pixels(found[number]) == shown(number)
        assert image.loss
    image, text = sources.documents(config(tmp_path / "a.parquet", task="image_to_text"))[4].segments
    assert image.condition
    assert text.text == word(4)


@pytest.mark.parametrize("kind", ["struct", "path"])
def test_media_may_be_structs_of_bytes_and_path_or_paths_beside_the_file(tmp_path, kind):
    (tmp_path / "1.png").write_bytes(png(1))
    values = {"struct": [{"bytes": png(0), "path": None}, {"bytes": None, "path": "1.png"}], "path": ["1.png", "1.png"]}
    path = write_parquet(tmp_path / "a.parquet", {"photo": values[kind], "caption": ["one", "two"]})
    found = sources.documents(config(path, columns={"image": "photo", "text": "caption"}))
    assert [pixels(document) for document in found] == [shown(0 if kind == "struct" else 1), shown(1)]
    assert [document.segments[0].text for document in found] == ["one", "two"]


def test_sound_as_bytes_and_numbers_as_text(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"audio": [flac(0), flac(1)], "label": [3, 4]})
    columns = {"speech": "audio", "text": "label"}
    speech, text = sources.documents(config(path, task="speech_to_text", columns=columns))[1].segments
    assert speech.content.sample_rate == 8000
    assert len(speech.content.samples) == 300
    assert text.text == "4"


def test_several_files_follow_each_other(tmp_path):
    for part in range(3):
        picture_parquet(tmp_path / f"part-{part}.parquet", 5, first=5 * part)
    for path in (tmp_path, tmp_path / "part-*.parquet"):
        assert [pixels(d) for d in sources.documents(config(path))] == [shown(i) for i in range(15)]


def test_a_source_survives_pickling_and_gives_each_thread_files_of_its_own(tmp_path, monkeypatch):
    found = pickle.loads(pickle.dumps(sources.documents(config(picture_parquet(tmp_path / "a.parquet", 40)))))
    opened = []
    whole = parquet._open
    monkeypatch.setattr(parquet, "_open", lambda *a: opened.append(threading.get_ident()) or whole(*a))
    barrier = threading.Barrier(4)

    def read(thread: int) -> list[bytes]:
        barrier.wait()
        return [pixels(found[(i * 7 + thread) % 40]) for i in range(40)]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(read, range(4)))
    assert results == [[shown((i * 7 + thread) % 40) for i in range(40)] for thread in range(4)]
    assert len(opened) == len(set(opened)) == 4


def test_a_thread_keeps_few_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "KEPT_BYTES", 1000)
    rows = open_path(str(picture_parquet(tmp_path / "a.parquet", 40)), {})
    for index in range(40):
        rows.value(index, "image")
        kept = rows._cache()._kept
        assert len(kept) == 1 or sum(array.nbytes for array in kept.values()) <= 1000


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": [png(0), b"nothing"], "text": ["a", "b"]}, "a.parquet: row 1: image: not a readable image"),
        ({"image": [png(0), None], "text": ["a", "b"]}, "a.parquet: row 1: image: missing (null)"),
        ({"image": [png(0), png(1)], "text": ["a", ""]}, "a.parquet: row 1: text: the text is empty"),
        ({"image": ["0.png", "1.png"], "text": ["a", "b"]}, "a.parquet: row 1: image: "),
    ],
)
def test_a_bad_value_is_named_with_file_row_and_column(tmp_path, columns, said):
    (tmp_path / "0.png").write_bytes(png(0))
    found = sources.documents(config(write_parquet(tmp_path / "a.parquet", columns)))
    assert pixels(found[0]) == shown(0)
    with pytest.raises(ValueError) as error:
        found[1]
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_wrong_with_a_source_is_said_when_it_is_opened(tmp_path):
    path = picture_parquet(tmp_path / "a.parquet", 3)
    cases = {
        "no column 'imag' for image, did you mean 'image'": {"columns": {"image": "imag"}},
        "give the task, one of: text_to_image, image_to_text, text": {"task": "all"},
        "no task 'text_to_imge', did you mean 'text_to_image'": {"task": "text_to_imge"},
    }
    for said, fields in cases.items():
        with pytest.raises(ValueError, match=said.replace("(", r"\(")):
            sources.documents(config(path, **fields))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"b\.parquet: not a readable Parquet file"):
        sources.documents(config(tmp_path / "b.parquet"))
    with pytest.raises(ValueError, match=r"c\.parquet: no such file"):
        sources.documents(config(tmp_path / "c.parquet"))


def test_texts_are_read_without_the_pictures(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"image": [b"nothing"] * 3, "text": ["a", "b", "c"]})
    found = sources.documents(config(path))
    assert [found.texts(i) for i in range(3)] == [["a"], ["b"], ["c"]]


def test_every_file_has_the_columns(tmp_path):
    picture_parquet(tmp_path / "part-0.parquet", 3)
    write_parquet(tmp_path / "part-1.parquet", {"picture": [png(3)], "text": ["a"]})
    with pytest.raises(ValueError, match=r"part-1\.parquet: no column 'image' for image"):
        sources.documents(config(tmp_path))
