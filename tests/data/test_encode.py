"""`encode`: every document once, its latents those of the tokenizer; kills, errors and other plans."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch
from sets import picture, picture_folder, picture_parquet, png, word, write_lines, write_parquet

from latentlm.config import SourceConfig
from latentlm.data.encoding import parts as module
from latentlm.data.encoding.plan import Job
from latentlm.data.encoding.workers import encode
from latentlm.data.latent_files import media_hash
from latentlm.data.readers.files import Location
from latentlm.data.shards import ShardDocuments, array_record
from latentlm.errors import UserError
from latentlm.media.picture import image_to_rgb
from latentlm.types import Text

NUM = 700


@pytest.fixture(scope="module")
def saved(tokenizers, tmp_path_factory) -> dict[str, str]:
    """Modality -> folder of its tokenizer."""
    root = tmp_path_factory.mktemp("tokenizers")
    for modality in ("image", "speech"):
        tokenizers[modality].save(root / modality)
    return {modality: str(root / modality) for modality in ("image", "speech")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return picture_parquet(tmp_path_factory.mktemp("set") / "a.parquet", NUM, group=50)


def job(path, out, saved, **fields) -> Job:
    task = fields.pop("task", "text_to_image")
    return Job((SourceConfig(path=str(path), task=task),), saved, str(out), **fields)


def contents(out) -> list[tuple[str, list]]:
    return [(d.segments[0].text, d.segments[1].content.mean.tolist()) for d in ShardDocuments(str(out))]


@pytest.fixture(scope="module")
def whole(pictures, saved, tmp_path_factory) -> Path:
    """Shards that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    encode(job(pictures, out, saved))
    return out


def test_every_document_is_there_once_with_the_latents_of_the_tokenizer(whole, tokenizers):
    found = contents(whole)
    assert [text for text, _ in found] == [word(i) for i in range(NUM)]
    expected = tokenizers["image"].encode([image_to_rgb(picture(i)) for i in range(NUM)])
    means = torch.tensor([mean for _, mean in found])
    torch.testing.assert_close(means, torch.stack([each.mean for each in expected]), rtol=1e-5, atol=1e-5)
    latents = ShardDocuments(str(whole))[5].segments[1].content
    assert latents.posterior == "sigma"
    assert torch.equal(latents.std, expected[5].std)


def test_the_index_says_what_is_there(whole, tokenizers):
    index = ShardDocuments(str(whole)).index
    assert index.num_documents == NUM
    assert index.num_segments == {"image": NUM, "text": NUM}
    assert index.num_latents == {"image": 4 * NUM}
    assert index.longest == 1 + len("red dog") + 2 + 4
    assert index.tokenizers["image"].fingerprint == tokenizers["image"].fingerprint()
    assert index.tokenizers["image"].latent_dim == 6
    assert [count for _, count in index.parts] == [256, 256, NUM - 512]
    names = sorted(path.name for path in whole.iterdir() if not path.name.startswith("."))
    assert names == ["index.json", "lengths.npy", *(name for name, _ in index.parts)]


def test_a_medium_has_the_key_of_its_content_wherever_it_lies(tmp_path, saved):
    keys = []
    for number, path in enumerate((picture_folder(tmp_path / "photos", 1), picture_parquet(tmp_path / "a.parquet", 1))):
        encode(job(path, tmp_path / str(number), saved))
        reader = array_record().ArrayRecordReader(str(tmp_path / str(number) / "part-000000.array_record"))
        (record,) = reader.read(0, 1)
        keys.append(json.loads(record[4 : 4 + int.from_bytes(record[:4], "little")])["segments"][1]["key"])
    assert keys == [media_hash("image", [image_to_rgb(picture(0))])] * 2


def test_equal_media_are_encoded_once(tmp_path, saved, tokenizers, monkeypatch):
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "1.png").write_bytes(png(0))
    lines = [{"segments": [{"image": f"{i % 2}.png", "condition": True}, {"text": f"text {i}"}]} for i in range(6)]
    path = write_lines(tmp_path / "a.jsonl", lines)
    calls, whole = [], tokenizers["image"].encode
    monkeypatch.setattr(tokenizers["image"], "encode", lambda items: calls.extend(items) or whole(items))
    encode(job(path, tmp_path / "out", saved, task="all"), tokenizers={"image": tokenizers["image"]})
    assert len(calls) == 1
    assert len({d.segments[0].content.mean.sum().item() for d in ShardDocuments(str(tmp_path / "out"))}) == 1


def test_several_processes_write_the_same_shards(pictures, saved, whole, tmp_path):
    encode(job(pictures, tmp_path / "out", saved), processes=2)
    for path in whole.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


PROGRAM = """
import sys
from latentlm.config import SourceConfig
from latentlm.data.encoding import parts as encode
from latentlm.data.encoding.plan import Job
from latentlm.data.encoding.workers import encode as run
path, out, image, processes, slow = sys.argv[1:]
if slow != "-":
    import time
    whole = encode.pack_record
    encode.pack_record = lambda *a: time.sleep(float(slow)) or whole(*a)
run(Job((SourceConfig(path=path, task="text_to_image"),), {"image": image}, out), processes=int(processes))
"""


