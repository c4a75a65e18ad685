"""The packed crate, npm package, jar and Go module, each used by a program that has nothing else of
this repository: consumers/ has them, and they all do the same."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import psycopg
import pytest

from packages.build import run
from tests.hosts.pages import ROOT
from tests.hosts.test_rust import CRATE, target_dir
from tests.support.server import ServerProcess

#: The first build of the Rust program takes minutes.
pytestmark = pytest.mark.timeout(1800)

CONSUMERS: Final = Path(__file__).parent / "consumers"
VERSION: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

STORED: Final = '{"serial": 9007199254740993} -9007199254740993'


@pytest.fixture(scope="module")
def server(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "log"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE consumers")
    url = postgres_url.replace("/postgres?", "/consumers?")
    with ServerProcess(log, "--db-url", url) as process:
        yield process.address
    assert "bug" not in process.log(), process.log()


@pytest.fixture
def consumer(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a program, by its name."""
    shutil.copytree(CONSUMERS / request.param, tmp_path / "consumer")
    return tmp_path / "consumer"


@pytest.mark.parametrize("consumer", ["typescript"], indirect=True)
def test_the_npm_package(consumer: Path, built: Callable[[str], Path], server: str) -> None:
    [package] = built("npm").glob("*.tgz")
    with tarfile.open(package) as tar:
        names = set(tar.getnames())
        file = tar.extractfile("package/package.json")
        assert file
        manifest = json.load(file)
    assert manifest["version"] == VERSION
    assert names >= {"package/LICENSE", "package/README.md", "package/dist/index.d.ts"}
    # No sources, no tests, nothing of the build.
    kinds = (".js", ".d.ts", ".proto")
    others = {name for name in names if not name.endswith(kinds)}
    assert others == {
        f"package/{name}"
        for name in (
            "LICENSE",
            "README.md",
            "package.json",
            "protos/wfe/persistence/v1/namespace_sets.json",
        )
    }

    run("npm", "install", "--no-audit", "--no-fund", package, cwd=consumer)
    run("npx", "--no-install", "tsc", cwd=consumer)
    said = run("node", "consumer.js", server, cwd=consumer)
    assert said.splitlines() == [STORED, "NotFound WORKFLOW_NOT_FOUND"]


@pytest.mark.parametrize("consumer", ["java"], indirect=True)
def test_the_jar(consumer: Path, built: Callable[[str], Path], server: str) -> None:
    repository = built("maven")
    directory = repository / "wfe/persistence/wfe-persistence-stubs" / VERSION
    jar, sources, javadoc = (
        directory / f"wfe-persistence-stubs-{VERSION}{suffix}.jar"
        for suffix in ("", "-sources", "-javadoc")
    )
    with zipfile.ZipFile(jar) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    assert "META-INF/LICENSE" in names
    assert "wfe/persistence/v1/workflow.proto" in names
    assert {name.partition("/")[0] for name in names} == {"META-INF", "wfe"}
    with zipfile.ZipFile(sources) as archive:
        assert "wfe/persistence/v1/WorkflowInstance.java" in archive.namelist()
    with zipfile.ZipFile(javadoc) as archive:
        pages = archive.namelist()
    assert any(name.endswith("wfe/persistence/v1/WorkflowInstance.html") for name in pages)
    # What Maven Central wants of a project, but for the addresses, which there are none of.
    pom = ElementTree.parse(jar.with_suffix(".pom"))
    for name in ("name", "description", "licenses", "developers"):
        assert pom.find(f"{{http://maven.apache.org/POM/4.0.0}}{name}") is not None, name

    with taken_anew():
        said = run(
            "mvn", "--batch-mode", "--quiet", "compile", "exec:java",
            f"-Dpacked=file://{repository}", f"-Dstubs.version={VERSION}", f"-Dexec.args={server}",
            cwd=consumer,
        )  # fmt: skip
    said = re.sub(r"\x1b\[\d*m", "", said)  # whatever it is told about colours
    assert said.splitlines() == [STORED, "NotFound WORKFLOW_NOT_FOUND"]


