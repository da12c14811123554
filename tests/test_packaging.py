"""The mapping in pyproject.toml is complete, the pins fit it, and the wheel holds everything."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS: dict[str, str] = PYPROJECT["tool"]["setuptools"]["package-dir"]


def pins() -> dict[str, str]:
    """Normalised names in constraints.txt and the versions they are pinned to."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normalised(name): version for name, version in pairs}


def normalised(name: str) -> str:
    """As the package index compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required() -> set[str]:
    """Every distribution that pyproject.toml names."""
    project = PYPROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    groups += [*PYPROJECT["dependency-groups"].values(), PYPROJECT["build-system"]["requires"]]
    return {normalised(re.split(r"[ <>=~\[;]", item)[0]) for group in groups for item in group}


def test_every_package_is_listed() -> None:
    """setuptools would silently leave an unlisted folder out of the wheel."""
    roots = {folder.split("/")[0] for folder in FOLDERS.values()}
    on_disk = {
        str(init.parent.relative_to(ROOT))
        for root in roots
        for init in (ROOT / root).rglob("__init__.py")
    }
    assert on_disk == set(FOLDERS.values())
    assert set(FOLDERS) == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_no_extra_called_instruments() -> None:
    """OTel's loader reads that extra as: every library in it must be installed."""
    assert "instruments" not in PYPROJECT["project"]["optional-dependencies"]


def test_everything_named_is_pinned() -> None:
    """A fresh clone gets the set that was tested, and no pin says where to fetch from."""
    assert required() - set(pins()) == set()
    assert not re.search(r"://|@|^-", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_the_telemetry_pins_are_one_family() -> None:
    """OpenTelemetry's packages pin each other exactly: one 1.x and one 0.xb for all of them."""
    versions = {v for name, v in pins().items() if name.startswith("opentelemetry-")}
    assert len({version for version in versions if version.startswith("1.")}) == 1
    assert len({version for version in versions if version.startswith("0.")}) == 1
    assert len(versions) == 2


def test_no_rival_is_installed_beside_us() -> None:
    """With opentelemetry-distro there, the first entry point enumerated would win."""
    assert "opentelemetry-distro" not in required()


@pytest.mark.timeout(180)
def test_the_wheel_holds_every_module_and_file(tmp_path: Path) -> None:
    """What is in the folders is in the wheel; nothing else is."""
    source = tmp_path / "source"
    # A copy: a build leaves its own copies behind, and they would hide a module that is gone.
    for name in sorted({folder.split("/")[0] for folder in FOLDERS.values()}):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True)

    (wheel,) = tmp_path.glob("stagewatch-*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = set()
    for package, folder in FOLDERS.items():
        files = (path for path in (ROOT / folder).iterdir() if path.is_file())
        expected |= {f"{package.replace('.', '/')}/{path.name}" for path in files}
    assert packed == expected


@pytest.mark.parametrize(
    ("group", "name", "target"),
    [
        (group, name, target)
        for group, entries in PYPROJECT["project"]["entry-points"].items()
        for name, target in entries.items()
    ]
    + [("console_scripts", *item) for item in PYPROJECT["project"]["scripts"].items()],
)
def test_entry_points_can_be_loaded(group: str, name: str, target: str) -> None:
    """A typing error here would only show as a warning in somebody's job."""
    module, _, attribute = target.partition(":")
    code = f"import importlib; getattr(importlib.import_module({module!r}), {attribute!r})"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
