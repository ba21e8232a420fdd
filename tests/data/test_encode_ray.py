"""`--engine ray`: two workers on this machine, one of which is killed; the shards are those of one process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from sets import picture_parquet, word
from test_encode import contents, job

from latentlm.config import SourceConfig
from latentlm.data.encoding import on_ray as encode_ray
from latentlm.data.encoding.plan import Job
from latentlm.data.encoding.workers import encode

pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")

NUM = 1100


class SlowActor(encode_ray.PartActor):
    """Leaves its process id behind, and dies in the middle of the first part that it is given, once for all actors."""

    def __call__(self, row):
        folder = Path(self._encoder.job.out).parent
        (folder / f"pid-{os.getpid()}").touch()
        try:
            (folder / "killed").touch(exist_ok=False)
        except FileExistsError:
            return super().__call__(row)
        whole = self._encoder._count

        def count(document):
            os.kill(os.getpid(), signal.SIGKILL)
            whole(document)

        self._encoder._count = count
        return super().__call__(row)


@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.timeout(600)
def test_two_workers_one_of_which_is_killed(tokenizers, tmp_path, monkeypatch):
    tokenizers["image"].save(tmp_path / "image")
    path = picture_parquet(tmp_path / "a.parquet", NUM)
    saved = {"image": str(tmp_path / "image")}
    encode(job(path, tmp_path / "alone", saved))
    (tmp_path / "ray").mkdir()
    monkeypatch.setattr(encode_ray, "PartActor", SlowActor)
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(":")]
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, paths)))
    before = {child.pid for child in psutil.Process().children()}
    summary = encode(job(path, tmp_path / "ray" / "out", saved), processes=2, engine="ray")
    assert summary.index.num_documents == NUM
    assert (tmp_path / "ray" / "killed").exists()
    assert len(list((tmp_path / "ray").glob("pid-*"))) == 3  # two, and the one that took the place of the killed one
    assert contents(tmp_path / "ray" / "out") == contents(tmp_path / "alone")
    assert [text for text, _ in contents(tmp_path / "ray" / "out")] == [word(i) for i in range(NUM)]
    assert {child.pid for child in psutil.Process().children()} <= before  # nothing is left running


def test_paths_on_this_machine_are_sent_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sources = (SourceConfig(path="a-*.tar", task="text"), SourceConfig(path="s3://b/c.tar", task="text"))
    sent = encode_ray._absolute(Job(sources, {"image": "runs/image"}, "out"))
    assert [config.path for config in sent.sources] == [f"{tmp_path}/a-*.tar", "s3://b/c.tar"]
    assert (sent.tokenizers, sent.out) == ({"image": f"{tmp_path}/runs/image"}, f"{tmp_path}/out")
