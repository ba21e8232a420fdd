"""Sequences of documents that know where each of theirs stands, and views of them: the first ones, some, all others.

Place in the flow: 2, between readers or shards and what reads their documents. A view keeps nothing but numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import UserError
from ..types import Document, Text


class DocumentsWithPlaces(Sequence[Document]):
    """Documents that come from files."""

    @abstractmethod
    def place(self, index: int) -> str:
        """Where a document stands, for messages: file and line, row or member."""

    def texts(self, index: int) -> list[str]:
        """The texts of a document; subclasses give them without decoding its media."""
        return [segment.text for segment in self[index].segments if isinstance(segment, Text)]


class PlacedDocuments(DocumentsWithPlaces):
    """Documents that are read from disk when they are asked for."""

    def most_positions(self) -> np.ndarray | None:
        """An upper bound of the positions of each document, (number of documents,); None where it is not known."""
        return None


def place_of(documents: Sequence[Document], index: int, label: str) -> str:
    """Where a document of the source called `label` stands, for messages."""
    return documents.place(index) if isinstance(documents, DocumentsWithPlaces) else f"{label}: document {index}"


class View(PlacedDocuments):
    """The documents of these numbers. `numbers` is a range or an array."""

    def __init__(self, documents: PlacedDocuments, numbers: range | np.ndarray):
        self.documents, self.numbers = documents, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Document:
        return self.documents[int(self.numbers[index])]

    def place(self, index: int) -> str:
        return self.documents.place(int(self.numbers[index]))

    def texts(self, index: int) -> list[str]:
        return self.documents.texts(int(self.numbers[index]))

    def most_positions(self) -> np.ndarray | None:
        found = self.documents.most_positions()
        return None if found is None else found[np.asarray(self.numbers)]


class Without(PlacedDocuments):
    """All documents but those of the sorted `numbers`, in order."""

    def __init__(self, documents: PlacedDocuments, numbers: np.ndarray):
        self.documents = documents
        self.before = numbers - np.arange(len(numbers))  # of the others, how many stand before each

    def __len__(self) -> int:
        return len(self.documents) - len(self.before)

    def number(self, index: int) -> int:
        """The number that document `index` has among all."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)}")
        return index + int(np.searchsorted(self.before, index, side="right"))

    def __getitem__(self, index: int) -> Document:
        return self.documents[self.number(index)]

    def place(self, index: int) -> str:
        return self.documents.place(self.number(index))

    def texts(self, index: int) -> list[str]:
        return self.documents.texts(self.number(index))

    def most_positions(self) -> np.ndarray | None:
        found = self.documents.most_positions()
        return None if found is None else np.delete(found, self.before + np.arange(len(self.before)))


def held_out_numbers(num_documents: int, held_out: int | float, label: str) -> np.ndarray:
    """Which documents are held out: so many, or that share, evenly spread. UserError where none would be left."""
    num = held_out if isinstance(held_out, int) else max(1, round(held_out * num_documents))
    if num >= num_documents:
        raise UserError(f"{label}: held_out {held_out} of {num_documents} documents leaves none to learn")
    return (np.arange(num) * 2 + 1) * num_documents // (2 * num)


TEXT_SAMPLE = 50_000
"""Documents of a source on disk whose texts a text tokenizer is trained on, evenly spread."""


def texts_of(documents: Sequence[Document], most: int = TEXT_SAMPLE) -> Iterator[str]:
    """The texts of all documents of a source in memory; of one on disk, those of at most `most` documents.

    Those on disk are all read before the first is given: the trainer of a tokenizer asks for texts from threads of its
    own, and a reader that lets go of the interpreter there would leave both waiting for each other.
    """
    if not isinstance(documents, DocumentsWithPlaces):
        return (s.text for document in documents for s in document.segments if isinstance(s, Text))
    if not isinstance(documents, PlacedDocuments):
        return (text for index in range(len(documents)) for text in documents.texts(index))
    num = min(most, len(documents))
    return iter([text for place in range(num) for text in documents.texts(place * len(documents) // num)])
