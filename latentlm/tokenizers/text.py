"""Text ↔ ids: byte-level tokens, merge-free or with BPE merges, and the special tokens of the model (PAPER §1.4).

Place in the flow: 1, beside the continuous tokenizers; `data/packing.py` and `generation/` read `special`.
Built on the `tokenizers` library. Kinds "bytes" and "bpe" are byte-level and drop nothing, so any UTF-8 string
round-trips exactly, case and white space included. A backbone's tokenizer may normalise (Qwen's composes accents). A
vocabulary of classes has one token per class (PAPER §2.2): a text is the name of a class. Special tokens are numbered
after the base vocabulary, except those that a backbone already has. Text that spells one is encoded as text.
Departure from the paper: besides <EOD> there is <PROCEED>; inside a span of variable length the text head chooses
between the two (the paper does not say how a span ends, PAPER §1.4).
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from ..config import FORMAT_VERSION, TextTokenizerConfig, describe, read_json
from ..errors import UserError
from ..weights import write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


FIRST_MODALITIES = ("image", "speech")
"""Modalities with a <BOD> in every vocabulary. The first checkpoints had these ids without saving them."""

PLAIN = ("bos", "eos", "eod", "proceed", "latent")
MAY_BE_ONE = ({"bos", "eos"}, {"proceed", "latent"})


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens.

    bos, eos   begin and end of a document; bos None: nothing marks the beginning
    bod        begin of diffusion, one per modality: latents follow
    eod        end of diffusion: text follows
    proceed    in a span of variable length, the alternative to <EOD>: one more latent follows
    latent     placeholder id at positions whose input is a latent
    """

    bos: int | None
    eos: int
    eod: int
    proceed: int
    latent: int
    bod: dict[str, int]

    @classmethod
    def after(cls, base_size: int, known: Mapping[str, int | None] | None = None) -> SpecialTokens:
        """Special tokens with ids from `base_size` on: bos, eos, eod, proceed, latent, then <BOD> of FIRST_MODALITIES.

        known: ids by name ("bos", "bod:image", …) of tokens that exist already, None for one (bos or bod) that is not
        used. Raises UserError for an unknown name.
        """
        names = (*PLAIN, *(f"bod:{modality}" for modality in FIRST_MODALITIES))
        unknown = set(known or {}) - set(names)
        if unknown:
            raise UserError(f"unknown special tokens {sorted(unknown)}; known: {', '.join(names)}")
        free = count(base_size)
        return cls.of({name: known[name] if known and name in known else next(free) for name in names})

    @classmethod
    def of(cls, ids: Mapping[str, int | None]) -> SpecialTokens:
        """Special tokens from their `ids` by name, as `to_ids` gives them.

        Raises UserError for one that is missing, unknown, or has the id of another; bos and eos may share an id, and
        proceed and latent, as in some backbones.
        """
        unknown = [name for name in ids if name not in PLAIN and not name.startswith("bod:")]
        if unknown:
            raise UserError(f"unknown special tokens {unknown}; known: {', '.join(PLAIN)}, bod:NAME")
        needed = [name for name in ("eos", "eod", "proceed", "latent") if ids.get(name) is None]
        if needed:
            raise UserError(f"special tokens {needed} are needed")
        owners: dict[int, str] = {}
        for name, i in ids.items():
            other = owners.setdefault(i, name) if i is not None else name
            if other != name and {name, other} not in MAY_BE_ONE:
                raise UserError(f"special tokens {other!r} and {name!r} have the same id {i}")
        plain = {name: i for name, i in ids.items() if not name.startswith("bod:")}
        bod = {name.removeprefix("bod:"): i for name, i in ids.items() if name.startswith("bod:") and i is not None}
        return cls(**{"bos": None} | plain, bod=bod)

    def to_ids(self) -> dict[str, int | None]:
        """The id of every special token by name ("bos", "bod:image", …); saved with each checkpoint."""
        plain = {name: getattr(self, name) for name in PLAIN}
        return plain | {f"bod:{modality}": i for modality, i in self.bod.items()}

    def names(self) -> dict[int, str]:
        """The name of each special token, as logs show it, by id."""
        plain = {self.eos: "<EOS>", self.eod: "<EOD>", self.proceed: "<PROCEED>"}
        plain |= {} if self.bos is None else {self.bos: "<BOS>"}
        return plain | {self.latent: "<LATENT>"} | {i: f"<BOD:{name}>" for name, i in self.bod.items()}


