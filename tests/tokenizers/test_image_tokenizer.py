"""The ViT tokenizer: sizes of the paper, any picture in, RGB of its own size out."""

import numpy as np
import pytest
import torch
from PIL import Image

from latentlm.config import ImageTokenizerConfig
from latentlm.media.picture import image_to_rgb, image_to_tensor, tensor_to_image
from latentlm.tokenizers.image import ImageTokenizer, sincos_positions


@pytest.mark.parametrize(("image_size", "grid"), [(256, (16, 16)), (384, (24, 24))])
def test_the_papers_tokenizer_has_its_size_and_grid(image_size, grid):
    """12 + 12 layers of base width, patch 16: 172M (PAPER §2.1)."""
    config = ImageTokenizerConfig(
        image_size=image_size,
        patch_size=16,
        latent_dim=16,
        width=768,
        num_heads=12,
        encoder_layers=12,
        decoder_layers=12,
    )
    with torch.device("meta"):
        tokenizer = ImageTokenizer(config)
    assert tokenizer.grid == grid
    assert tokenizer.num_latents == grid[0] * grid[1]
    count = sum(p.numel() for name, p in tokenizer.named_parameters() if "positions" not in name)
    assert count == pytest.approx(172e6, rel=0.01)


def test_latents_are_in_raster_order():
    """Without attention, a changed patch changes its own latent and its own pixels."""
    torch.manual_seed(0)
    config = ImageTokenizerConfig(
        image_size=12, patch_size=4, latent_dim=5, width=16, encoder_layers=0, decoder_layers=0
    )
    tokenizer = ImageTokenizer(config)
    pixels = torch.zeros(1, 3, 12, 12)
    changed = pixels.clone()
    changed[0, 1, 5, 9] = 1.0  # row 1, column 2 of the grid
    first, second = (tokenizer.encode_batch(x, torch.zeros(1))[0] for x in (pixels, changed))
    assert (first != second).any(-1)[0].nonzero().flatten().tolist() == [5]
    difference = (tokenizer.decode_batch(first) != tokenizer.decode_batch(second)).any(1)[0]
    rows, columns = difference.nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 7, 8, 11)


def test_positions_differ_everywhere():
    for width in (16, 18):
        positions = sincos_positions((5, 7), width)
        assert positions.shape == (35, width)
        assert torch.pdist(positions).min() > 0.1


def test_small_squares_are_enlarged_by_repetition():
    levels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    pixels = image_to_tensor(Image.fromarray(levels), 32)
    expected = torch.from_numpy(np.kron(levels, np.ones((4, 4)))).float() / 127.5 - 1
    torch.testing.assert_close(pixels, expected.expand(3, 32, 32))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
@pytest.mark.parametrize("size", [(8, 8), (31, 57), (100, 40)])
def test_any_mode_and_size_becomes_a_square(mode, size):
    black = Image.new(mode, size, (0, 0, 0, 255) if mode == "CMYK" else 0)
    pixels = image_to_tensor(black, 16)
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == torch.float32
    if mode in {"1", "L", "P", "RGB", "CMYK", "I;16", "I"}:
        assert pixels.max() == -1
    if mode in {"LA", "RGBA"}:  # all transparent: the white behind shows
        assert pixels.min() == 1


def test_half_transparent_is_laid_over_white_and_sixteen_bits_are_scaled():
    half = image_to_rgb(Image.new("RGBA", (4, 4), (255, 0, 0, 128)))
    assert half.getpixel((0, 0)) == (255, 127, 127)
    grey = Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16))
    assert image_to_rgb(grey).getpixel((0, 0)) == (156, 156, 156)
    palette = Image.new("P", (4, 4), 0)
    palette.info["transparency"] = 0
    assert image_to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)


def test_wide_pictures_are_cropped_at_the_centre():
    wide = Image.new("RGB", (40, 20), "black")
    wide.paste((255, 255, 255), (10, 0, 30, 20))
    assert image_to_tensor(wide, 20).min() == 1


def test_pixels_round_trip_through_a_picture():
    levels = torch.randint(0, 256, (3, 9, 9))
    picture = tensor_to_image(levels / 127.5 - 1)
    assert torch.equal(torch.from_numpy(np.array(picture)).permute(2, 0, 1), levels.to(torch.uint8))
    assert tensor_to_image(torch.full((3, 2, 2), 7.0)).getpixel((0, 0)) == (255, 255, 255)


def test_decode_gives_rgb_of_the_tokenizers_size(tokenizers):
    image = tokenizers["image"]
    decoded = image.decode([latent.mean for latent in image.encode([Image.new("L", (50, 20), 9)])])[0]
    assert (decoded.mode, decoded.size) == ("RGB", (8, 8))


def test_pixels_of_another_size_are_refused(tokenizers):
    with pytest.raises(ValueError, match=r"\(3, 16, 16\).*\(3, 8, 8\)"):
        tokenizers["image"].encode_batch(torch.zeros(1, 3, 16, 16), torch.zeros(1))
