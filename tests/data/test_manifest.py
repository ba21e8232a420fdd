"""Manifests: what the documentation shows is read, what is wrong is named by file, line and key."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image as PILImages

from latentlm.data.manifest import Manifest, preview, read, validate
from latentlm.data.placed import texts_of
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.types import Text

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "data_format.md"


@pytest.fixture
def folder(tmp_path, notices):  # its sound is stereo
    """A folder with apple.png (6×4, transparent), hello.wav (0.5 s, stereo, 8 kHz) and circle.npy (5×2)."""
    PILImages.new("RGBA", (6, 4), (255, 0, 0, 0)).save(tmp_path / "apple.png")
    tone = np.sin(np.arange(4000) * 0.3) * 0.5
    soundfile.write(tmp_path / "hello.wav", np.stack([tone, 0 * tone], axis=1), 8000)
    np.save(tmp_path / "circle.npy", np.ones((5, 2)))
    return tmp_path


def write(folder: Path, *lines: str) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def segments(*items: dict) -> str:
    return json.dumps({"segments": items})


def test_the_example_of_the_documentation_is_a_manifest(folder):
    example = re.search(r"```jsonl\n(.*?)```", DOCUMENTATION.read_text(encoding="utf-8"), re.DOTALL).group(1)
    path = write(folder, *example.splitlines())
    report = validate(path)
    assert report.num_documents == 9
    assert report.num_segments == {"text": 11, "image": 4, "speech": 4, "vectors": 1}
    assert report.num_files == {"image": 1, "speech": 1, "vectors": 1}
    assert report.seconds == pytest.approx(0.5)
    documents = list(Manifest(path))
    prompt, picture = documents[0].segments
    assert prompt == Text("a red apple", condition=True, loss=False)
    assert isinstance(picture, Image)
    assert (picture.condition, picture.loss) == (False, True)
    assert picture.content.mode == "RGB"
    assert picture.content.getpixel((0, 0)) == (255, 255, 255)  # transparency over white
    voice, words, spoken = documents[4].segments
    assert isinstance(voice, Speech)
    assert (voice.loss, words.loss, spoken.loss) == (False, False, True)
    assert spoken.content.sample_rate == 8000
    assert spoken.content.samples.shape == (4000,)


def test_documents_that_name_one_file_share_its_object(folder):
    path = write(folder, segments({"image": "apple.png"}), segments({"image": "apple.png"}, {"speech": "hello.wav"}))
    manifest = Manifest(path)
    assert manifest[0].segments[0].content is manifest[1].segments[0].content
    assert list(manifest.media("image")) == [manifest[0].segments[0].content]
    assert manifest.media("speech")[0] is manifest[1].segments[1].content


def test_a_manifest_of_stereo_files_names_the_first_three(folder, notices):
    for number in range(6):
        (folder / f"{number}.wav").write_bytes((folder / "hello.wav").read_bytes())
    validate(write(folder, *(segments({"speech": f"{number}.wav"}) for number in range(6))))
    said = [f"{folder / f'{number}.wav'}: 2 channels mixed down to one" for number in range(3)]
    assert notices() == [*said[:2], f"{said[2]}; further files are not named"]


def test_media_are_read_only_when_asked_for(folder):
    path = write(folder, segments({"image": "apple.png"}), segments({"image": "absent.png"}))
    manifest = Manifest(path)
    assert len(manifest) == 2
    assert isinstance(manifest[0].segments[0], Image)
    with pytest.raises(ValueError, match=r"absent\.png"):
        manifest[1]


def test_texts_are_read_without_media(folder):
    path = write(folder, segments({"text": "one"}, {"image": "absent.png"}, {"text": "two"}), segments({"text": "3"}))
    assert list(texts_of(Manifest(path))) == ["one", "two", "3"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "not JSON: Expecting property name"),
        ("[1]", "a line is a JSON object with the key 'segments'"),
        ('{"segment": []}', "unknown key 'segment', did you mean 'segments'"),
        ('{"segments": []}', "segments: List should have at least 1 item"),
        ('{"segments": "x"}', "segments: Input should be a valid list"),
        (segments({"txt": "x"}), "unknown key 'segments.0.txt', did you mean 'text'"),
        (segments({"text": "x", "image": "y"}), "segments.0: a segment has exactly one .* not text and image"),
        (segments({"loss": True}), "segments.0: a segment has exactly one .* not none"),
        (segments({"text": ""}), "segments.0.text: String should have at least 1 character"),
        ('{"segments": [{"text": "half \\ud800"}]}', "segments.0.text: .*unable to parse raw data as a unicode string"),
        (segments({"text": 3}), "segments.0.text: Input should be a valid string"),
        (segments({"text": "x", "condition": "yes"}), "segments.0.condition: Input should be a valid boolean"),
        (segments({"text": "x", "condition": True}), "segments: no segment is a target"),
        (segments({"text": "x", "loss": False}), "segments: no segment is a target"),
        (segments({"text": "x"}, {"image": "absent.png"}), "segments.1.image: .*absent.png: no such file"),
        (segments({"text": "x"}, {"image": "hello.wav"}), "segments.1.image: .*hello.wav: not a readable image"),
        (segments({"image": "cut.png"}), "segments.0.image: .*cut.png: not a readable image"),
        (segments({"speech": "apple.png"}), "segments.0.speech: .*apple.png: not a readable sound file"),
        (segments({"speech": "empty.wav"}), "segments.0.speech: .*empty.wav: holds no sound"),
    ],
)
def test_what_is_wrong_is_named_by_file_line_and_key(folder, line, message):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    PILImages.fromarray(noise).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:1500])
    soundfile.write(folder / "empty.wav", np.zeros(0), 8000)
    path = write(folder, segments({"text": "fine"}), "", line)
    with pytest.raises(ValueError, match=rf"data\.jsonl:3: {message}") as caught:
        validate(path)
    assert "\n" not in str(caught.value)


def test_missing_and_empty_manifests(folder):
    with pytest.raises(ValueError, match=r"absent\.jsonl: no such manifest"):
        read(folder / "absent.jsonl")
    with pytest.raises(ValueError, match="is a folder, and a manifest is a JSONL file"):
        read(folder)
    with pytest.raises(ValueError, match="the manifest is empty"):
        read(write(folder, "", "  "))
    (folder / "latin.jsonl").write_bytes(b'{"segments": [{"text": "caf\xe9"}]}')
    with pytest.raises(ValueError, match=r"latin\.jsonl: not UTF-8 text at byte 27"):
        read(folder / "latin.jsonl")


def test_a_line_separator_inside_text_does_not_break_the_line(folder):
    path = write(folder, '{"segments": [{"text": "one\u2028two"}]}')
    assert Manifest(path)[0].segments[0].text == "one\u2028two"


def test_loss_may_differ_from_the_default(folder):
    path = write(folder, segments({"text": "x", "condition": True, "loss": True}, {"text": "y", "loss": False}))
    first, second = Manifest(path)[0].segments
    assert (first.condition, first.loss, second.condition, second.loss) == (True, True, False, False)


def test_preview_shows_documents_in_a_line_each(folder):
    path = write(
        folder,
        segments({"text": "a red apple", "condition": True}, {"image": "apple.png"}),
        "",
        segments({"speech": "hello.wav", "condition": True}, {"text": "w" * 100}),
        segments({"text": "third"}),
    )
    assert preview(path, 2) == [
        "1: [text 'a red apple'] image apple.png 6×4",
        f"3: [speech hello.wav 0.50 s] text '{'w' * 57}...'",
    ]


def test_limit_keeps_the_first_lines(folder):
    path = write(folder, *(segments({"text": str(number)}) for number in range(5)))
    assert [document.segments[0].text for document in Manifest(path, limit=2)] == ["0", "1"]


def test_sound_is_mixed_to_mono(folder):
    path = write(folder, segments({"speech": "hello.wav"}))
    samples = Manifest(path)[0].segments[0].content.samples
    expected = torch.from_numpy(np.sin(np.arange(4000) * 0.3) * 0.25).float()
    torch.testing.assert_close(samples, expected, atol=1e-4, rtol=0)


def test_a_key_that_stands_twice_is_refused(folder):
    path = write(folder, '{"segments": [{"text": "a", "text": "b"}]}')
    with pytest.raises(ValueError, match=r"data.jsonl:1: key 'text' appears twice"):
        read(path)


def test_json_that_is_too_deep_is_one_line(folder):
    with pytest.raises(ValueError, match=r"data.jsonl:1: maximum recursion depth"):
        read(write(folder, "[" * 100_000))


def test_a_name_that_no_file_can_have_is_one_line(folder):
    path = write(folder, segments({"image": "a" * 5000}))
    with pytest.raises(ValueError, match=r"data.jsonl:1: segments.0.image: File name too long"):
        validate(path)
