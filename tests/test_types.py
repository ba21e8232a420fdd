"""The records take what users naturally give them, and say in one line what they do not take."""

import numpy as np
import pytest
import torch

from latentlm.media.sound import Audio
from latentlm.types import Document, Text


def test_a_document_is_a_list_of_segments():
    parts = [Text("a"), Text("b")]
    assert Document(parts) == Document(tuple(parts))


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ("abc", r"a Document takes a list of segments \(latentlm.Text, Image, Speech, …\), not str"),
        (Text("a"), "a Document takes a list of segments .*, not Text"),
        ((), "a Document needs at least one segment"),
        (["abc"], "segment 0 of a Document is latentlm.Text, Image, Speech, …, not str"),
        ((Text("a"), None), "segment 1 of a Document is latentlm.Text, Image, Speech, …, not NoneType"),
    ],
)
def test_what_is_no_document_is_named(segments, message):
    with pytest.raises(ValueError, match=message):
        Document(segments)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "int16", "int32", "uint8", "uint16", ">f4"])
def test_samples_of_any_number_type_are_float32(dtype):
    values = np.array([-0.5, 0.0, 0.25])
    kind = np.dtype(dtype).kind
    if kind != "f":
        half = 2.0 ** (8 * np.dtype(dtype).itemsize - 1)
        values = values * half + half * (kind == "u")
    samples = Audio(values.astype(dtype), 8000).samples
    assert samples.dtype == torch.float32
    assert samples.tolist() == [-0.5, 0.0, 0.25]


def test_a_tensor_of_float32_is_taken_as_it_is():
    samples = torch.zeros(4)
    assert Audio(samples, 8000).samples is samples
    assert Audio(samples.bfloat16(), 8000).samples.dtype == torch.float32
    assert Audio(torch.tensor([-(2**15)], dtype=torch.int16), 8000).samples.tolist() == [-1.0]
    assert Audio(np.arange(3.0)[::-1], 8000).samples.tolist() == [2.0, 1.0, 0.0]


def test_sound_is_brought_to_the_cpu():
    with pytest.raises(NotImplementedError, match="meta"):  # from this device nothing can be copied
        Audio(torch.zeros(4, device="meta"), 8000)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_sound_goes_to_a_file_and_comes_back(tmp_path, name, notices):
    Audio(np.sin(np.arange(800.0)) * 0.5, 8000).save(tmp_path / name)
    audio = Audio.load(tmp_path / name)
    assert (audio.sample_rate, audio.name, audio.seconds) == (8000, str(tmp_path / name), 0.1)
    torch.testing.assert_close(audio.samples, torch.arange(800.0).sin() * 0.5, atol=1e-4, rtol=0)
    assert Audio.load(tmp_path / name, 4000).sample_rate == 4000
    with pytest.raises(ValueError, match=r"a\.txt: cannot write the sound"):
        audio.save(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"b\.wav: no such file"):
        Audio.load(tmp_path / "b.wav")


def test_the_rate_is_a_whole_number():
    for rate in (8000, 8000.0, np.int64(8000)):
        audio = Audio(torch.zeros(8000), rate)
        assert (type(audio.sample_rate), audio.seconds) == (int, 1.0)


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros((2, 5)), 8000, r"samples have shape \(2, 5\); expected mono, shape \(N,\)"),
        (torch.tensor(0.0), 8000, r"samples have shape \(\); expected mono"),
        (np.zeros(5, complex), 8000, "samples are of type complex128; expected floats in"),
        (torch.zeros(5, dtype=torch.bool), 8000, "samples are of type bool; expected floats in"),
        ([0.0], 8000, r"Audio takes a numpy array or a tensor of samples, shape \(N,\), not list"),
        ("a.wav", 8000, "of samples, .* not str"),
        (np.zeros(5), 0, "sample_rate must be a whole number of Hz from 1 on, got 0"),
        (np.zeros(5), 0.5, "sample_rate must be a whole number of Hz from 1 on, got 0.5"),
        (np.zeros(5), float("inf"), "sample_rate must be a whole number of Hz from 1 on, got inf"),
        (np.zeros(5), "8000", "sample_rate must be a whole number of Hz from 1 on, got '8000'"),
    ],
)
def test_what_is_no_sound_is_named(samples, rate, message):
    with pytest.raises(ValueError, match=message):
        Audio(samples, rate)
