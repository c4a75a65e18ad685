"""A Dockerfile, carried out without Docker: its instructions one by one in a chroot, and the image
run as a strict cluster runs it. Needs root, and a kernel that mounts overlays.

Instead of the base image it takes this machine's system, with the Python that runs the tests in
/usr/local, as in the base, and no accounts but root's. What is mounted is seen only in a namespace
of a process of ours, and gone with it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

import psutil

_ACCOUNTS: Final = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "group": "root:x:0:\n",
    "shadow": "root:*:1::::::\n",
    "gshadow": "root:*::\n",
}


class ReplayError(Exception):
    """An instruction has failed; the message says which, and what it said."""


@dataclass(frozen=True)
class Instruction:
    """`word` in capitals, and what follows, continued lines joined."""

    word: str
    rest: str


def instructions(text: str) -> list[Instruction]:
    """Those of a Dockerfile."""
    lines = [line for line in text.splitlines() if not re.match(r"\s*#", line)]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    pairs = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [Instruction(word.upper(), rest) for word, rest in pairs]


@dataclass(frozen=True)
class Image:
    """What a stage has come to: its layers, the last one first, and its configuration."""

    layers: tuple[Path, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0"
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    health: Sequence[str] = ()
    volumes: Sequence[str] = ()


class Replay:
    """Carries out the Dockerfile in `context`. A context manager: what it made is gone after it."""

    def __init__(self, context: Path, directory: Path) -> None:
        self._context = context
        self._directory = directory
        self.stages: dict[str, Image] = {}
        """What was built, by name."""
        self._number = 0
        self.base: str = ""
        """The image that the first stage is from, which this machine stands in for."""

    def __enter__(self) -> Self:
        self._directory.mkdir()
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "--kill-child", "--fork", "--",
             "sh", "-c", 'mount -t tmpfs none "$1" && echo mounted && exec sleep infinity', "-",
             str(self._directory)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._holder.stdout
        if self._holder.stdout.readline() != "mounted\n":
            raise ReplayError(self._holder.communicate()[1])
        [sleep] = psutil.Process(self._holder.pid).children()
        self.enter = ("nsenter", f"--target={sleep.pid}", "--mount", "--")
        """What a command is preceded by, to see what is mounted."""
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.kill()
        self._holder.communicate()

    def _outside(self, *command: str | Path) -> str:
        done = subprocess.run(
            [*self.enter, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise ReplayError(f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def build(self) -> None:
        """Build all stages."""
        arguments: dict[str, str] = {}
        name, image, root = "", Image(()), Path()
        for each in instructions((self._context / "Dockerfile").read_text()):
            if each.word == "ARG" and not name:
                key, _, value = each.rest.partition("=")
                arguments[key] = value
                continue
            if each.word == "FROM":
                if name:
                    self._finish(name, image, root)
                source, _, name = _expanded(each.rest, arguments).partition(" AS ")
                image, root = self._begin(source)
                continue
            image = self._carry_out(each, image, root)
        self._finish(name, image, root)

    def _begin(self, source: str) -> tuple[Image, Path]:
        if source in self.stages:
            image = self.stages[source]
        else:
            assert self.base in ("", source), f"two bases: {self.base} and {source}"
            self.base = source
            image = Image((self._accounts(),), {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin"})
            # As the base does: otherwise the Python there might find the library of another one.
            image, root = self.mounted(image)
            self._outside("chroot", root, "ldconfig")
            # A server that ran here as root may have left its own.
            self._outside("rm", "-rf", root / "var" / "lib" / "wfe-persistence")
            return image, root
        return self.mounted(image)

    def _accounts(self) -> Path:
        layer = self._directory / "accounts"
        self._outside("mkdir", "-p", layer / "etc", layer / "usr" / "local")
        for name, text in _ACCOUNTS.items():
            self._outside("sh", "-c", 'printf %s "$1" >"$2"', "-", text, layer / "etc" / name)
        return layer

    def mounted(self, image: Image) -> tuple[Image, Path]:
        """The image with one more layer, and where its files are seen."""
        self._number += 1
        home = self._directory / str(self._number)
        upper, work, root = home / "upper", home / "work", home / "root"
        self._outside("mkdir", "-p", upper, work, root)
        lower = ":".join(map(str, (*image.layers, "/")))
        self._outside("mount", "-t", "overlay", "overlay", root, "-o",
                      f"lowerdir={lower},upperdir={upper},workdir={work}")  # fmt: skip
        self._outside("mount", "--rbind", "/dev", root / "dev")
        self._outside("mount", "-t", "proc", "proc", root / "proc")
        self._outside("mount", "--bind", "-o", "ro", sys.base_prefix, root / "usr" / "local")
        self._outside("mount", "-t", "tmpfs", "none", root / "tmp")
        return replace(image, layers=(upper, *image.layers)), root

    def _finish(self, name: str, image: Image, root: Path) -> None:
        self._outside("umount", "--recursive", root)
        self.stages[name] = image

    def _carry_out(self, each: Instruction, image: Image, root: Path) -> Image:
        match each.word:
            case "RUN":
                self._run(each.rest, image, root)
            case "COPY":
                self._copy(each.rest, image, root)
            case "WORKDIR":
                self._outside("mkdir", "-p", root / each.rest.lstrip("/"))
                return replace(image, workdir=each.rest)
            case "ENV":
                pairs = (word.split("=", 1) for word in shlex.split(each.rest))
                values = {name: _expanded(value, image.env) for name, value in pairs}
                return replace(image, env={**image.env, **values})
            case "USER":
                return replace(image, user=each.rest)
            case "ENTRYPOINT":
                return replace(image, entrypoint=json.loads(each.rest))
            case "CMD":
                return replace(image, command=json.loads(each.rest))
            case "HEALTHCHECK":
                return replace(image, health=json.loads(each.rest.partition(" CMD ")[2]))
            case "VOLUME":
                return replace(image, volumes=(*image.volumes, each.rest))
            case "EXPOSE" | "LABEL":
                pass
            case other:
                raise ReplayError(f"unknown: {other} {each.rest}")
        return image

    def _run(self, line: str, image: Image, root: Path) -> None:
        variables = [f"{name}={value}" for name, value in image.env.items()]
        self._outside(
            *("chroot", root, "setpriv", f"--reuid={image.user}", "--clear-groups", "--"),
            *("env", "--ignore-environment", *variables, "HOME=/root"),
            *("sh", "-ec", f"cd {shlex.quote(image.workdir)}\n{line}"),
        )

    def _copy(self, rest: str, image: Image, root: Path) -> None:
        *sources, to = shlex.split(rest)
        source_root = self._context
        mounted = None
        if sources[0].startswith("--from="):
            _, source_root = mounted = self.mounted(self.stages[sources.pop(0)[len("--from=") :]])
        target = root / (Path(image.workdir) / to).as_posix().lstrip("/")
        for source in sources:
            path = str(source_root / source.lstrip("/"))
            # What a directory has in it goes there, as Docker does; whoever owned it, root does.
            if mounted or Path(path).is_dir():
                self._outside("mkdir", "-p", target)
                path += "/."
            else:
                self._outside("mkdir", "-p", target if to.endswith("/") else target.parent)
            self._outside("cp", "-r", "--preserve=mode,links", path, target)
        if mounted:
            self._outside("umount", "--recursive", source_root)


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda found: variables.get(found[1], ""), text)


class Container:
    """An image that runs as the restricted Pod Security Standard has it: any user id, no
    capabilities, no new privileges, and nowhere to write, not even /tmp."""

    def __init__(
        self, replay: Replay, image: Image, user: int, env: Mapping[str, str], log: Path,
        mounts: Sequence[Path] = (), writable: Sequence[str] = (),
    ) -> None:  # fmt: skip
        _, self._root = replay.mounted(image)
        self._replay = replay
        self._image = image
        self._user = user
        self._env = {**image.env, **env}
        self._log = log
        self._mounts = mounts
        self._writable = writable

    def command(self, *arguments: str) -> list[str]:
        """How something is run in there, in namespaces of its own."""
        root = self._root
        confined = (
            f"--reuid={self._user} --regid=0 --clear-groups "
            "--inh-caps=-all --bounding-set=-all --no-new-privs"
        )
        script = "\n".join(
            [
                "set -e",
                *(f'mkdir -p "{root}{path}"; mount --bind "{path}" "{root}{path}"'
                  for path in self._mounts),
                *(f'mkdir -p "{root}{path}"; mount -t tmpfs -o mode=0700,uid={self._user} none '
                  f'"{root}{path}"' for path in self._writable),
                f'mount -t proc proc "{root}/proc"',
                f'mount -o remount,bind,ro "{root}"',
                "" if "/tmp" in self._writable else f'mount -o remount,bind,ro "{root}/tmp"',
                f'exec chroot "{root}" setpriv {confined} -- "$@"',
            ]
        )  # fmt: skip
        variables = [f"{name}={value}" for name, value in self._env.items()]
        return [
            *self._replay.enter,
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--"),
            *("sh", "-c", script, "-"),
            *("env", "--ignore-environment", *variables, *arguments),
        ]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program beside it, in a container of the same kind."""
        return subprocess.run(
            self.command(*arguments),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def health(self) -> subprocess.CompletedProcess[str]:
        """The image's own health check."""
        return self.run(*self._image.health)

    def __enter__(self) -> Self:
        """Start what the image starts."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(*self._image.entrypoint, *self._image.command),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        return self

    def main(self) -> psutil.Process:
        """Its process 1."""
        [process] = psutil.Process(self._process.pid).children()
        return process

    def stop(self) -> int:
        """SIGTERM to process 1, and wait; the exit code."""
        self.main().terminate()
        return self._process.wait(60)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def missing() -> str:
    """Why a Dockerfile can't be carried out here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root"
    needed = ("unshare", "nsenter", "chroot", "setpriv", "useradd")
    if absent := [program for program in needed if shutil.which(program) is None]:
        return f"needs {', '.join(absent)}"
    overlay = "overlay" in Path("/proc/filesystems").read_text()
    return "" if overlay else "needs overlays, which the kernel does not have"
