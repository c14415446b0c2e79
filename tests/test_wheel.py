"""The wheel: it holds every file of the package, and its commands work in an empty folder without the repository."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
READ_ALL = """
import hashlib, json, sys
from importlib import resources
package = resources.files("mode_ray")
print(json.dumps({name: hashlib.sha256((package / name).read_bytes()).hexdigest() for name in json.load(sys.stdin)}))
"""


def package_files() -> dict[str, Path]:
    """Every file of the package in the tree, by its path below mode_ray/."""
    folder = REPOSITORY / "mode_ray"
    files = (file for file in folder.rglob("*") if file.is_file() and file.parent.name != "__pycache__")
    return {file.relative_to(folder).as_posix(): file for file in files}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    shutil.copytree(REPOSITORY / "mode_ray", source / "mode_ray", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    subprocess.run([sys.executable, "-c", BUILD, folder], cwd=source, check=True, capture_output=True)
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*pip, "--target", folder, wheel], check=True)
    return folder


def run(installed: Path, folder: Path, *command: str | Path, given: str = "") -> str:
    """What a command prints that is run from the installed wheel, in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {name.removeprefix("mode_ray/") for name in names if name.startswith("mode_ray/")}
    assert inside == set(package_files())
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"mode_ray"}


def test_the_package_is_imported_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    said = run(installed, tmp_path, sys.executable, "-c", "import mode_ray; print(mode_ray.__file__)")
    assert Path(said.strip()) == installed / "mode_ray/__init__.py"


def test_every_data_file_is_read_through_importlib(installed: Path, tmp_path: Path) -> None:
    data = {name: file for name, file in package_files().items() if file.suffix != ".py"}
    said = run(installed, tmp_path, sys.executable, "-c", READ_ALL, given=json.dumps(list(data)))
    assert json.loads(said) == {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in data.items()}


def test_the_help_lists_the_commands(installed: Path, tmp_path: Path) -> None:
    said = run(installed, tmp_path, installed / "bin/mode-ray", "--help")
    assert all(command in said for command in ("run", "train", "serve", "cluster-config", "demo"))


def test_launch_files_are_made_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    run(installed, tmp_path, installed / "bin/mode-ray", "cluster-config")
    committed = REPOSITORY / "cluster_configs"
    expected = {file.relative_to(committed) for file in committed.rglob("*") if file.is_file()} - {Path("Dockerfile")}
    made = tmp_path / "cluster_configs"
    assert {file.relative_to(made) for file in made.rglob("*") if file.is_file()} == expected
    for name in expected:
        assert (made / name).read_bytes() == (committed / name).read_bytes(), name
