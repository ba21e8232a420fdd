"""Fixtures that many tests share; the order of tests, their random numbers, and what a skip may be.

docs/testing.md says how to run them.
"""

import os
import random
import resource
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # `load` takes a GPU where there is one; the tests compare results of the CPU

import numpy as np
import pytest
import torch
from margins import Figure
from small import small_model, small_tokenizers

from latentlm.data.cache_dir import default_cache_dir
from latentlm.errors import Notice
from latentlm.generation.pipeline import Pipeline
from latentlm.model.latentlm import LatentLM

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("latentlm")
    group.addoption("--shuffle", type=int, metavar="SEED", help="files, and the tests within each, in an order by SEED")
    group.addoption("--all-packages", action="store_true", help="a test skipped for want of a package fails instead")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests have a cache folder of their own: latents of other sessions would hide a change. Spoken clips are kept."""
    folder = tmp_path_factory.mktemp("cache")
    for spoken in default_cache_dir().glob("speech-*.npz"):
        (folder / spoken.name).symlink_to(spoken.resolve())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTLM_CACHE", str(folder))
        yield


# ------------------------------------------------------------------ order and random numbers


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "margin" in getattr(item, "fixturenames", ()):
            item.add_marker("margin")
    seed = config.getoption("shuffle")
    if seed is not None:
        items[:] = shuffled(items, seed)


def shuffled(items: list[pytest.Item], seed: int) -> list[pytest.Item]:
    """Returns the tests by file; the order of files and of the tests in each depends on `seed` alone."""
    order = random.Random(seed)
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(str(item.path), []).append(item)
    groups = list(files.values())
    order.shuffle(groups)
    for group in groups:
        order.shuffle(group)
    return [item for group in groups for item in group]


@pytest.hookimpl(tryfirst=True)  # before any fixture is made
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The global generators begin anew, so that what a test draws does not depend on the tests before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)


# ------------------------------------------------------------------ skips


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return without_missing_packages((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return without_missing_packages((yield), collector.config)


def without_missing_packages(report: Report, config: pytest.Config) -> Report:
    """Returns the report; with --all-packages that of `pytest.importorskip` on a missing package is a failure."""
    if report.skipped and isinstance(report.longrepr, tuple) and config.getoption("all_packages"):
        reason = report.longrepr[2]
        if "could not import" in reason:
            report.outcome, report.longrepr = "failed", f"{reason}; --all-packages allows no skip for want of a package"
    return report


# ------------------------------------------------------------------ fixtures


@pytest.fixture
def margin(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Returns a check that holds a figure against its bound, and records it (margins.py)."""

    def check(name: str, value: float, *, at_most: float | None = None, at_least: float | None = None) -> None:
        assert (at_most is None) != (at_least is None), "a figure has one bound"
        bound = at_least if at_most is None else at_most
        figure = Figure(request.node.nodeid, name, float(value), float(bound), at_most is not None)
        figure.record()
        assert figure.holds, str(figure)

    return check


@pytest.fixture(scope="session", autouse=True)
def _threads():
    torch.set_num_threads(1)


@pytest.fixture
def notices(monkeypatch) -> Iterator[Callable[[], list[str]]]:
    """Returns the notices given since the last call, as if none had been given before in this process."""
    monkeypatch.setattr("latentlm.media.remarks._named", {})

    def since() -> list[str]:
        said = [str(warning.message) for warning in caught if issubclass(warning.category, Notice)]
        caught.clear()
        return said

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Notice)
        yield since


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
