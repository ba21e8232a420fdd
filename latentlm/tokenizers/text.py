"""Text ↔ ids: byte-level tokens, merge-free or with BPE merges, and the special tokens of the model (PAPER §1.4).

Place in the flow: 1, beside the continuous tokenizers; `data/packing.py` and `generation/` read `special`.
Built on the `tokenizers` library. Both kinds are byte-level and split nothing away, so any UTF-8 string round-trips
exactly, case and white space included. Special tokens are numbered after the base vocabulary and cannot be typed: text
that spells one is text.
Departure from the paper: <PROCEED> stands beside <EOD>; the text head chooses between the two inside a span of variable
length (the paper leaves the end of a span open, PAPER §1.4).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from ..config import FORMAT_VERSION, TextTokenizerConfig, describe
from ..types import MODALITIES

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens.

    bos, eos   begin and end of a document
    bod        begin of diffusion, one a modality: what follows are latents
    eod        end of diffusion: the text head takes over
    proceed    in a span of variable length, the other answer to <EOD>: one more latent follows
    latent     placeholder id at positions whose input is a latent
    """

    bos: int
    eos: int
    eod: int
    proceed: int
    latent: int
    bod: dict[str, int]

    @classmethod
    def after(cls, base_size: int) -> SpecialTokens:
        """Numbered from `base_size` on, in the order bos, eos, eod, proceed, latent, then <BOD> by modality."""
        bod = {name: base_size + 5 + i for i, name in enumerate(MODALITIES)}
        return cls(base_size, base_size + 1, base_size + 2, base_size + 3, base_size + 4, bod)

    def __len__(self) -> int:
        return 5 + len(self.bod)

    def names(self) -> dict[int, str]:
        """id -> how the token is written in logs."""
        plain = {self.bos: "<BOS>", self.eos: "<EOS>", self.eod: "<EOD>", self.proceed: "<PROCEED>"}
        return plain | {self.latent: "<LATENT>"} | {i: f"<BOD:{name}>" for name, i in self.bod.items()}


class TextTokenizer:
    """Text ↔ ids. `TextTokenizer()` is the byte-level one; a BPE comes from `train` or `load`."""

    def __init__(self, config: TextTokenizerConfig | None = None, backend: Backend | None = None):
        self.config = config or TextTokenizerConfig()
        if backend is None:
            if self.config.kind == "bpe":
                raise ValueError("a BPE text tokenizer has to be trained: TextTokenizer.train(config, texts)")
            backend = _byte_level(merges=[], vocab={piece: i for i, piece in enumerate(_byte_pieces())})
        self._backend = backend
        self.base_size = backend.get_vocab_size()
        self.special = SpecialTokens.after(self.base_size)

    @property
    def vocab_size(self) -> int:
        """Special tokens included."""
        return self.base_size + len(self.special)

    def encode(self, text: str) -> list[int]:
        """Ids below `base_size`. Raises ValueError for a string that is not Unicode text (lone surrogates)."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text cannot be encoded as UTF-8: {error.reason} at character {error.start}") from None
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Special tokens are skipped; bytes that are not UTF-8 (a cut character) become U+FFFD."""
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"id {i} is outside the vocabulary of {self.vocab_size}")
        return self._backend.decode([i for i in ids if i < self.base_size], skip_special_tokens=False)

    @classmethod
    def train(cls, config: TextTokenizerConfig, texts: Iterable[str]) -> TextTokenizer:
        """The byte-level tokenizer, or a BPE of at most `config.vocab_size` base entries learned from `texts`."""
        if config.kind == "bytes":
            return cls(config)
        from tokenizers import Regex, pre_tokenizers
        from tokenizers.trainers import BpeTrainer

        backend = _byte_level(merges=[], vocab={})
        split = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, backend.pre_tokenizer])
        trainer = BpeTrainer(vocab_size=config.vocab_size, show_progress=False, initial_alphabet=_byte_pieces())
        backend.train_from_iterator(texts, trainer)
        return cls(config, backend)

    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 over vocabulary and merges."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()[:16]

    def save(self, folder: str | Path) -> None:
        """Write config.json and tokenizer.json into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        fields = {"format_version": FORMAT_VERSION} | self.config.model_dump(mode="json")
        (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
        (folder / "tokenizer.json").write_text(self._backend.to_str(pretty=True) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> TextTokenizer:
        """Read what `save` wrote. ValueError, one line, names a file that is missing or not understood."""
        from tokenizers import Tokenizer as Backend

        fields = read_config(Path(folder) / "config.json")
        try:
            config = TextTokenizerConfig.model_validate(fields)
        except ValidationError as error:
            raise ValueError(f"{folder}/config.json: {describe(error, TextTokenizerConfig)}") from None
        path = Path(folder) / "tokenizer.json"
        model = _read_json(path).get("model")
        if not isinstance(model, dict) or model.get("type") != "BPE":
            raise ValueError(f"{path}: not a byte-level tokenizer file: model.type is not 'BPE'")
        return cls(config, Backend.from_str(path.read_text()))


def read_config(path: Path) -> dict:
    """The fields of a tokenizer's config.json without its format version, which must be ours."""
    fields = _read_json(path)
    version = fields.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise ValueError(f"{path}: format_version is {version!r}, this release reads {FORMAT_VERSION}")
    return fields


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: not a JSON object")
    return fields


_WORDS = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Merges stay inside a word, a digit, a run of signs or of spaces, each with the one space before it."""


def _byte_level(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Backend:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    backend = Backend(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_pieces() -> list[str]:
    """The printable stand-ins of the bytes 0-255 in that order: Latin-1 where it prints, U+0100 upwards elsewhere."""
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in prints else chr(next(others)) for byte in range(256)]
