"""Fixtures that many tests share, made once a session."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from small import small_model, small_tokenizers

from latentlm.generation.pipeline import Pipeline
from latentlm.model.latentlm import LatentLM


@pytest.fixture(scope="session", autouse=True)
def _threads():
    torch.set_num_threads(1)


@pytest.fixture
def notices(caplog, monkeypatch) -> Callable[[], list[str]]:
    """Returns what was said of sound since the last call, as if nothing had been said before in this process."""
    monkeypatch.setattr("latentlm.media.sound._named", {})

    def since() -> list[str]:
        said = [record.getMessage() for record in caplog.records if record.name == "latentlm"]
        caplog.clear()
        return said

    return since


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """Within the context that it returns the system takes no byte of a file beyond its first 1000."""

    @contextmanager
    def full() -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return full


@pytest.fixture(scope="session")
def tokenizers() -> dict:
    return small_tokenizers()


@pytest.fixture(scope="session")
def model(tokenizers) -> LatentLM:
    return small_model(tokenizers).eval()


@pytest.fixture(scope="session")
def pipeline(model, tokenizers) -> Pipeline:
    return Pipeline(model, tokenizers)
