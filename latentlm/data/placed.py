"""Sequences of documents from files, which can name the place of each document, and views of a part of them.

Place in the flow: 2, between readers or shards and the users of their documents. A view stores only numbers.
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
        """The place of a document, for messages: file and line, row or member."""

    def texts(self, index: int) -> list[str]:
        """The texts of a document; subclasses give them without decoding its media."""
        return [segment.text for segment in self[index].segments if isinstance(segment, Text)]


class PlacedDocuments(DocumentsWithPlaces):
    """Documents that are read from disk when they are asked for."""

    def most_positions(self) -> np.ndarray | None:
        """An upper bound of the positions of each document, (number of documents,); None where it is not known."""
        return None


def place_of(documents: Sequence[Document], index: int, label: str) -> str:
    """The place, for messages, of a document of the source called `label`."""
    return documents.place(index) if isinstance(documents, DocumentsWithPlaces) else f"{label}: document {index}"


class View(PlacedDocuments):
    """The documents with the given numbers, a range or an array."""

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
    """All documents except those with the given numbers, which are sorted."""

    def __init__(self, documents: PlacedDocuments, numbers: np.ndarray):
        self.documents = documents
        self.before = numbers - np.arange(len(numbers))  # for each left-out document, the number of kept ones before it

    def __len__(self) -> int:
        return len(self.documents) - len(self.before)

    def number(self, index: int) -> int:
        """The number of document `index` among all documents."""
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
    """Numbers of the documents to hold out, a count or a share below 1, evenly spread. UserError if none is left."""
    num = held_out if isinstance(held_out, int) else max(1, round(held_out * num_documents))
    if num >= num_documents:
        raise UserError(f"{label}: held_out {held_out} of {num_documents} documents leaves none to learn")
    return (np.arange(num) * 2 + 1) * num_documents // (2 * num)


TEXT_SAMPLE = 50_000
"""Documents per source on disk that a text tokenizer is trained on, evenly spread."""


def texts_of(documents: Sequence[Document], most: int = TEXT_SAMPLE) -> Iterator[str]:
    """The texts of a source: of all documents in memory, or of at most `most` documents on disk.

    Those on disk are read before the first is returned. The trainer of a tokenizer iterates in threads of its own, and
    a reader that released the interpreter lock there would deadlock.
    """
    if not isinstance(documents, DocumentsWithPlaces):
        return (s.text for document in documents for s in document.segments if isinstance(s, Text))
    if not isinstance(documents, PlacedDocuments):
        return (text for index in range(len(documents)) for text in documents.texts(index))
    num = min(most, len(documents))
    return iter([text for place in range(num) for text in documents.texts(place * len(documents) // num)])
