"""Training from shards and paths: the numbers of the same documents in memory, exact resume, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from sets import flac, picture_folder, picture_parquet, png, word, write_lines, write_parquet
from small import small_tokenizers

from latentlm.config import SourceConfig, TextTokenizerConfig, parse_recipe
from latentlm.data import sources
from latentlm.data.encoding.plan import Job, names_other_files
from latentlm.data.encoding.workers import encode
from latentlm.data.placed import texts_of
from latentlm.data.shards import ShardDocuments
from latentlm.training import feed, latentlm
from latentlm.training import run as module
from latentlm.training.logs import read_log
from latentlm.training.run import ProcessFailed, train
from latentlm.training.trainer import Trainer

NUM = 60


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A set of pictures as Parquet, JSONL and shards, and the tokenizers that encoded it."""
    root = tmp_path_factory.mktemp("streamed")
    tokenizers = small_tokenizers()
    for modality in ("image", "speech"):
        tokenizers[modality].save(root / modality)
    picture_parquet(root / "set.parquet", NUM)
    for number in range(NUM):
        (root / f"{number}.png").write_bytes(png(number))
    pair = lambda i: [{"text": word(i), "condition": True}, {"image": f"{i}.png"}]  # noqa: E731
    write_lines(root / "set.jsonl", [{"segments": pair(i)} for i in range(NUM)])
    config = SourceConfig(path=str(root / "set.parquet"), task="text_to_image")
    encode(Job((config,), {"image": str(root / "image")}, str(root / "shards")))
    return root


def recipe(root: Path, source: dict, text: str = "bytes", **training):
    return parse_recipe(
        {
            "kind": "latentlm",
            "tokenizers": {"text": {"kind": text, "vocab_size": 270}, "image": str(root / "image")},
            "model": {"transformer": {"width": 16, "num_layers": 1, "num_heads": 2}, "head": {"num_layers": 1}},
            "data": {"sequence_length": 40, "rows": 2, "sources": [source]},
            "training": {
                "steps": 8,
                "log_every": 1,
                "save_every": 3,
                "precision": "fp32",
                "ema": 0.5,
                "global_micro_batches": 2,
            }
            | training,
        }
    )


def losses(folder: Path) -> list:
    return [(r["step"], r["losses"], r["gradient_norm"]) for r in read_log(folder / "train.jsonl")]


@pytest.mark.parametrize("text", ["bytes", "bpe"])
def test_shards_path_and_memory_train_alike(root, tmp_path, text):
    """The same documents in the same order: the latents of a manifest are encoded in other batches, to rounding."""
    found = []
    parquet = {"path": str(root / "set.parquet"), "task": "text_to_image"}
    for number, source in enumerate(({"shards": str(root / "shards")}, parquet, {"manifest": str(root / "set.jsonl")})):
        train(recipe(root, source, text), tmp_path / str(number))
        found.append(losses(tmp_path / str(number)))
    assert found[0] == found[1]
    for (_, one, _), (_, two, _) in zip(found[0], found[2], strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    assert not any((tmp_path / number / "latents").exists() for number in "012")


def test_a_second_run_finds_what_the_first_encoded(root, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTLM_CACHE", str(tmp_path / "cache"))
    parquet = {"path": str(root / "set.parquet"), "task": "text_to_image"}
    train(recipe(root, parquet), tmp_path / "first")
    train(recipe(root, {"manifest": str(root / "set.jsonl")}), tmp_path / "memory")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.name != ".lock"}
    monkeypatch.setattr(feed, "encode", _only_looks(feed.encode))
    train(recipe(root, parquet, seed=3), tmp_path / "second")
    train(recipe(root, {"manifest": str(root / "set.jsonl")}, seed=3), tmp_path / "memory again")
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.name != ".lock"}


def test_media_that_a_signature_does_not_cover_are_encoded_for_each_run(root, tmp_path):
    """Lines name files: another picture in one of them would not be noticed."""
    lines = {"path": str(root / "set.jsonl")}
    for name in ("first", "second"):
        train(recipe(root, lines), tmp_path / name)
        assert [path.name for path in (tmp_path / name / "latents").glob("*/index.json")] == ["index.json"]
    rows = write_parquet(tmp_path / "paths.parquet", {"text": ["a"], "image": [str(root / "0.png")]})
    assert names_other_files(SourceConfig(path=str(rows), task="text_to_image"))
    assert not names_other_files(SourceConfig(path=str(root / "set.parquet"), task="text_to_image"))


