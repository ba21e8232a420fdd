"""What people install: everything the package needs at run time is in the wheel, and nothing else."""

import tomllib
import zipfile
from pathlib import Path

import pytest

import latentlm

ROOT = Path(latentlm.__file__).parents[1]
MEGABYTE = 1024 * 1024

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not a source tree")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    from hatchling.builders.wheel import WheelBuilder

    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        yield archive


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    ours = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "latentlm").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in {".pyc", ".tmp", ".swp"}
    }
    names = {name for name in wheel.namelist() if not name.startswith("latentlm-")}
    assert names == ours


def test_data_recipes_and_licences_are_among_them(wheel):
    names = set(wheel.namelist())
    assert {"latentlm/recipes/demo.yaml", "latentlm/data/embedded/emoji.png"} <= names
    for media, licence in (("digits.npz", "digits.LICENSE.txt"), ("emoji.png", "emoji.LICENSE.txt")):
        assert {f"latentlm/data/embedded/{media}", f"latentlm/data/embedded/{licence}"} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_no_pickle_and_a_packaged_model_of_25_megabytes_at_most(wheel):
    assert not [name for name in wheel.namelist() if name.endswith((".pt", ".pth", ".pkl", ".bin", ".ckpt"))]
    tiny = [entry for entry in wheel.infolist() if entry.filename.startswith("latentlm/pretrained/tiny/")]
    assert {"config.json", "model.safetensors"} <= {Path(entry.filename).name for entry in tiny}
    assert sum(entry.compress_size for entry in tiny) <= 25 * MEGABYTE


def test_the_metadata(wheel):
    info = f"latentlm-{latentlm.__version__}.dist-info"
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert f"\nVersion: {latentlm.__version__}\n" in metadata
    assert "\nLicense-Expression: MIT\n" in metadata
    for extra in ("demo", "eval", "track", "finetune", "dev"):
        assert f"\nProvides-Extra: {extra}\n" in metadata
    assert "latentlm = latentlm.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_every_dependency_that_the_targets_install_is_pinned():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(r.name): r for r in (Requirement(line) for line in lines if line and line[0] != "#")}
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(r for name in ("demo", "eval", "track", "finetune", "dev") for r in extras[name]),
    ]
    for requirement in map(Requirement, wanted):
        pin = pinned[canonicalize_name(requirement.name)]
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert exact.version in requirement.specifier
        assert "+" not in exact.version