class TextTokenizer:
    """Text ↔ ids. `TextTokenizer()` is byte-level; other kinds come from `train`, `from_backbone` or `load`."""

    def __init__(self, config: TextTokenizerConfig | None = None, backend: Backend | None = None):
        self.config = config or TextTokenizerConfig()
        if backend is None:
            if self.config.kind != "bytes":
                raise UserError(f"a text tokenizer of kind {self.config.kind!r} has to be trained: TextTokenizer.train")
            backend = _byte_level(merges=[], vocab={piece: i for i, piece in enumerate(_byte_pieces())})
        self._backend = backend
        self.base_size = self.config.vocab_size if self.config.kind == "backbone" else backend.get_vocab_size()
        if backend.get_vocab_size() > self.base_size:
            raise UserError(
                f"the tokenizer has {backend.get_vocab_size()} entries, but the embedding only {self.base_size} rows"
            )
        backend.encode_special_tokens = True  # text that spells a special token is encoded as text
        if self.config.ids is not None:
            self.special = SpecialTokens.of(self.config.ids)
            self._check_ids()
        else:
            known = {"bos": None} if self.is_classes else self.config.special
            self.special = SpecialTokens.after(self.base_size, known)
            self.config = self.config.model_copy(update={"ids": self.special.to_ids()})

    def _check_ids(self) -> None:
        """Raise UserError unless the special tokens follow the base vocabulary without a gap (or are a backbone's)."""
        ids = set(self.special.names())
        own = sorted(i for i in ids if i >= self.base_size)
        inside = sorted(ids - set(own))
        first = 0 if self.config.kind == "backbone" else self.base_size
        if own != list(range(self.base_size, self.base_size + len(own))) or any(i < first for i in inside):
            raise UserError(
                f"ids {sorted(ids)} of special tokens do not follow the base vocabulary of {self.base_size}"
            )

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self.base_size + sum(i >= self.base_size for i in self.special.names())

    @property
    def text_size(self) -> int:
        """Number of ids that plain text may have, <BOS> and <EOS> included: those before the tokens of latent spans."""
        return max(self.base_size, (self.special.bos or 0) + 1, self.special.eos + 1)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, all below `base_size`.

        Raises UserError for a string with lone surrogates, which UTF-8 cannot encode, and for an unknown class.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"text cannot be encoded as UTF-8: {error.reason} at character {error.start}") from None
        if self.is_classes:
            return [self._class_id(text)]
        return self._backend.encode(text, add_special_tokens=False).ids

    @property
    def is_classes(self) -> bool:
        """Whether each text is the name of a class. Its token replaces <BOS>, and <BOD> of the span that follows."""
        return self.config.kind == "classes"

    def _class_id(self, name: str) -> int:
        found = self._backend.token_to_id(name.strip())
        if found is None:
            known = sorted(self._backend.get_vocab(), key=self._backend.token_to_id)
            close = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise UserError(f"no class {name!r}{hint} (this model knows {len(known)}: {known[0]} … {known[-1]})")
        return found

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, special tokens left out; invalid UTF-8 becomes U+FFFD. UserError for other ids."""
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise UserError(f"id {i} is outside the vocabulary of {self.vocab_size}")
        special = self.special.names()
        return self._backend.decode([i for i in ids if i not in special], skip_special_tokens=False)

    @classmethod
    def train(cls, config: TextTokenizerConfig, texts: Iterable[str]) -> TextTokenizer:
        """A tokenizer of `config.kind`: bytes, a BPE of at most `vocab_size` entries, or the classes in `texts`."""
        if config.kind == "bytes":
            return cls(config)
        if config.kind == "classes":
            return cls.of_classes(sorted({text.strip() for text in texts}))
        if config.kind == "backbone":
            raise UserError("text.kind 'backbone' is a tokenizer that is read from a model, not trained")
        from tokenizers import Regex, pre_tokenizers
        from tokenizers.trainers import BpeTrainer

        backend = _byte_level(merges=[], vocab={})
        split = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, backend.pre_tokenizer])
        trainer = BpeTrainer(vocab_size=config.vocab_size, show_progress=False, initial_alphabet=_byte_pieces())
        backend.train_from_iterator(texts, trainer)
        return cls(config, backend)

    @classmethod
    def of_classes(cls, names: Sequence[str]) -> TextTokenizer:
        """A tokenizer with one token per class, numbered in this order."""
        from tokenizers import Tokenizer as Backend
        from tokenizers.models import WordLevel

        vocabulary = {name: i for i, name in enumerate(names)}
        backend = Backend(WordLevel(vocabulary, unk_token=names[0]))
        return cls(TextTokenizerConfig(kind="classes"), backend)

    @classmethod
    def from_backbone(cls, path: str | Path, vocab_size: int, special: Mapping[str, int | None]) -> TextTokenizer:
        """The tokenizer of a backbone, from its tokenizer.json at `path`.

        vocab_size: rows of the embedding, at least as many as the tokenizer has entries. special: ids, by name, of our
        special tokens that are in its vocabulary. Raises UserError for another kind of file.
        """
        backend = _read_backend(Path(path))
        backend.no_padding()
        backend.no_truncation()
        try:
            config = TextTokenizerConfig(kind="backbone", vocab_size=vocab_size, special=dict(special))
        except ValidationError as error:
            raise UserError(f"{path}: {describe(error, TextTokenizerConfig)}") from None
        try:
            return cls(config, backend)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def with_modalities(self, names: Iterable[str]) -> TextTokenizer:
        """The same tokenizer with a <BOD> for each of `names`; new ones get the next free ids."""
        ids, free = self.special.to_ids(), count(self.vocab_size)
        new = {f"bod:{name}": next(free) for name in names if name not in self.special.bod}
        if not new:
            return self
        return TextTokenizer(self.config.model_copy(update={"ids": ids | new}), self._backend)

    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 over vocabulary and merges."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()[:16]

    def save(self, folder: str | Path) -> None:
        """Write config.json, with the ids of all special tokens, and tokenizer.json into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        fields = {"format_version": FORMAT_VERSION} | self.config.model_dump(mode="json")
        write_text(folder / "config.json", json.dumps(fields, indent=2) + "\n")
        write_text(folder / "tokenizer.json", self.to_json() + "\n")

    def to_json(self) -> str:
        """The base vocabulary in the format of the `tokenizers` library."""
        return self._backend.to_str(pretty=True)

    @classmethod
    def load(cls, folder: str | Path) -> TextTokenizer:
        """The tokenizer in `folder`. Raises UserError, which names the file, for one that is missing or not valid."""
        fields = read_config(Path(folder) / "config.json")
        try:
            config = TextTokenizerConfig.model_validate(fields)
        except ValidationError as error:
            raise UserError(f"{folder}/config.json: {describe(error, TextTokenizerConfig)}") from None
        kind = "WordLevel" if config.kind == "classes" else "BPE"
        backend = _read_backend(Path(folder) / "tokenizer.json", kind)
        try:
            return cls(config, backend)
        except UserError as error:
            raise UserError(f"{folder}/config.json: {error}") from None


def read_config(path: Path) -> dict:
    """The fields of a tokenizer's config.json. Raises UserError for another format version."""
    fields = read_json(path)
    version = fields.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: format_version is {version!r}, this release reads {FORMAT_VERSION}")
    return fields


def _read_backend(path: Path, kind: str = "BPE") -> Backend:
    from tokenizers import Tokenizer as Backend

    model = read_json(path).get("model")
    if not isinstance(model, dict) or model.get("type") != kind:
        expected = {"BPE": "byte-level tokenizer", "WordLevel": "vocabulary of classes"}[kind]
        raise UserError(f"{path}: not a {expected} file: model.type is not {kind!r}")
    return Backend.from_str(path.read_text(encoding="utf-8"))


_WORDS = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Merges do not cross these pieces: a word, a digit, a run of other signs or of spaces, with one space before it."""


def _byte_level(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Backend:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    backend = Backend(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_pieces() -> list[str]:
    """A printable character for each byte 0-255: itself in Latin-1 where that is printable, else U+0100 upwards."""
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in prints else chr(next(others)) for byte in range(256)]
