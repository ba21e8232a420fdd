"""Segments as users make them: from media, paths or latents; what else is refused; when they are targets."""

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image as Pillow

import latentlm
from latentlm.config.modalities import modality
from latentlm.errors import UserError
from latentlm.media.sound import Audio, load_audio
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.modalities.vectors import Vectors
from latentlm.types import Latents, Text

PICTURE = Pillow.new("RGB", (4, 4), "red")
SOUND = Audio(torch.linspace(-0.5, 0.5, 800), 8000)
ARRAY = np.ones((3, 2), np.float32)
MEDIA = [(Image, PICTURE), (Speech, SOUND), (Vectors, ARRAY)]


@pytest.mark.parametrize(("kind", "medium"), MEDIA)
def test_a_condition_is_no_target_unless_told_so(kind, medium):
    """As in a manifest (docs/data_format.md)."""
    flags = [(True, None), (False, None), (True, True), (False, False)]
    made = [kind(medium, condition=condition, loss=loss) for condition, loss in flags]
    assert [segment.loss for segment in made] == [False, True, True, False]
    assert kind(medium).loss
    assert not kind(medium, condition=True).loss
    assert not Text("a", condition=True).loss
    assert not latentlm.Text("a", condition=True).loss


@pytest.mark.parametrize(("kind", "medium"), MEDIA)
@pytest.mark.parametrize("as_path", [str, lambda path: path])
def test_a_path_is_read(tmp_path, kind, medium, as_path):
    record = modality(kind.modality)
    path = tmp_path / f"a{record.written[0]}"
    record.save(medium, path)
    segment = kind(as_path(path))
    assert record.is_medium(segment.content)
    assert record.describe(segment.content) == record.describe(medium)
    with pytest.raises(UserError, match="none: no such file"):
        kind(as_path(tmp_path / "none"))


@pytest.mark.parametrize("kind", [Image, Speech, Vectors])
@pytest.mark.parametrize("content", [3, None, object(), ["a.png"]])
def test_content_of_another_type_is_refused_where_the_segment_is_made(kind, content):
    with pytest.raises(UserError, match=f"not {type(content).__name__}$"):
        kind(content)


def test_a_picture_is_no_sound_and_words_are_no_number():
    with pytest.raises(UserError, match=r"^Speech takes an Audio, the path of a file or Latents, not Image$"):
        Speech(PICTURE)
    with pytest.raises(UserError, match=r"^Image takes a PIL image, the path of a file or Latents, not Audio$"):
        Image(SOUND)
    with pytest.raises(UserError, match=r"^Text takes a string, not int$"):
        Text(3)


@pytest.mark.parametrize("kind", [Image, Speech, Vectors])
def test_latents_are_taken_as_they_are(kind):
    latents = Latents(torch.zeros(1, 2), torch.tensor(0.0), "none")
    assert kind(latents).content is latents


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64", ".voc"])
def test_what_libsndfile_reads_is_a_prompt_and_a_voice(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    kind = {".aif": "AIFF"}.get(suffix, suffix[1:].upper())
    soundfile.write(path, SOUND.samples.numpy(), 8000, format=kind)
    assert modality("speech").load(path).seconds > 0
    assert load_audio(path).seconds > 0
    assert suffix in modality("speech").suffixes


def test_opus_is_a_prompt_and_a_voice(tmp_path):
    path = tmp_path / "a.opus"
    soundfile.write(path, SOUND.samples.numpy(), 8000, format="OGG", subtype="OPUS")
    assert modality("speech").load(path).seconds == pytest.approx(SOUND.seconds, abs=0.02)
    assert ".opus" in modality("speech").suffixes
