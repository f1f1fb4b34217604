"""The wheel is the tree, and the lock is what pyproject.toml asks for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
PACKAGE_DIRS = PROJECT["tool"]["setuptools"]["package-dir"]
NOT_SHIPPED = {".pyc", ".md"}

pytestmark = pytest.mark.xdist_group("wheel")  # one worker, so that the wheel is built once


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder that a wheel should hold, by its path there."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in NOT_SHIPPED)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, by way of a source archive, from a copy: setuptools writes into the tree that it builds."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, copy / name)
    for room in PACKAGE_DIRS.values():
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "."]
    # pip and setuptools must not reach for a network, nor read this machine's settings.
    environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files as an install would lay them out."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_every_room_is_a_package():
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert {f"mnet_search.{room}": room for room in rooms} == PACKAGE_DIRS
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(PACKAGE_DIRS)


@pytest.mark.parametrize("package", sorted(PACKAGE_DIRS))
def test_the_wheel_holds_each_room_as_it_stands(unpacked: Path, package: str):
    shipped = contents(unpacked.joinpath(*package.split(".")))
    ours = contents(ROOT / PACKAGE_DIRS[package])
    assert sorted(shipped) == sorted(ours)
    assert [name for name in ours if shipped[name] != ours[name]] == []
    assert "py.typed" in shipped


def test_the_wheel_holds_nothing_else(unpacked: Path):
    tops = {path.name for path in unpacked.iterdir()}
    assert tops == {"mnet_search", f"mnet_search-{PROJECT['project']['version']}.dist-info"}
    assert {path.name for path in (unpacked / "mnet_search").iterdir()} == set(PACKAGE_DIRS.values())


def test_the_wheel_holds_the_spaces(unpacked: Path):
    assert (unpacked / "mnet_search" / "spaces" / "mobilenet.yaml").is_file()


def test_the_command_starts_from_the_wheel(unpacked: Path, tmp_path: Path):
    (points,) = unpacked.glob("*.dist-info/entry_points.txt")
    parser = ConfigParser()
    parser.read(points, encoding="utf-8")
    assert dict(parser["console_scripts"]) == {"mnet-search": "mnet_search.search.cli:main"}
    # The unpacked wheel comes before the editable install on the path; the program prints from which of them it ran.
    program = "import sys; from mnet_search.search import cli; sys.stderr.write(cli.__file__); cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(str(unpacked))
    assert "Usage" in done.stdout


def locked() -> dict[str, list[str]]:
    """Pinned versions by name; a name has several where they differ by marker."""
    pins: dict[str, list[str]] = {}
    for line in LOCK:
        name, version = line.partition(";")[0].strip().split("==")
        pins.setdefault(canonicalize_name(name), []).append(version)
    return pins


def test_the_lock_is_pins_alone():
    # A host, an option or a path would tie the install to the machine that wrote the lock.
    pin = re.compile(r"[a-z0-9][a-z0-9.-]*==[a-z0-9.!+]+( ; [a-z0-9_.'<>=!() ]+)?", re.IGNORECASE)
    assert [line for line in LOCK if not pin.fullmatch(line)] == []
    assert [line for line in LOCK if re.search(r"://|index-url|file:|\+(cpu|cu\d)", line)] == []


def test_the_lock_satisfies_pyproject():
    project = PROJECT["project"]
    wanted = [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["dev"])]
    pins = locked()
    unmet = [
        str(requirement)
        for requirement in wanted
        if not pins.get(canonicalize_name(requirement.name))
        or not all(requirement.specifier.contains(version) for version in pins[canonicalize_name(requirement.name)])
    ]
    assert unmet == [], "requirements.lock is older than pyproject.toml: run `make lock`"
