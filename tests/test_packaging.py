"""What is in the wheel, and that the lock files follow pyproject.toml."""

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import wfe_persistence_client

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The project as a wheel, built by the installed hatchling without a network."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", out],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_has_every_module_proto_and_migration(wheel: zipfile.ZipFile) -> None:
    expected = {
        str(file.relative_to(ROOT / source))
        for source in ("server", "client_py", "cli_py", "console", "protos")
        for file in (ROOT / source).rglob("*")
        if file.suffix
        in {".py", ".pyi", ".proto", ".sql", ".typed", ".js", ".css", ".svg", ".html"}
    }
    assert "wfe/persistence/v1/workflow.proto" in expected
    assert expected <= set(wheel.namelist())


def test_the_wheel_has_nothing_else_but_its_metadata(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    metadata = f"wfe_persistence-{version('wfe-persistence')}.dist-info"
    assert top == {
        "wfe",
        "wfe_persistence",
        "wfe_persistence_cli",
        "wfe_persistence_client",
        "wfe_persistence_console",
        metadata,
    }


@pytest.mark.parametrize("package", ["wfe", "wfe_persistence_client"])
def test_what_hosts_import_is_typed(wheel: zipfile.ZipFile, package: str) -> None:
    assert f"{package}/py.typed" in wheel.namelist()


def test_the_client_has_the_version_of_the_distribution(wheel: zipfile.ZipFile) -> None:
    assert wheel.filename is not None
    assert Path(wheel.filename).name.split("-")[1] == wfe_persistence_client.__version__


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of pyproject.toml and the lock files."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "constraints", tmp_path / "constraints")
    return tmp_path


def check(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "constraints" / "lock.py"), "check"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_lock_files_are_current(copy: Path) -> None:
    assert check(copy).returncode == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"grpcio>=1.76"', '"grpcio>=1.77"'),
        ('"hatchling>=1.27"', '"hatchling>=1.28"'),
        ('"ruff>=0.11"', '"ruff>=0.11", "pyflakes"'),
        ('"mypy-protobuf==3.7.0"', '"mypy-protobuf==3.6.0"'),
        ('requires-python = ">=3.11"', 'requires-python = ">=3.12"'),
    ],
)
def test_other_requirements_want_a_new_lock(copy: Path, old: str, new: str) -> None:
    pyproject = copy / "pyproject.toml"
    text = pyproject.read_text()
    assert text.count(old) == 1
    pyproject.write_text(text.replace(old, new))
    result = check(copy)
    assert result.returncode == 1
    assert "./run lock" in result.stderr


def test_a_missing_lock_file_is_noticed(copy: Path) -> None:
    (copy / "constraints" / "lowest.txt").unlink()
    assert "lowest.txt" in check(copy).stderr


@pytest.mark.parametrize("file", sorted((ROOT / "constraints").glob("*.txt")), ids=lambda f: f.name)
def test_a_lock_file_pins_by_hash_and_names_no_index(file: Path) -> None:
    entries = file.read_text().replace("\\\n", "").splitlines()[2:]
    assert entries
    for entry in entries:
        assert "==" in entry
        assert "--hash=sha256:" in entry
        assert "://" not in entry
