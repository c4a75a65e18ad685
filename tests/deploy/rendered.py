"""What Kubernetes gets of deploy/: by Kustomize, and by Helm."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.support import binaries

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"

Manifest = dict[str, Any]

RENDERED: Final = ("kustomize shared", "kustomize sidecar", "helm shared", "helm sidecar")
"""What `rendered` takes."""


def rendered(name: str) -> list[Manifest]:
    """The manifests of one of RENDERED; skips the test where its tool is not to be had."""
    tool, _, way = name.partition(" ")
    if tool == "helm":
        return helm_template(way)
    directory = {"shared": "shared", "sidecar": "example-sidecar"}[way]
    return kustomized(DEPLOY / "kubernetes" / directory)


def kustomized(directory: Path) -> list[Manifest]:
    """What Kustomize makes of a directory; skips the test where it is not to be had."""
    try:
        kustomize = binaries.kustomize()
    except binaries.BinariesError as exc:
        pytest.skip(str(exc))
    return _manifests(kustomize, "build", str(directory))


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Helm; skips the test where it is not to be had."""
    try:
        program = binaries.helm()
    except binaries.BinariesError as exc:
        pytest.skip(str(exc))
    with tempfile.TemporaryDirectory() as home:
        return subprocess.run(
            [program, *arguments],
            # Nothing of the user's own: no plugins, no repositories.
            env={"HOME": home, "PATH": ""}, capture_output=True, text=True, check=False,
        )  # fmt: skip


def helm_template(
    way: str, *options: str, release: str = "wfe-persistence", operator: bool = True
) -> list[Manifest]:
    """What Helm installs in a cluster, with or without the Prometheus Operator."""
    command = ["template", "--kube-version", "1.33", *options]
    if operator:
        command += ["--api-versions", "monitoring.coreos.com/v1"]
    if way == "shared":
        return _parsed(helm(*command, release, str(DEPLOY / "helm" / "wfe-persistence")))
    with tempfile.TemporaryDirectory() as path:
        # The chart that it depends on is packed into its directory.
        copy = shutil.copytree(DEPLOY / "helm", Path(path) / "helm")
        built = helm("dependency", "build", str(copy / "example-sidecar"))
        assert built.returncode == 0, built.stderr
        return _parsed(helm(*command, release, str(copy / "example-sidecar")))


def _manifests(program: Path, *arguments: str) -> list[Manifest]:
    return _parsed(
        subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    )


def _parsed(done: subprocess.CompletedProcess[str]) -> list[Manifest]:
    assert (done.returncode, done.stderr) == (0, "")
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def of_kind(manifests: list[Manifest], kind: str) -> Iterator[Manifest]:
    return (each for each in manifests if each["kind"] == kind)


def pods(manifests: list[Manifest]) -> list[Manifest]:
    return [each["spec"]["template"]["spec"] for each in manifests
            if each["kind"] in ("Deployment", "Job")]  # fmt: skip


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def ours(manifests: list[Manifest]) -> list[Manifest]:
    """The containers with the server's image."""
    found = [c for pod in pods(manifests) for c in containers(pod)]
    return [c for c in found if c["image"].startswith("wfe-persistence")]