def test_a_run_that_was_stopped_in_mid_epoch_goes_on_bit_for_bit(root, tmp_path, monkeypatch):
    source = {"path": str(root / "set.parquet"), "task": "image_to_text"}
    train(recipe(root, source), tmp_path / "whole")

    class Impatient(Trainer):
        def _step(self, clock):
            self._asked = self.progress.step == 3
            super()._step(clock)

    monkeypatch.setattr(module, "Trainer", Impatient)
    with pytest.raises(ProcessFailed):
        train(recipe(root, source), tmp_path / "parts")
    monkeypatch.undo()
    monkeypatch.setattr(feed, "encode", _only_looks(feed.encode))  # nothing is encoded again
    train(recipe(root, source), tmp_path / "parts", resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    weights = [(tmp_path / name / "model" / "ema.safetensors").read_bytes() for name in ("parts", "whole")]
    assert weights[0] == weights[1]


def _only_looks(whole):
    def check(job, **options):
        summary = whole(job, **options)
        assert summary.num_done_before == NUM
        return summary

    return check


def test_two_processes_and_one_that_goes_on_for_them(root, tmp_path):
    source = {"shards": str(root / "shards")}
    train(recipe(root, source), tmp_path / "one")
    train(recipe(root, source, steps=4), tmp_path / "two", processes=2)
    assert _close(losses(tmp_path / "two"), losses(tmp_path / "one")[:4])
    longer = recipe(root, source)
    train(recipe(root, source, steps=8, optimizer={"schedule": "constant"}), tmp_path / "flat")
    train(recipe(root, source, steps=4, optimizer={"schedule": "constant"}), tmp_path / "parts", processes=2)
    train(recipe(root, source, steps=8, optimizer={"schedule": "constant"}), tmp_path / "parts", resume=True)
    assert _close(losses(tmp_path / "parts"), losses(tmp_path / "flat"))
    assert longer.training.global_micro_batches == 2


def _close(one: list, two: list) -> bool:
    return all(a[1] == pytest.approx(b[1], rel=1e-4) for a, b in zip(one, two, strict=True))


def test_held_out_documents_are_a_share_and_never_learnt(root):
    for held_out, num in ((6, 6), (0.1, 6)):
        for place in ({"shards": str(root / "shards")}, {"path": str(root / "set.parquet"), "task": "text"}):
            config = SourceConfig(**place, held_out=held_out)
            learnt, kept = (sources.documents(config, split) for split in ("train", "held_out"))
            assert (len(learnt), len(kept)) == (NUM - num, num)
            whole = sources.documents(SourceConfig(**place))
            places = [whole.place(i) for i in range(NUM)]
            both = [d.place(i) for d in (learnt, kept) for i in range(len(d))]
            assert sorted(both) == sorted(places)
            assert [kept.place(i) for i in range(num)] == places[5::10]
            texts = [text for d in (learnt, kept) for text in texts_of(d)]
            assert sorted(texts) == sorted(word(i) for i in range(NUM))
    config = SourceConfig(shards=str(root / "shards"), held_out=3, limit=10)
    assert len(sources.documents(config)) == 10
    assert sources.documents(config).most_positions().shape == (10,)
    with pytest.raises(ValueError, match="held_out 60 of 60 documents leaves none to learn"):
        sources.documents(SourceConfig(shards=str(root / "shards"), held_out=NUM))


def test_held_out_documents_are_scored(root, tmp_path):
    source = {"path": str(root / "set.parquet"), "task": "image_to_text", "held_out": 5}
    train(recipe(root, source, sample_every=8), tmp_path / "run")
    (line,) = (tmp_path / "run" / "held_out.jsonl").read_text().splitlines()
    assert "held-out text" in json.loads(line)["losses"]


def test_shards_of_another_tokenizer_are_refused(root, tmp_path):
    other = small_tokenizers()["image"]
    other.latent_mean += 1
    other.save(tmp_path / "image")
    wrong = recipe(root, {"shards": str(root / "shards")})
    wrong = wrong.model_copy(
        update={"tokenizers": wrong.tokenizers.model_copy(update={"image": str(tmp_path / "image")})}
    )
    with pytest.raises(
        ValueError, match=r"shards: latents of another image tokenizer \(fingerprint \w+, the model's is"
    ):
        train(wrong, tmp_path / "run")
    none = wrong.model_copy(update={"tokenizers": wrong.tokenizers.model_copy(update={"image": None})})
    with pytest.raises(ValueError, match="holds latents of image, but the model has no image tokenizer"):
        train(none, tmp_path / "run")


def test_of_shards_only_documents_that_may_be_too_long_are_read_before_training(root, tmp_path, monkeypatch):
    read, whole = [], ShardDocuments.__getitem__
    monkeypatch.setattr(ShardDocuments, "__getitem__", lambda s, i: read.append(i) or whole(s, i))
    built = recipe(root, {"shards": str(root / "shards")})
    source = ShardDocuments(str(root / "shards"))
    for limit, expected in ((40, []), (12, [i for i in range(NUM) if word(i) == "red dog"])):
        assert list(feed._perhaps_longer(source, limit)) == expected
    assert read == []
    short = built.model_copy(update={"data": built.data.model_copy(update={"sequence_length": 13})})
    with pytest.raises(ValueError, match=r"shards: document 1 has 14 positions, but data\.sequence_length is 13"):
        train(short, tmp_path / "run")
    assert read == [1]


def test_a_text_tokenizer_learns_from_a_share_of_a_source_on_disk(root):
    found = ShardDocuments(str(root / "shards"))
    assert list(texts_of(found)) == [word(i) for i in range(NUM)]
    assert list(texts_of(found, most=4)) == [word(i) for i in (0, 15, 30, 45)]


def test_a_tokenizer_learns_from_a_path_through_worker_processes(root, tmp_path):
    picture_folder(tmp_path / "photos", 12)
    data = {"batch_size": 4, "flip": True, "crop": 0.2, "sources": [{"path": str(tmp_path / "photos")}]}
    tokenizer = {"image_size": 8, "patch_size": 4, "latent_dim": 4, "width": 16, "num_heads": 2}
    training = {"steps": 6, "log_every": 1, "precision": "fp32", "save_every": 2}
    found = []
    for workers in (0, 2):
        raw = {"kind": "image_tokenizer", "tokenizer": tokenizer, "data": data | {"workers": workers}}
        train(parse_recipe(raw | {"training": training}), tmp_path / str(workers))
        found.append(losses(tmp_path / str(workers)))
    assert found[0] == found[1]
    assert np.isfinite(found[0][-1][2])


@pytest.mark.parametrize("reader", ["speech", "semantic"])
def test_the_second_tokenizer_of_shards_is_checked_too(root, tmp_path, reader):
    folders = {"speech": small_tokenizers()["speech"], "semantic": small_tokenizers()["speech"]}
    (tmp_path / "0.flac").write_bytes(flac(0))
    path = write_lines(tmp_path / "a.jsonl", [{"segments": [{"speech": "0.flac"}]}])
    encode(Job((SourceConfig(path=str(path)),), {}, str(tmp_path / "out")), tokenizers=folders)
    shards = ShardDocuments(str(tmp_path / "out"))
    feed.check_tokenizers(shards, folders)
    other = small_tokenizers()["speech"]
    other.latent_mean += 1
    with pytest.raises(ValueError, match=rf"out: latents of another {reader} tokenizer \(fingerprint"):
        feed.check_tokenizers(shards, folders | {reader: other})
    rest = {name: each for name, each in folders.items() if name != reader}
    with pytest.raises(ValueError, match=f"holds latents of speech, but the model has no {reader} tokenizer"):
        feed.check_tokenizers(shards, rest)


def test_sources_of_other_columns_have_other_latents():
    configs = [SourceConfig(path="a.parquet", columns=columns) for columns in ({}, {"text": "a"}, {"text": "b"})]
    assert len({feed.source_slug(config) for config in configs}) == 3


def test_a_tokenizer_of_classes_reads_all_texts(root, monkeypatch):
    monkeypatch.setattr(latentlm, "TEXT_SAMPLE", 1)
    found = latentlm._text_tokenizer(TextTokenizerConfig(kind="classes"), [ShardDocuments(str(root / "shards"))])
    assert all(len(found.encode(word(i))) == 1 for i in range(3))
