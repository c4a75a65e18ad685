"""deploy/: what is in it is valid, fits the command line, and asks for no rights."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml

from tests.deploy.rendered import (
    DEPLOY,
    RENDERED,
    ROOT,
    Manifest,
    containers,
    kustomized,
    of_kind,
    ours,
    pods,
    rendered,
)
from wfe_persistence.access.policy import parse_policy
from wfe_persistence.settings import SETTINGS

# Helm and Kustomize are built when they are used first.
pytestmark = pytest.mark.timeout(900)

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

# The oldest that has native sidecars by default, and the newest that the schemas know.
KUBERNETES: Final = ("1.29", "1.33", kubernetes_validate.latest_version())
NOT_OF_KUBERNETES: Final = {"ServiceMonitor"}  # Prometheus Operator's


@pytest.fixture(scope="module", params=RENDERED)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return rendered(request.param)


def wfe(*arguments: str, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wfe_persistence", *arguments],
        env={"PATH": os.environ["PATH"], **env}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_them(manifests: list[Manifest], version: str) -> None:
    assert len(manifests) >= 3
    for manifest in manifests:
        if manifest["kind"] not in NOT_OF_KUBERNETES:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_a_misspelt_field_is_noticed() -> None:
    job = yaml.safe_load((DEPLOY / "kubernetes/base/migrate.yaml").read_text())
    job["spec"]["template"]["spec"]["containers"][0]["argz"] = ["serve"]
    with pytest.raises(kubernetes_validate.ValidationError, match="argz"):
        kubernetes_validate.validate(job, KUBERNETES[0], strict=True)


def test_references_lead_somewhere(manifests: list[Manifest]) -> None:
    maps = {each["metadata"]["name"] for each in of_kind(manifests, "ConfigMap")}
    for pod in pods(manifests):
        volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
        for volume in volumes.values():
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps
        for container in containers(pod):
            for source in container.get("envFrom", ()):
                assert source["configMapRef"]["name"] in maps
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= volumes.keys()
        # Every file that a variable names is below something that is mounted.
        for container in ours([{"kind": "Job", "spec": {"template": {"spec": pod}}}]):
            if container.get("args", ["serve"])[0] == "migrate":
                continue
            below = [m["mountPath"] for m in container["volumeMounts"]]
            below += ["/var/run/secrets/kubernetes.io/serviceaccount"]
            for value in environment(manifests).values():
                path = value.removeprefix("unix:")
                if path.startswith("/"):
                    assert any(path.startswith(f"{directory}/") for directory in below), path
    selected = {tuple(sorted(each["spec"]["template"]["metadata"]["labels"].items()))
                for each in of_kind(manifests, "Deployment")}  # fmt: skip
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor"):
        for manifest in of_kind(manifests, kind):
            spec = manifest["spec"]
            selector = spec.get("podSelector", spec.get("selector", {}))
            labels = selector.get("matchLabels", selector)
            assert any(labels.items() <= dict(each).items() for each in selected), manifest


def shown(variables: Mapping[str, str], tmp_path: Path) -> dict[str, Any]:
    """What `config show` says to these variables. It reads two of the files that they name."""
    secret = tmp_path / "secret"
    secret.write_text("postgresql://wfe@db.example/wfe")
    read = ("WFE_PERSISTENCE_DB_URL_FILE", "WFE_PERSISTENCE_DB_PASSWORD_FILE")
    here = {name: str(secret) if name in read else value for name, value in variables.items()}
    done = wfe("config", "show", "--format", "json", env=here)
    assert (done.returncode, done.stderr) == (0, "")
    settings = json.loads(done.stdout)
    assert isinstance(settings, dict)
    return settings


def environment(manifests: list[Manifest]) -> dict[str, str]:
    [settings] = [m["data"] for m in of_kind(manifests, "ConfigMap")
                  if "WFE_PERSISTENCE_DB_URL_FILE" in m["data"]]  # fmt: skip
    assert isinstance(settings, dict)
    return settings


def test_the_command_line_takes_them(manifests: list[Manifest], tmp_path: Path) -> None:
    variables = environment(manifests)
    assert variables.keys() <= {setting.env for setting in SETTINGS.values()}
    assert shown(variables, tmp_path)
    assert ours(manifests)
    for container in ours(manifests):
        assert container["image"] == f"wfe-persistence:{VERSION}"
        commands = [["wfe-persistence", *container.get("args", ["serve"])]]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if "exec" in (checked := container.get(probe, {})):
                commands.append(checked["exec"]["command"])
        for program, *arguments in commands:
            assert program == "wfe-persistence"
            assert wfe(*arguments, "--help").returncode == 0, arguments


def test_an_unknown_option_is_noticed() -> None:
    assert wfe("health", "--servise", "liveness", "--help").returncode != 0


def test_no_container_has_more_rights_than_the_restricted_pod_security_standard(
    manifests: list[Manifest],
) -> None:
    for pod in pods(manifests):
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        # Only those that ask the API server for something may.
        assert "automountServiceAccountToken" in pod
        for container in containers(pod):
            security = {**pod.get("securityContext", {}), **container["securityContext"]}
            assert security["runAsNonRoot"] is True
            assert "runAsUser" not in security  # any user id will do
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] is True
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert "memory" in container["resources"]["limits"]


def test_a_stop_has_the_time_that_it_may_take(manifests: list[Manifest], tmp_path: Path) -> None:
    settings = shown(environment(manifests), tmp_path)
    takes = settings["derived"]["drain-delay"] + settings["settings"]["drain-seconds"]["value"] + 20
    for manifest in of_kind(manifests, "Deployment"):
        pod = manifest["spec"]["template"]["spec"]
        assert pod.get("terminationGracePeriodSeconds", 30) >= takes


@pytest.mark.parametrize("way", ["shared", "example-sidecar"])
def test_a_replica_is_a_component(way: str, tmp_path: Path) -> None:
    """All that it adds is the variable; the file is where that of the database is."""
    kubernetes = os.path.relpath(DEPLOY / "kubernetes", tmp_path)
    overlay = {"resources": [f"{kubernetes}/{way}"], "components": [f"{kubernetes}/replicas"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    with_replica = environment(kustomized(tmp_path))
    read_url = with_replica.pop("WFE_PERSISTENCE_DB_READ_URL_FILE")
    assert with_replica == environment(kustomized(DEPLOY / "kubernetes" / way))
    assert Path(read_url).parent == Path(with_replica["WFE_PERSISTENCE_DB_URL_FILE"]).parent


@pytest.mark.parametrize("file", ["compose.yaml", "systemd/wfe-persistence.service"])
def test_what_is_commented_out_would_be_known(file: str, tmp_path: Path) -> None:
    """The settings of a replica, which not everybody has."""
    commented = re.findall(
        r"^ *# ?(?:Environment=)?(WFE_PERSISTENCE_\w+)(?:=|: )(\S+)$",
        (DEPLOY / file).read_text(), re.MULTILINE,
    )  # fmt: skip
    [(name, value)] = commented
    if name.endswith("_FILE"):
        (tmp_path / "read-url").write_text("postgresql://wfe@replica/wfe")
        value = str(tmp_path / "read-url")
    derived = shown({"WFE_PERSISTENCE_DB_URL": "postgresql://wfe@db/wfe", name: value}, tmp_path)
    assert derived["derived"]["replicas"] == ["host=replica dbname=wfe user=wfe"]


def test_the_policy() -> None:
    text = (DEPLOY / "kubernetes/shared/policy.toml").read_text()
    assert parse_policy(text.encode())


def test_compose(tmp_path: Path) -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"postgres", "migrate", "server"}
    known = {setting.env for setting in SETTINGS.values()}
    for name in ("migrate", "server"):
        service = services[name]
        assert service["image"] == f"wfe-persistence:{VERSION}"
        assert set(service["environment"]) <= known
        command = service.get("command", ["serve"])
        assert wfe(*command, "--help").returncode == 0
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        for needed in service["depends_on"]:
            assert needed in services
        assert set(service["secrets"]) <= set(compose["secrets"])
    assert shown(services["server"]["environment"], tmp_path)["derived"]["protection"]
    # Whoever reaches it may do everything.
    assert all(port.startswith("127.0.0.1:") for port in services["server"]["ports"])
