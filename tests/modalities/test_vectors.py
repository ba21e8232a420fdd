"""`vectors`, the modality to copy: files, segment, identity tokenizer, plot."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import latentlm
from latentlm.config.modalities import modality
from latentlm.modalities.vectors import SIDE, Vectors, from_data, plot
from latentlm.tokenizers.load import load_tokenizer

VECTORS = modality("vectors")


def arrays(num: int = 6, width: int = 3) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    scale = 10.0 ** np.arange(width)
    return [(generator.standard_normal((5 + n, width)) * scale + 7).astype(np.float32) for n in range(num)]


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_files_round_trip(tmp_path, suffix):
    (array, *_) = arrays()
    path = tmp_path / f"a{suffix}"
    VECTORS.save(array, path)
    np.testing.assert_array_equal(VECTORS.load(path), array)


def test_of_several_tensors_the_one_called_vectors_is_read(tmp_path):
    save_file({"vectors": torch.ones(2, 3), "other": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert VECTORS.load(tmp_path / "a.safetensors").shape == (2, 3)


def test_integers_and_halves_become_float32(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6, dtype=np.int16).reshape(3, 2))
    assert VECTORS.load(tmp_path / "a.npy").dtype == np.float32
    assert Vectors(torch.ones(2, 2, dtype=torch.bfloat16)).content.dtype == np.float32


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5), r"shape \(5,\); expected numbers of shape \(N, C\)"),
        (np.zeros((5, 0)), "expected numbers of shape"),
        (np.array([["a"]]), "expected numbers of shape"),
        (np.array([[np.nan]]), "not finite"),
    ],
)
def test_what_is_no_sequence_of_vectors_is_refused_in_files_and_objects(tmp_path, array, message):
    path = tmp_path / "a.npy"
    np.save(path, array)
    with pytest.raises(ValueError, match=rf"{path}: .*{message}"):
        VECTORS.load(path)
    with pytest.raises(ValueError, match=message):
        Vectors(array)


def test_broken_files_are_one_line(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((100, 2)))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=f"{path}: not readable as an array of vectors"):
        VECTORS.load(path)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=f"{path}: not readable as an array of vectors"):
        VECTORS.load(path)
    save_file({"a": torch.ones(1, 1), "b": torch.ones(1, 1)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"holds 2 tensors \(a, b\); expected one"):
        VECTORS.load(tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"are written to .npy or .safetensors"):
        VECTORS.save(np.zeros((1, 1), np.float32), tmp_path / "a.csv")


# ------------------------------------------------------------------ tokenizer


def test_from_data_takes_width_and_scale_of_every_channel_from_the_data():
    media = arrays()
    tokenizer = from_data(media)
    assert tokenizer.latent_dim == 3
    latents = torch.cat([each.mean for each in tokenizer.encode(media)])
    torch.testing.assert_close(latents.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.std(0, correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_decoding_gives_the_vectors_back_whole_and_streamed():
    media = arrays()
    tokenizer = from_data(media)
    for array, latents in zip(media, tokenizer.encode(media), strict=True):
        (whole,) = tokenizer.decode([latents.mean])
        np.testing.assert_allclose(whole, array, rtol=1e-5, atol=1e-3)
        stream = tokenizer.stream_decoder()
        pieces = [tokenizer.piece(stream.push(latents.mean[i : i + 2])) for i in range(0, len(array), 2)]
        np.testing.assert_array_equal(np.concatenate([*pieces, tokenizer.piece(stream.flush())]), whole)


def test_another_width_is_one_line():
    tokenizer = from_data(arrays())
    with pytest.raises(ValueError, match="vectors of width 4; this model reads width 3"):
        tokenizer.encode(arrays(width=4))


def test_a_channel_that_does_not_vary_is_refused():
    with pytest.raises(ValueError, match="do not vary"):
        from_data([np.ones((4, 2), np.float32)])


def test_save_and_load(tmp_path):
    tokenizer = from_data(arrays())
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint() == tokenizer.fingerprint()


# ------------------------------------------------------------------ shown


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9), st.integers(1, 12))
def test_any_vectors_have_a_plot(num, width):
    picture = plot(np.random.default_rng(num).standard_normal((num, width)).astype(np.float32))
    assert picture.size == (SIDE, SIDE)
    assert picture.mode == "RGB"


def test_a_path_in_the_plane_is_drawn_where_it_is():
    turn = np.linspace(0, 2 * np.pi, 40)
    picture = np.asarray(plot(np.stack([np.cos(turn), np.sin(turn)], 1).astype(np.float32)))
    dark = (picture < 200).any(-1)
    assert dark[SIDE // 2, :20].any()  # the leftmost point of the circle
    assert not dark[SIDE // 2 - 20 : SIDE // 2 + 20, SIDE // 2 - 20 : SIDE // 2 + 20].any()  # and nothing in its middle


def test_it_is_a_public_segment():
    assert latentlm.Vectors is Vectors
