"""What ./run sbom writes is compared with what is locked."""

from __future__ import annotations

from typing import Any

import pytest

from packages.sbom import differences, locked
from tests.hosts.pages import ROOT

LOCK = """\
# Made by `./run lock`
click==8.3.0 \\
    --hash=sha256:00
Typing_Extensions==4.15.0 ; python_full_version >= '3.11' \\
    --hash=sha256:00
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:00
"""


def bom(**versions: str) -> dict[str, Any]:
    return {
        "components": [
            {"name": name, "version": version, "purl": f"pkg:pypi/{name}@{version}"}
            for name, version in versions.items()
        ]
    }


def test_what_is_locked_for_this_system() -> None:
    assert locked(LOCK) == {"click": "8.3.0", "typing-extensions": "4.15.0"}
    for name in ("server", "embedded"):
        assert "grpcio" in locked((ROOT / "constraints" / f"{name}.txt").read_text())


def test_the_same() -> None:
    assert differences(bom(click="8.3.0", typing_extensions="4.15.0", pip="25.0"), LOCK) == []


@pytest.mark.parametrize(
    ("versions", "says"),
    [
        ({"click": "8.3.0"}, "typing-extensions: nothing in the document, 4.15.0 locked"),
        (
            {"click": "8.2.0", "typing_extensions": "4.15.0"},
            "click: 8.2.0 in the document, 8.3.0 locked",
        ),
        (
            {"click": "8.3.0", "typing_extensions": "4.15.0", "left_pad": "1"},
            "left-pad: 1 in the document, nothing locked",
        ),
    ],
)
def test_a_difference_is_noticed(versions: dict[str, str], says: str) -> None:
    assert differences(bom(**versions), LOCK) == [says]


def test_a_component_that_nobody_can_look_up_is_noticed() -> None:
    document = bom(click="8.3.0", typing_extensions="4.15.0")
    del document["components"][0]["purl"]
    assert differences(document, LOCK) == ["click: no purl"]
