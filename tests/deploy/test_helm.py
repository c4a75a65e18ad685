"""The Helm chart: linted by Helm, the same as what Kustomize makes, and strict with its values.

What all manifests must be, those of the chart too, is in test_manifests.py.
"""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any, Final

import pytest
import yaml

from tests.deploy.rendered import (
    DEPLOY,
    ROOT,
    Manifest,
    helm,
    helm_template,
    of_kind,
    ours,
    rendered,
)
from wfe_persistence.settings import SETTINGS

# Helm and Kustomize are built when they are used first.
pytestmark = pytest.mark.timeout(900)

CHARTS: Final = DEPLOY / "helm"
CHART: Final = str(CHARTS / "wfe-persistence")

# What Helm adds to every object, and Kustomize does not.
ADDED: Final = {
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
    "checksum/settings",
    "checksum/wfe-persistence",
    "helm.sh/chart",
    "helm.sh/hook",
    "helm.sh/hook-delete-policy",
}


@pytest.mark.parametrize("mode", ["shared", "sidecar"])
def test_helm_has_nothing_to_say_against_it(mode: str) -> None:
    done = helm("lint", "--strict", "--set", f"mode={mode}", CHART)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^\[(?:WARNING|ERROR)\].*", done.stdout, re.MULTILINE) == []


def plain(manifests: list[Manifest]) -> dict[tuple[str, str], Any]:
    """The manifests by kind and name, without what only one of the tools adds."""
    found = {}
    for manifest in copy.deepcopy(manifests):
        name = manifest["metadata"]["name"]
        for container in ours([manifest]):
            # The default of a tag other than `latest`.
            assert container.pop("imagePullPolicy", "IfNotPresent") == "IfNotPresent"
        kind = manifest["kind"]
        found[kind, unhashed(name)] = stripped(manifest)
    return found


def unhashed(name: str) -> str:
    """A ConfigMap's name without the hash that Kustomize appends."""
    return re.sub(r"^(wfe-persistence)-(?=[a-z0-9]*\d)[a-z0-9]{10}$", r"\1", name)


def stripped(node: Any) -> Any:
    if isinstance(node, dict):
        kept = {key: stripped(value) for key, value in node.items() if key not in ADDED}
        return {
            key: value
            for key, value in kept.items()
            if not (key in ("labels", "annotations") and not value)
        }
    if isinstance(node, list):
        return [stripped(each) for each in node]
    return unhashed(node) if isinstance(node, str) else node


@pytest.mark.parametrize("way", ["shared", "sidecar"])
def test_it_is_what_kustomize_makes(way: str) -> None:
    of_kustomize = plain(rendered(f"kustomize {way}"))
    # The name of the release, so that the names are the same.
    of_helm = plain(helm_template(way))
    job = ("Job", "wfe-persistence-migrate")
    # A hook finds nothing else of its release: it has the variables itself, and no account.
    pod, hook = (each.pop(job)["spec"]["template"]["spec"] for each in (of_kustomize, of_helm))
    base = of_kustomize["ConfigMap", "wfe-persistence"]["data"]
    [theirs], [ours_] = pod["containers"], hook["containers"]
    del theirs["envFrom"], pod["serviceAccountName"]
    variables = {each["name"]: each["value"] for each in ours_.pop("env")}
    assert variables.items() <= base.items()
    assert variables.keys() >= {"WFE_PERSISTENCE_DB_URL_FILE"}
    assert hook == pod
    if way == "sidecar":
        # Only the job has one.
        del of_kustomize["ServiceAccount", "wfe-persistence"]
        # What tells the Kustomize component that this Deployment wants a sidecar.
        of_kustomize["Deployment", "engine"]["metadata"].pop("labels")
    for object_, manifest in of_kustomize.items():
        labels = manifest["metadata"].pop("labels", {})
        assert labels.items() <= of_helm[object_]["metadata"].pop("labels", {}).items()
    for manifest in of_helm.values():
        manifest["metadata"].pop("labels", None)
    assert of_helm == of_kustomize


def test_the_migration_is_a_hook_that_needs_nothing_of_its_release() -> None:
    manifests = helm_template("shared")
    [job] = of_kind(manifests, "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    made = {each["metadata"]["name"] for each in manifests if each is not job}
    used = set(references(job["spec"]))
    assert used == {"wfe-persistence-db"}
    assert not used & made


def references(node: Any) -> Iterator[str]:
    """The names of other objects in a manifest."""
    if isinstance(node, list):
        for each in node:
            yield from references(each)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("secretName", "serviceAccountName"):
                yield value
            elif key in ("configMapRef", "secretRef", "configMap"):
                yield value["name"]
            else:
                yield from references(value)


def test_the_versions_are_the_servers() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHARTS / "wfe-persistence/Chart.yaml").read_text())
    engine = yaml.safe_load((CHARTS / "example-sidecar/Chart.yaml").read_text())
    [dependency] = engine["dependencies"]
    assert {chart["version"], chart["appVersion"], dependency["version"]} == {version}


