"""Makes the emoji atlas from a Noto Color Emoji font with bitmap strikes (Debian: fonts-noto-color-emoji, SIL OFL 1.1).

    python -m latentlm.data.embedded.make_emoji /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf [FOLDER]

Takes every single code point that the font draws in colour and Unicode names, except what is no picture by itself:
keycap bases, regional indicators (flag letters), skin tones, and glyphs that only repeat another's picture. Each is
drawn at the font's strike of 109 pixels per em on white and scaled to 32×32 (Lanczos). Writes emoji.png (the atlas,
COLUMNS pictures per row) and emoji.txt (code point and name, one line each, in the order of the atlas).
"""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .emoji import COLUMNS, SIZE

STRIKE = 109
SKIN_TONES = range(0x1F3FB, 0x1F400)
REGIONAL_INDICATORS = range(0x1F1E6, 0x1F200)
CANDIDATES = (*range(0xA9, 0x3300), *range(0x1F000, 0x1FB00))


def render(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    """The picture (SIZE×SIZE RGB on white) of one character; None where the font has no colour glyph for it."""
    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top:
        return None
    canvas = Image.new("RGB", (max(right - left, bottom - top),) * 2, "white")
    corner = ((canvas.width - (right - left)) // 2 - left, (canvas.height - (bottom - top)) // 2 - top)
    ImageDraw.Draw(canvas).text(corner, character, font=font, embedded_color=True)
    if canvas.convert("L").getextrema() == (255, 255):
        return None
    return canvas.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def main(font_path: Path, folder: Path) -> None:
    font = ImageFont.truetype(str(font_path), STRIKE)
    pictures: dict[bytes, tuple[str, Image.Image]] = {}
    for code in CANDIDATES:
        name = unicodedata.name(chr(code), "").lower()
        if not name or code in SKIN_TONES or code in REGIONAL_INDICATORS:
            continue
        picture = render(font, chr(code))
        if picture is not None:
            pictures.setdefault(picture.tobytes(), (f"{code:x} {name}", picture))
    rows = -(-len(pictures) // COLUMNS)
    atlas = Image.new("RGB", (COLUMNS * SIZE, rows * SIZE), "white")
    for index, (_, picture) in enumerate(pictures.values()):
        atlas.paste(picture, (index % COLUMNS * SIZE, index // COLUMNS * SIZE))
    atlas.save(folder / "emoji.png", optimize=True)
    (folder / "emoji.txt").write_text("".join(f"{line}\n" for line, _ in pictures.values()), encoding="utf-8")
    print(f"{len(pictures)} emoji, {(folder / 'emoji.png').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent)
