"""Whom the embedded PostgreSQL runs as, and what that user can reach.

PostgreSQL refuses to run as root. Where the server is root, as in many containers, PostgreSQL gets
a user without privileges, and that user may be shut out of the directories that hold the binaries
or the data. No mode or owner of a directory that is not ours is changed for it.
"""

from __future__ import annotations

import logging
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_SYSTEM_USER: Final = "pgserver"
_CACHE: Final = Path("/var/cache/wfe-persistence")


@dataclass(frozen=True, slots=True)
class User:
    """A user without privileges. `name` is the number of one that has no name."""

    name: str
    uid: int
    gid: int

    def reaches(self, path: Path) -> bool:
        """Whether the user may traverse the directories above `path`, and enter or execute it.

        Goes by the modes. Where an access control list allows more, the answer is still False.
        """
        path = path.resolve()
        for step in (path, *path.parents):
            info = step.stat()
            if info.st_uid == self.uid:
                needed = stat.S_IXUSR
            elif info.st_gid == self.gid:
                needed = stat.S_IXGRP
            else:
                needed = stat.S_IXOTH
            if not info.st_mode & needed:
                return False
        return True

    def take(self, directory: Path) -> None:
        """Give a directory that this process has just made to the user."""
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.fstat(descriptor).st_uid != os.geteuid():
                raise PermissionError(f"{directory} was replaced by another user")
            os.fchown(descriptor, self.uid, self.gid)
        finally:
            os.close(descriptor)


def unprivileged_user(data_dir: Path, pgdata: Path) -> User | None:
    """The user to run PostgreSQL as; None: the current one, which is not root.

    The owner of the database in `pgdata` if there is one. Else a system user of our own, and where
    none can be made, the owner of `data_dir` or `nobody`. Raises OSError if there is none of them.
    """
    if os.geteuid() != 0:
        return None
    with suppress(FileNotFoundError):
        owner = pgdata.stat()
        if owner.st_uid == 0:
            raise PermissionError(
                f"{pgdata} belongs to root, and PostgreSQL does not run as root: "
                f"give it to another user with chown -R"
            )
        return User(_name(owner.st_uid), owner.st_uid, owner.st_gid)
    if user := _named(_SYSTEM_USER):
        return user
    why = _make_system_user()
    if user := _named(_SYSTEM_USER):
        log.info("made the system user %s, as whom PostgreSQL runs", user.name)
        return user
    # initdb wants a user that has a name.
    owner_name = _name(data_dir.stat().st_uid)
    user = (None if owner_name in ("0", "root") else _named(owner_name)) or _named("nobody")
    if user is None:
        raise PermissionError(
            f"PostgreSQL does not run as root, there is no user nobody, and the user "
            f"{_SYSTEM_USER} can't be made ({why}): run the server as another user"
        )
    log.warning(
        "can't make the system user %s (%s): PostgreSQL runs as %s", _SYSTEM_USER, why, user.name
    )
    return user


def reachable_binaries(installed: Path, version: str, user: User | None, data_dir: Path) -> Path:
    """`installed`, the PostgreSQL in the package of a wheel, or a copy that `user` can reach.

    The copy is in `data_dir`, or in the system's cache if the user can't reach that either. It is
    renewed when `version` changes; so nothing may run from the copy in `data_dir`.
    """
    if user is None or user.reaches(installed / "bin" / "postgres"):
        return installed
    name = f"postgresql-{version}"
    if user.reaches(data_dir):
        home = data_dir
        for old in home.glob("postgresql-*"):
            if old.name != name:
                shutil.rmtree(old)
    else:
        home = _CACHE
        home.mkdir(mode=0o755, parents=True, exist_ok=True)
    copy = home / name
    if not copy.exists():
        log.info(
            "user %s can't reach %s: PostgreSQL runs from the copy %s", user.name, installed, copy
        )
        _copy(installed, copy)
    binaries = copy / installed.relative_to(installed.parents[1])
    if not user.reaches(binaries / "bin" / "postgres"):
        raise PermissionError(
            f"user {user.name}, as whom PostgreSQL runs, can reach neither {installed} nor {copy}: "
            f"let others traverse the directories above (chmod o+x)"
        )
    return binaries


def _copy(installed: Path, copy: Path) -> None:
    # Renamed when complete, as an interrupted start, or two at once, must not leave half a copy.
    with tempfile.TemporaryDirectory(dir=copy.parent, prefix="new-") as made:
        fresh = Path(made) / copy.name
        unneeded = shutil.ignore_patterns("include", "*.a", "pkgconfig", "pgxs")
        package = installed.parent
        # The wheel's programs look for libraries in a directory beside its package.
        for part in (installed, package.with_name(package.name + ".libs")):
            if part.exists():
                there = fresh / part.relative_to(package.parent)
                shutil.copytree(part, there, symlinks=True, ignore=unneeded)
        for path in (fresh, *fresh.rglob("*")):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(mode | (mode & 0o500) >> 3 | (mode & 0o500) >> 6)
        try:
            fresh.rename(copy)
        except OSError:
            if not copy.exists():
                raise


def _make_system_user() -> str:
    """Try to; if there is still none, the reason."""
    # Not everybody has the administrator's programs in the path.
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    if (useradd := shutil.which("useradd", path=path)) is None:
        return "there is no useradd"
    command = [useradd, "--system", "--shell", "/usr/sbin/nologin", _SYSTEM_USER]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip() or f"useradd: exit status {done.returncode}"


def _named(name: str) -> User | None:
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        return None
    return User(found.pw_name, found.pw_uid, found.pw_gid)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