def test_a_killed_encoding_goes_on_and_encodes_nothing_twice(pictures, saved, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, pictures, out, saved["image"], "1", "0.004"])
    first = out / "part-000000.json"
    _wait(first.is_file, process)
    time.sleep(0.3)  # in the middle of the second part
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "index.json").exists()
    with pytest.raises(ValueError, match="no finished shards"):
        ShardDocuments(str(out))
    written = (out / "part-000000.array_record").stat().st_mtime_ns
    parts, encoder = [], module.PartEncoder.__call__
    monkeypatch.setattr(
        module.PartEncoder, "__call__", lambda s, part, r: parts.append(part.number) or encoder(s, part, r)
    )
    again = job(pictures, out, {"image": saved["image"]})
    summary = encode(again)
    assert parts == [1, 2]
    assert summary.num_done_before == 256
    assert (out / "part-000000.array_record").stat().st_mtime_ns == written
    assert contents(out) == contents(whole)
    left = {path.name for path in out.iterdir()} - {path.name for path in whole.iterdir()}
    assert all(name.startswith(".") for name in left)  # what the kill left unfinished, hidden
    parts.clear()
    assert encode(again).num_done_before == NUM  # complete: nothing is left to do
    assert parts == []


def _wait(condition, process) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.01)


def test_a_killed_worker_is_said_and_the_rest_is_kept(pictures, saved, tmp_path, monkeypatch):
    from latentlm.data.encoding import workers as encode_workers

    victims = []
    listen = encode_workers._listen

    def kill_after_the_first_part(worker):
        kind, value = listen(worker)
        if kind == "done" and not victims:
            victims.append(worker.process.pid)
            os.kill(worker.process.pid, signal.SIGKILL)
        return kind, value

    monkeypatch.setattr(encode_workers, "_listen", kill_after_the_first_part)
    with pytest.raises(
        ValueError, match=r"a worker process was ended by signal 9 \(SIGKILL\); the same command continues"
    ):
        encode(job(pictures, tmp_path / "out", saved), processes=2)
    assert list((tmp_path / "out").glob("part-*.json"))
    monkeypatch.undo()
    encode(job(pictures, tmp_path / "out", saved), processes=2)
    assert [text for text, _ in contents(tmp_path / "out")] == [word(i) for i in range(NUM)]


def broken(tmp_path) -> Path:
    values = [png(i) for i in range(300)]
    values[7], values[290] = b"nothing", None
    return write_parquet(tmp_path / "a.parquet", {"image": values, "text": [word(i) for i in range(300)]}, group=50)


@pytest.mark.parametrize("processes", [1, 2])
def test_by_default_it_stops_at_the_first_that_cannot_be_read(tmp_path, saved, processes):
    path = broken(tmp_path)
    with pytest.raises(ValueError, match=r"a\.parquet: row (7: image: not a readable image|290: image: missing)"):
        encode(job(path, tmp_path / "out", saved), processes=processes)
    summary = encode(job(path, tmp_path / "out", saved, on_error="skip"), processes=processes)  # goes on, with the same
    assert summary.index.num_documents == 298
    assert summary.index.num_skipped == 2
    assert {tuple(places) for places in summary.skipped.values()} == {(f"{path}: row 7",), (f"{path}: row 290",)}
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [line["place"] for line in lines] == [f"{path}: row 7", f"{path}: row 290"]
    assert lines[1]["reason"] == "image: missing (null)"
    assert [text for text, _ in contents(tmp_path / "out")] == [word(i) for i in range(300) if i not in (7, 290)]


def test_what_a_tokenizer_refuses_is_named_alone(tmp_path, saved, tokenizers, monkeypatch):
    whole = tokenizers["image"].batch

    def refuse(media):
        if any(item.tobytes() == picture(5).tobytes() for item in media):
            raise UserError("too red")
        return whole(media)

    monkeypatch.setattr(tokenizers["image"], "batch", refuse)
    path = picture_parquet(tmp_path / "a.parquet", 9)
    with pytest.raises(ValueError, match=r"a\.parquet: row 5: too red"):
        encode(job(path, tmp_path / "out", saved), tokenizers={"image": tokenizers["image"]})
    summary = encode(job(path, tmp_path / "out", saved, on_error="skip"), tokenizers={"image": tokenizers["image"]})
    assert summary.skipped == {"too red": [f"{path}: row 5"]}
    assert len(ShardDocuments(str(tmp_path / "out"))) == 8


