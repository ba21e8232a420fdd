"""Shards: what is written is what is read, by index, here and behind URLs; broken ones are named."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
import torch
from small import random_latents

from latentlm.data import shards
from latentlm.data.packing import DocumentEncoder
from latentlm.data.readers.files import Location
from latentlm.data.shards import ShardDocuments, ShardIndex, TokenizerRecord, most_positions, pack_record, unpack_record
from latentlm.modalities.image import Image
from latentlm.modalities.speech import Speech
from latentlm.types import Document, Latents, Text

GIVEN = {"condition": True, "loss": False}


def document(number: int) -> Document:
    learned = Latents(torch.randn(3, 5), torch.rand(3, 5), "learned", features=torch.randn(3, 2))
    return Document(
        (
            Text(f"größer {number}", **GIVEN),
            Image(random_latents(4, 6, number, "sigma")),
            Text("both", condition=True, loss=True),
            Speech(learned),
            Speech(random_latents(2 + number % 3, 5, number), **GIVEN),
        )
    )


def assert_equal(one: Document, two: Document, **tolerance) -> None:
    for a, b in zip(one.segments, two.segments, strict=True):
        assert (type(a), a.condition, a.loss) == (type(b), b.condition, b.loss)
        if isinstance(a, Text):
            assert a == b
            continue
        assert a.content.posterior == b.content.posterior
        assert a.content.mean.dtype == torch.float32
        for name in ("mean", "std", "features"):
            left, right = getattr(a.content, name), getattr(b.content, name)
            assert (left is None) == (right is None)
            if left is not None:
                torch.testing.assert_close(left, right, **({"rtol": 0, "atol": 0} | tolerance))


def write(folder: str, parts: list[list[Document]]) -> None:
    location = Location.of(folder)
    location.system.makedirs(location.path, exist_ok=True)
    names = [f"part-{number:06d}.array_record" for number in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        shards.write_records(shards.inside(location, name), map(pack_record, part))
    lengths = np.array([most_positions(d) for part in parts for d in part], np.int32)
    index = ShardIndex(
        num_documents=len(lengths),
        num_segments={"text": len(lengths)},
        num_latents={"image": 4 * len(lengths)},
        longest=int(lengths.max()),
        dtype="float32",
        tokenizers={"image": TokenizerRecord(fingerprint="f", latent_dim=6, posterior="sigma")},
        plan={},
        parts=[(name, len(part)) for name, part in zip(names, parts, strict=True)],
    )
    shards.write_index(location, index, lengths)


def test_a_record_is_the_document():
    for number in range(3):
        whole = document(number)
        assert_equal(unpack_record(pack_record(whole)), whole)
        assert_equal(unpack_record(pack_record(whole, "float16"), "float16"), whole, rtol=1e-3, atol=1e-6)


def test_a_record_is_a_header_and_numbers():
    """The example of docs/data_format.md."""
    small = Document((Text("cat", **GIVEN), Image(Latents(torch.tensor([[1.0, 2.0]]), torch.tensor(0.5), "sigma"))))
    record = pack_record(small, keys=[None, "0123456789abcdef"])
    size = int.from_bytes(record[:4], "little")
    assert json.loads(record[4 : 4 + size]) == {
        "segments": [
            {"text": "cat", "condition": True},
            {"image": [1, 2], "posterior": "sigma", "key": "0123456789abcdef"},
        ]
    }
    assert np.frombuffer(record[4 + size :], "<f4").tolist() == [1.0, 2.0, 0.5]


def test_latents_that_are_no_numbers_are_not_written():
    for value in (float("nan"), 1e6):
        broken = Document((Image(Latents(torch.full((1, 2), value), torch.tensor(0.5), "sigma")),))
        with pytest.raises(ValueError, match="latents are not finite numbers in float16"):
            pack_record(broken, "float16")


def test_the_most_positions_are_never_fewer_than_those_of_the_sequence(tokenizers):
    encoder = DocumentEncoder(tokenizers["text"])
    for number in range(3):
        whole = document(number)
        bare = Document(tuple(s for s in whole.segments if isinstance(s, Text) or s.content.features is None))
        assert len(encoder(bare)) == most_positions(bare)  # a byte is a token here


def test_documents_are_read_by_index_from_any_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "OPEN_READERS", 2)
    torch.manual_seed(0)
    documents = [document(number) for number in range(11)]
    write(str(tmp_path / "a"), [documents[:4], documents[4:5], documents[5:9], documents[9:]])
    found = pickle.loads(pickle.dumps(ShardDocuments(str(tmp_path / "a"))))
    assert len(found) == 11
    assert found.most_positions().tolist() == [most_positions(d) for d in documents]

    def read(thread: int) -> None:
        for place in range(22):
            number = (place * (3 + thread)) % 11
            assert_equal(found[number], documents[number])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
    assert len(found._readers) == 2
    with pytest.raises(IndexError):
        found[11]


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_shards_behind_a_url(tmp_path, scheme, monkeypatch):
    monkeypatch.setenv("LATENTLM_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    documents = [document(number) for number in range(3)]
    url = f"memory://{tmp_path.name}/set" if scheme == "memory" else f"file://{tmp_path}/set"
    write(url, [documents[:2], documents[2:]])
    found = ShardDocuments(url)
    for number in (2, 0, 1):
        assert_equal(found[number], documents[number])
    assert (tmp_path / "cache").exists() == (scheme == "memory")
    other = [document(number) for number in range(3)]
    write(url, [other[:2], other[2:]])  # made anew: a copy of the old ones is not taken for them
    changed = json.loads(fsspec.open(f"{url}/index.json", "rb").open().read()) | {"num_skipped": 1}
    with fsspec.open(f"{url}/index.json", "wb") as file:
        file.write(json.dumps(changed).encode())
    assert_equal(ShardDocuments(url)[1], other[1])


def test_broken_shards_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"a: no finished shards, it has no index\.json"):
        ShardDocuments(str(tmp_path / "a"))
    write(str(tmp_path / "a"), [[document(0), document(1)], [document(2)]])
    found = ShardDocuments(str(tmp_path / "a"))
    part = tmp_path / "a" / "part-000000.array_record"
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"part-000000\.array_record: 0 documents can be read, index\.json says 2"):
        found[0]
    part.unlink()
    with pytest.raises(ValueError, match=r"part-000000\.array_record: no such file, and index\.json names it"):
        found[1]
    found[2]
    index = tmp_path / "a" / "index.json"
    index.write_text(index.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(ValueError, match=r"index\.json: format_version: "):
        ShardDocuments(str(tmp_path / "a"))
    index.write_text("{")
    with pytest.raises(ValueError, match=r"index\.json: not JSON"):
        ShardDocuments(str(tmp_path / "a"))