def variables(*options: str) -> dict[str, str]:
    [settings] = [each["data"] for each in of_kind(helm_template("shared", *options), "ConfigMap")
                  if "policy.toml" not in each["data"]]  # fmt: skip
    assert isinstance(settings, dict)
    return settings


def test_a_setting_becomes_its_variable() -> None:
    found = variables(
        *("--set", "settings.pool-size=21"),
        *("--set", "settings.max-message-bytes=10000000"),
        *("--set-json", "settings.drain-seconds=2.5"),
        *("--set", "settings.reflection=false"),
        *("--set", "settings.jwt-audience=other"),
        *("--set", "env.OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317"),
    )
    assert found["WFE_PERSISTENCE_POOL_SIZE"] == "21"
    assert found["WFE_PERSISTENCE_MAX_MESSAGE_BYTES"] == "10000000"  # and not 1e+07
    assert found["WFE_PERSISTENCE_DRAIN_SECONDS"] == "2.5"
    assert found["WFE_PERSISTENCE_REFLECTION"] == "false"
    assert found["WFE_PERSISTENCE_JWT_AUDIENCE"] == "other"
    assert found["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4317"
    assert found.keys() <= {"OTEL_EXPORTER_OTLP_ENDPOINT", *(s.env for s in SETTINGS.values())}


def test_a_list_becomes_its_variable_too() -> None:
    files = [f"/etc/wfe-persistence/db/{key}" for key in ("read-url", "second")]
    for given in (files[:1], files):
        found = variables("--set-json", f"settings.db-read-url-file={json.dumps(given)}")
        assert found["WFE_PERSISTENCE_DB_READ_URL_FILE"].split(" ") == given


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("settings.pool-siz=20", "pool-siz"),
        ("settings.db-read-url-file=/read-url", "db-read-url-file"),  # not a list
        ("settings.db-read-url={postgresql://user:secret@host/db}", "db-read-url"),
        ("settings.pool-size=many", "pool-size"),
        ("settings.pool-size=0", "pool-size"),
        ("settings.log-level=loud", "log-level"),
        ("settings.db-url=postgresql://user:secret@host/db", "db-url"),  # a secret
        ("env.WFE_PERSISTENCE_POOL_SIZE=20", "WFE_PERSISTENCE_POOL_SIZE"),
        ("replica=2", "replica"),
        ("mode=alone", "mode"),
        ("image.digest=sha256:abc", "digest"),
        ("networkPolicy.egressPorts={0}", "egressPorts"),
    ],
)
def test_a_wrong_value_is_refused_by_name(value: str, says: str) -> None:
    done = helm("template", "--kube-version", "1.33", "--set", value, "x", CHART)
    assert done.returncode != 0
    assert done.stdout == ""
    assert says in done.stderr
    assert "secret@" not in done.stderr


def test_other_settings_are_other_pods_but_another_policy_is_not() -> None:
    def annotations(*options: str) -> Any:
        [deployment] = of_kind(helm_template("shared", *options), "Deployment")
        return deployment["spec"]["template"]["metadata"]["annotations"]

    assert annotations() == annotations("--set", "policy=")
    assert annotations() != annotations("--set", "settings.pool-size=21")


def test_what_is_turned_off_is_left_out() -> None:
    kinds = {each["kind"] for each in helm_template("shared")}
    optional = {
        "podDisruptionBudget.enabled": "PodDisruptionBudget",
        "networkPolicy.enabled": "NetworkPolicy",
        "serviceMonitor.enabled": "ServiceMonitor",
        "migrate.enabled": "Job",
        "serviceAccount.create": "ServiceAccount",
    }
    off = [word for name in optional for word in ("--set", f"{name}=false")]
    left = {each["kind"] for each in helm_template("shared", *off)}
    assert kinds - left == set(optional.values())
    without = {each["kind"] for each in helm_template("shared", operator=False)}
    assert kinds - without == {"ServiceMonitor"}


def test_a_digest_goes_before_the_tag() -> None:
    digest = f"sha256:{'0' * 64}"
    for container in ours(helm_template("shared", "--set", f"image.digest={digest}")):
        assert container["image"] == f"wfe-persistence@{digest}"


def test_two_releases_do_not_select_each_others_pods() -> None:
    selected = []
    for release in ("one", "two"):
        manifests = helm_template("shared", release=release)
        [service] = of_kind(manifests, "Service")
        [deployment] = of_kind(manifests, "Deployment")
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()
        selected.append(service["spec"]["selector"])
        assert service["metadata"]["name"] == f"{release}-wfe-persistence"
    assert selected[0] != selected[1]
