"""Sources: every task of every set yields the right documents, lazily, about shared media objects."""

from __future__ import annotations

import json

import pytest

from latentlm.config import SourceConfig
from latentlm.data import sources
from latentlm.data.embedded import emoji, shapes, speech
from latentlm.media.sound import Audio
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.types import Document, Text

SILENT = ("digits", "emoji", "shapes", "prose")
SPOKEN = ("speech", "spoken_digits", "spoken_phrases")
WANTED = {
    "text_to_image": (Text, Image),
    "image_to_text": (Image, Text),
    "text_to_speech": (Text, Speech),
    "speech_to_text": (Speech, Text),
    "text_to_speech_in_voice": (Speech, Text, Speech),
    "question": (Image, Text, Text),
    "text": (Text,),
}


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def check(document: Document, task: str) -> None:
    assert tuple(type(segment) for segment in document.segments) == WANTED[task]
    *given, wanted = document.segments
    assert all(segment.condition and not segment.loss for segment in given)
    assert wanted.loss
    assert not wanted.condition


def cases(names):
    return [(info.name, task) for info in sources.list_sources() if info.name in names for task in info.tasks]


@pytest.mark.parametrize(("name", "task"), cases(SILENT))
def test_tasks_give_their_documents_about_shared_media(name, task):
    for split in sources.SPLITS:
        found = sources.documents(SourceConfig(name=name, task=task, limit=40), split)
        again = sources.documents(SourceConfig(name=name, task=task, limit=40), split)
        pool = {id(item) for item in sources.get_source(name).media("image", split, limit=40)}
        for first, second in zip(found, again, strict=True):
            check(first, task)
            for one, other in zip(first.segments, second.segments, strict=True):
                if isinstance(one, Text):
                    assert one == other
                    assert one.text
                else:
                    assert one.content is other.content
                    assert id(one.content) in pool


@pytest.mark.parametrize(("name", "task"), cases(SPOKEN))
def test_spoken_tasks_give_their_documents(name, task):
    pytest.importorskip("espeakng_loader")
    found = sources.get_source(name).document_source(task, "held_out")
    utterances = {id(u.audio): u for u in speech.load("held_out")}
    assert len(found) == sources.get_source(name).info().sizes["held_out"]
    kinds = set()
    for document in found:
        check(document, task)
        words = next(segment.text for segment in document.segments if isinstance(segment, Text))
        clips = [utterances[id(segment.content)] for segment in document.segments if isinstance(segment, Speech)]
        assert clips[-1].text == words
        kinds.add(clips[-1].kind)
        if task == "text_to_speech_in_voice":
            assert clips[0].voice == clips[1].voice
            assert clips[0].text != clips[1].text
    assert kinds == {"spoken_digits": {"digit"}, "spoken_phrases": {"phrase"}}.get(name, {"digit", "phrase"})


def test_listing_is_exact_and_loads_no_speech(monkeypatch):
    monkeypatch.setattr(speech, "speak", lambda requests: pytest.fail("listing must not speak"))
    infos = {info.name: info for info in sources.list_sources()}
    assert tuple(infos) == ("digits", "emoji", "shapes", "speech", "spoken_digits", "spoken_phrases", "prose")
    assert infos["digits"].sizes == {"train": 1500, "held_out": 297}
    assert infos["speech"].sizes == {"train": 1440, "held_out": 180}
    for name in SILENT:
        for split in sources.SPLITS:
            found = sources.get_source(name).document_source(infos[name].tasks[0], split)
            assert len(found) == infos[name].sizes[split]
    assert all(info.licence and info.description for info in infos.values())


def test_all_tasks_follow_one_another():
    found = sources.documents(SourceConfig(name="digits", limit=3))
    assert [type(document.segments[0]) for document in found] == [Text] * 3 + [Image] * 3
    assert found[0].segments[1].content is found[3].segments[0].content
    assert found[-1] == found[5]
    with pytest.raises(IndexError):
        found[6]


def test_a_limit_of_emoji_is_the_fixed_subset():
    found = sources.documents(SourceConfig(name="emoji", task="text_to_image", limit=20))
    assert [document.segments[0].text for document in found] == [item.name for item in emoji.subset(20)]
    assert len(sources.documents(SourceConfig(name="emoji", task="text_to_image", limit=9999))) == 1362


