"""The ViT tokenizer: sizes of the paper, any picture in, RGB of its own size out."""

import numpy as np
import pytest
import torch
from PIL import Image

from latentlm.config import ImageTokenizerConfig
from latentlm.data.examples import ImageExample
from latentlm.errors import UserError
from latentlm.media.picture import image_to_rgb, image_to_tensor, load_image, tensor_to_image
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
def test_any_mode_and_size_becomes_a_square(mode, size, notices):
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


def banner() -> Image.Image:
    """40 × 20: 10 columns of red, 20 of white, 10 of blue."""
    wide = Image.new("RGB", (40, 20), "red")
    wide.paste((255, 255, 255), (10, 0, 30, 20))
    wide.paste((0, 0, 255), (30, 0, 40, 20))
    return wide


def colours(pixels: torch.Tensor) -> set[tuple[int, int, int]]:
    return {colour for _, colour in tensor_to_image(pixels).getcolors()}


RED, WHITE, BLUE = (255, 0, 0), (255, 255, 255), (0, 0, 255)


def test_a_picture_that_is_not_square_is_cropped_at_its_centre_and_that_is_said(tmp_path, notices):
    assert colours(image_to_tensor(banner(), 20)) == {WHITE}
    said = "not square, cropped to its centre square (fit: pad or stretch of the tokenizer keeps it all)"
    assert notices() == [f"a picture without a file: {said}"]
    for number in range(9):
        banner().save(tmp_path / f"{number}.png")
        image_to_tensor(load_image(tmp_path / f"{number}.png"), 20)
    first, second = notices()
    assert first == f"{tmp_path / '0.png'}: {said}"
    assert second == f"{tmp_path / '1.png'}: {said}; further files are not named"


def test_a_padded_picture_is_whole_between_white_bars():
    picture = tensor_to_image(image_to_tensor(banner(), 40, "pad"))
    assert [picture.getpixel(place) for place in ((0, 20), (20, 20), (39, 20))] == [RED, WHITE, BLUE]
    assert colours(image_to_tensor(banner(), 40, "pad")[:, :10]) == {WHITE}
    assert colours(image_to_tensor(banner().rotate(90, expand=True), 40, "pad")[:, :, 30:]) == {WHITE}


def test_a_stretched_picture_fills_the_square():
    picture = tensor_to_image(image_to_tensor(banner(), 40, "stretch"))
    assert [picture.getpixel((0, y)) for y in (0, 39)] == [RED, RED]
    assert [picture.getpixel((39, y)) for y in (0, 39)] == [BLUE, BLUE]


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_square_picture_is_the_same_whatever_fit_says(fit, notices):
    square = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8))
    assert torch.equal(image_to_tensor(square, 16, fit), image_to_tensor(square, 16))
    assert notices() == []


def test_a_tokenizer_keeps_what_its_config_says(notices):
    pixels = {
        fit: ImageTokenizer(ImageTokenizerConfig(image_size=32, fit=fit)).batch([banner()]).media[0]
        for fit in ("crop", "pad", "stretch")
    }
    assert {fit for fit, each in pixels.items() if RED in colours(each)} == {"pad", "stretch"}
    assert len(notices()) == 1


def test_random_crops_are_of_the_whole_picture_as_fit_says(notices):
    seen = {}
    for fit in ("crop", "pad", "stretch"):
        example = ImageExample(8, fit, crop=0.1)
        seen[fit] = torch.stack([example(banner(), np.random.default_rng(seed)) for seed in range(20)])
    assert (seen["pad"][..., 0, :] > 0.98).all()  # the upper bar
    assert (seen["stretch"][..., 0, 0] * torch.tensor([1, -1, -1]) > 0.98).all()  # red
    assert notices() == []


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (np.array([[0, 255]], np.int32), [0, 255]),
        (np.array([[0, 65535]], np.int32), [0, 255]),
        (np.array([[256, 40000]], np.uint16), [1, 156]),
    ],
)
def test_integers_are_taken_as_8_or_16_bits(values, shown):
    assert np.asarray(image_to_rgb(Image.fromarray(values)))[..., 0].tolist() == [shown]


@pytest.mark.parametrize("values", [[[0, 70000]], [[-1, 5]], [[2**31 - 1, 0]]])
def test_integers_without_a_scale_are_refused_by_name(tmp_path, values):
    picture = Image.fromarray(np.array(values, np.int32))
    with pytest.raises(UserError, match=r"^its pixels are integers from .* to .*; save it with 8 or 16 bits"):
        image_to_rgb(picture)
    picture.save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match=r"a\.tiff: not a readable image \(its pixels are integers"):
        load_image(tmp_path / "a.tiff")


def test_pixels_round_trip_through_a_picture():
    levels = torch.randint(0, 256, (3, 9, 9))
    picture = tensor_to_image(levels / 127.5 - 1)
    assert torch.equal(torch.from_numpy(np.array(picture)).permute(2, 0, 1), levels.to(torch.uint8))
    assert tensor_to_image(torch.full((3, 2, 2), 7.0)).getpixel((0, 0)) == (255, 255, 255)


def test_decode_gives_rgb_of_the_tokenizers_size(tokenizers):
    image = tokenizers["image"]
    decoded = image.decode([latent.mean for latent in image.encode([Image.new("L", (50, 50), 9)])])[0]
    assert (decoded.mode, decoded.size) == ("RGB", (8, 8))


def test_pixels_of_another_size_are_refused(tokenizers):
    with pytest.raises(ValueError, match=r"\(3, 16, 16\).*\(3, 8, 8\)"):
        tokenizers["image"].encode_batch(torch.zeros(1, 3, 16, 16), torch.zeros(1))