@contextmanager
def taken_anew() -> Iterator[None]:
    """Maven keeps what it has taken from any repository for ever: not this one."""
    ours = Path.home() / ".m2" / "repository" / "wfe" / "persistence"
    ours.mkdir(parents=True, exist_ok=True)
    with (ours / "test.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other clones do the same
        shutil.rmtree(ours / "wfe-persistence-stubs", ignore_errors=True)
        yield
        shutil.rmtree(ours / "wfe-persistence-stubs")


@pytest.mark.parametrize("consumer", ["go"], indirect=True)
def test_the_go_module(consumer: Path, built: Callable[[str], Path], server: str) -> None:
    module = shutil.copytree(built("go"), consumer / "stubs")
    assert {path.name for path in module.iterdir()} == {
        "LICENSE", "README.md", "go.mod", "go.sum", "wfe",
    }  # fmt: skip
    # What it needs itself has the example's versions, and their checksums.
    for name in ("genproto/googleapis/rpc", "grpc", "protobuf"):
        lines = (ROOT / "examples/go/go.mod").read_text().splitlines()
        [line] = (each for each in lines if each.startswith(f"\tgoogle.golang.org/{name} v"))
        run("go", "mod", "edit", f"-require={line.split()[0]}@{line.split()[1]}", cwd=consumer)
    shutil.copy(ROOT / "examples/go/go.sum", consumer)
    run("go", "mod", "tidy", cwd=consumer)
    said = run("go", "run", ".", server, cwd=consumer)
    assert said.splitlines() == [STORED, "NotFound WORKFLOW_NOT_FOUND"]


def test_the_crate(built: Callable[[str], Path], server: str) -> None:
    if not shutil.which("cc"):
        pytest.skip("the crate needs cc, which is not installed")
    [package] = built("crate").glob("*.crate")
    name = f"wfe-persistence-client-{VERSION}"
    assert package.name == f"{name}.crate"
    target = target_dir()
    target.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "CARGO_TARGET_DIR": str(target), "CARGO_INCREMENTAL": "0"}
    with (target / "wfe-persistence.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the crate's own tests
        # Always at the same place, so that what is compiled does not pile up.
        consumer = target / "consumer"
        shutil.rmtree(consumer, ignore_errors=True)
        shutil.copytree(CONSUMERS / "rust", consumer)
        with tarfile.open(package) as tar:
            tar.extractall(consumer, filter="data")
        files = {path.name for path in (consumer / name).iterdir()}
        assert files <= {
            *(".cargo_vcs_info.json", "Cargo.lock", "Cargo.toml", "Cargo.toml.orig"),
            *("LICENSE", "README.md", "src"),
        }
        assert files >= {"LICENSE", "README.md"}
        (consumer / "Cargo.toml").write_text(rust_manifest(name))
        shutil.copy(CRATE / "Cargo.lock", consumer)  # the same versions
        ours = ("-p", "wfe-persistence-client", "-p", "consumer")
        subprocess.run(["cargo", "clean", "--quiet", *ours], cwd=consumer, env=env, check=True)
        said = run("cargo", "run", "--quiet", "--", server, cwd=consumer, env=env)
    stored, missing = said.splitlines()
    assert json.loads(stored.rpartition(" ")[0]) == {"serial": 2**53 + 1}
    assert stored.endswith(" -9007199254740993")
    assert "not found" in missing.lower()


def rust_manifest(directory: str) -> str:
    """The program's manifest. It depends on all that the crate's tests do, although it needs little
    of that: so it finds everything compiled with the same features, by them."""
    text = (CRATE / "Cargo.toml").read_text()
    needed = text.partition("[dev-dependencies]")[2].partition("\n[workspace]")[0]
    needed = "\n".join(line for line in needed.splitlines() if not line.startswith("codegen"))
    return f"""
[package]
name = "consumer"
version = "0.0.0"
edition = "2021"

[dependencies]
wfe-persistence-client = {{ path = "{directory}", features = ["tls"] }}
serde_json = {{ version = "1", features = ["float_roundtrip"] }}
{needed}

[workspace]
resolver = "3"

[profile.dev]
debug = false
"""


def test_all_have_the_same_version() -> None:
    found = {
        "npm": json.loads((ROOT / "packages/npm/package.json").read_text())["version"],
        "npm lock": json.loads((ROOT / "packages/npm/package-lock.json").read_text())["version"],
        "crate": tomllib.loads((CRATE / "Cargo.toml").read_text())["package"]["version"],
    }
    for where, directory in {"distribution": ".", "suite": "packages/conformance"}.items():
        project = tomllib.loads((ROOT / directory / "pyproject.toml").read_text())["project"]
        found[where] = project["version"]
    [stubs] = (each for each in project["dependencies"] if each.startswith("wfe-persistence=="))
    found["stubs of the suite"] = stubs.partition("==")[2]
    pom = ElementTree.parse(ROOT / "packages/maven/pom.xml")
    version = pom.find("{http://maven.apache.org/POM/4.0.0}version")
    assert version is not None
    found["jar"] = str(version.text)
    assert set(found.values()) == {VERSION}, found


@pytest.mark.parametrize(
    "directory", ["packages/conformance", "packages/maven", "packages/npm", "client_rs"]
)
def test_all_have_the_licence(directory: str) -> None:
    assert (ROOT / directory / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