def test_questions_of_the_shapes_world_have_the_right_answers():
    counts = set()
    for index, document in enumerate(sources.get_source("shapes").document_source("question", "train", 60)):
        _, asked, answer = document.segments
        scene = shapes.scene("train", index, 1 + index % 2)
        assert asked.text.endswith("? ")
        assert shapes.answer(scene.things, asked.text.strip()) == answer.text
        counts.add(len(scene.things))
    assert counts == {1, 2}


def test_media_by_modality():
    images = sources.media(SourceConfig(name="digits", limit=5), "image")
    assert [image.size for image in images] == [(8, 8)] * 5
    assert len(sources.media(SourceConfig(name="emoji"), "image", "held_out")) == 0
    with pytest.raises(ValueError, match="data source 'digits' holds no speech"):
        sources.media(SourceConfig(name="digits"), "speech")


def test_spoken_media_are_audio():
    pytest.importorskip("espeakng_loader")
    clips = sources.get_source("speech").media("speech", "held_out", 7)
    assert len(clips) == 7
    assert all(isinstance(clip, Audio) for clip in clips)


def test_wrong_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="no data source 'digit', did you mean 'digits'"):
        sources.documents(SourceConfig(name="digit"))
    with pytest.raises(ValueError, match="'digits' has no task 'text_to_imag', did you mean 'text_to_image'"):
        sources.documents(SourceConfig(name="digits", task="text_to_imag"))
    with pytest.raises(ValueError, match="no split 'test'"):
        sources.documents(SourceConfig(name="digits"), "test")


def test_a_manifest_is_a_source(tmp_path):
    from PIL import Image as PILImages

    PILImages.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    line = {"segments": [{"text": "red", "condition": True}, {"image": "a.png"}]}
    path = tmp_path / "m.jsonl"
    path.write_text(f"{json.dumps(line)}\n" * 3)
    config = SourceConfig(manifest=str(path), limit=2)
    found = sources.documents(config)
    assert len(found) == 2
    check(found[0], "text_to_image")
    assert sources.media(config, "image")[0] is found[1].segments[1].content
    assert len(sources.documents(config, "held_out")) == 0
    with pytest.raises(ValueError, match="use task 'all' instead of 'text'"):
        sources.documents(SourceConfig(manifest=str(path), task="text"))


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_media_of_held_out_documents_are_not_among_those_to_learn_from(tmp_path, kind):
    from sets import picture_parquet, png, shown, write_lines

    if kind == "parquet":
        path = picture_parquet(tmp_path / "a.parquet", 6)
    else:
        for number in range(6):
            (tmp_path / f"{number}.png").write_bytes(png(number))
        path = write_lines(tmp_path / "a.jsonl", [{"segments": [{"image": f"{i}.png"}]} for i in range(6)])
    config = SourceConfig(path=str(path), task="text_to_image" if kind == "parquet" else "all", held_out=2)
    found = [picture.tobytes() for picture in sources.media(config, "image")]
    assert found == [shown(i) for i in (0, 2, 3, 5)]
    learnt = sources.documents(config)
    assert [d.segments[-1].content.tobytes() for d in (learnt[i] for i in range(4))] == found
    limited = config.model_copy(update={"limit": 2})
    assert [picture.tobytes() for picture in sources.media(limited, "image")] == found[:2]


def test_columns_are_those_of_any_modality():
    assert SourceConfig(path="a.parquet", columns={"vectors": "v"}).columns == {"vectors": "v"}


def test_a_manifest_is_read_again_when_its_file_is_another(tmp_path, monkeypatch):
    def written(folder, *lines):
        folder.mkdir(exist_ok=True)
        (folder / "mine.jsonl").write_text("".join(json.dumps({"segments": [{"text": line}]}) + "\n" for line in lines))
        monkeypatch.chdir(folder)
        return [document.segments[0].text for document in sources.documents(SourceConfig(manifest="mine.jsonl"))]

    assert written(tmp_path / "a", "one") == ["one"]
    assert written(tmp_path / "b", "two") == ["two"]
    assert written(tmp_path / "b", "two", "three") == ["two", "three"]