def test_latents_that_the_number_type_cannot_hold_are_named_with_their_document(
    tmp_path, saved, tokenizers, monkeypatch
):
    whole, red = tokenizers["image"].encode, picture(5).tobytes()

    def encode_too_large(items):
        found = whole(items)
        return [replace(y, mean=y.mean * 1e6) if x.tobytes() == red else y for x, y in zip(items, found, strict=True)]

    monkeypatch.setattr(tokenizers["image"], "encode", encode_too_large)
    path, given = picture_parquet(tmp_path / "a.parquet", 9), {"image": tokenizers["image"]}
    with pytest.raises(ValueError, match=r"a\.parquet: row 5: latents are not finite numbers in float16"):
        encode(job(path, tmp_path / "out", saved, dtype="float16"), tokenizers=given)
    summary = encode(job(path, tmp_path / "out", saved, dtype="float16", on_error="skip"), tokenizers=given)
    assert summary.skipped == {"latents are not finite numbers in float16": [f"{path}: row 5"]}
    assert len(ShardDocuments(str(tmp_path / "out"))) == 8


def test_nothing_that_can_be_read_is_an_error(tmp_path, saved):
    path = write_parquet(tmp_path / "a.parquet", {"image": [b"x", b"y"], "text": ["a", "b"]})
    with pytest.raises(ValueError, match=r"none of 2 documents can be read; .*row 0: image: not a readable image"):
        encode(job(path, tmp_path / "out", saved, on_error="skip"))


def test_another_plan_in_the_same_folder_is_refused(whole, pictures, saved, tmp_path, tokenizers):
    with pytest.raises(ValueError, match="holds shards made from other dtype; choose another folder"):
        encode(job(pictures, whole, saved, dtype="float16"))
    with pytest.raises(ValueError, match="holds shards made from other sources"):
        encode(job(pictures, whole, saved, task="image_to_text"))
    other = picture_parquet(tmp_path / "a.parquet", NUM, first=1, group=50)
    with pytest.raises(ValueError, match="holds shards made from other sources"):
        encode(job(other, whole, saved))
    same = picture_parquet(tmp_path / "same.parquet", 3)
    encode(job(same, tmp_path / "shards", saved))
    later = same.stat().st_mtime_ns + 10**9
    os.utime(same, ns=(later, later))  # an edit that leaves the size
    with pytest.raises(ValueError, match="holds shards made from other sources"):
        encode(job(same, tmp_path / "shards", saved))
    with pytest.raises(ValueError, match="holds shards made from other tokenizers"):
        encode(job(pictures, whole, {}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="mine: is not empty, and holds no shards"):
        encode(job(pictures, tmp_path / "mine", saved))


def test_half_precision_halves_the_size_and_keeps_the_latents(whole, pictures, saved, tmp_path):
    encode(job(pictures, tmp_path / "out", saved, dtype="float16"))
    for (_, half), (_, full) in zip(contents(tmp_path / "out"), contents(whole), strict=True):
        torch.testing.assert_close(torch.tensor(half), torch.tensor(full), rtol=1e-3, atol=1e-4)


def test_two_sources_and_a_url_to_write_to(tmp_path, saved, monkeypatch):
    monkeypatch.setenv("LATENTLM_CACHE", str(tmp_path / "cache"))
    picture_parquet(tmp_path / "a.parquet", 5)
    path = write_lines(tmp_path / "b.jsonl", [{"segments": [{"text": f"line {i}"}]} for i in range(3)])
    configs = (SourceConfig(path=str(tmp_path / "a.parquet"), task="text"), SourceConfig(path=str(path)))
    url = f"memory://{tmp_path.name}/out"
    encode(Job(configs, {}, url))
    found = [d.segments[0].text for d in ShardDocuments(url)]
    assert found == [word(i) for i in range(5)] + [f"line {i}" for i in range(3)]
    assert all(isinstance(s, Text) for d in ShardDocuments(url) for s in d.segments)
    assert sorted(name.rpartition("/")[2] for name in fsspec.filesystem("memory").ls(Location.of(url).path, False)) == [
        "index.json",
        "lengths.npy",
        "part-000000.array_record",
        "part-000001.array_record",
    ]


def test_media_without_a_tokenizer_are_named(pictures, tmp_path):
    with pytest.raises(ValueError, match=r"a\.parquet: row 0: documents contain image, but the model has no image"):
        encode(job(pictures, tmp_path / "out", {}))


def test_two_encodings_do_not_write_into_one_folder(pictures, saved, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, pictures, out, saved["image"], "1", "0.05"])
    try:
        _wait((out / "plan.json").is_file, process)
        with pytest.raises(ValueError, match="another encoding is writing here"):
            encode(job(pictures, out, saved))
    finally:
        process.kill()
        process.wait()


def test_an_encoding_may_wait_for_another_into_the_same_folder(pictures, saved, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    with open(out / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as another process
        release = threading.Timer(0.3, fcntl.flock, (lock, fcntl.LOCK_UN))
        release.start()
        assert encode(job(pictures, out, saved), wait=True).index.num_documents == NUM
        release.join()
    assert "another run encodes the same data; waiting for it" in capsys.readouterr().err
