"""docs/api/: everything in the protocol is described there, and follows the protos."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from docs.protocol import PACKAGE, PAGES, TITLES
from tests.support.generated import copy_generated, run_generated
from wfe_persistence.rpc.services import SERVICES

LOCKS = "protos/wfe/persistence/v1/lock.proto"


def descriptor(name: str) -> Any:
    return import_module(f"{PACKAGE}.{name}_pb2").DESCRIPTOR


@pytest.mark.parametrize("name", TITLES)
def test_everything_is_described(name: str) -> None:
    text = (PAGES / f"{name}.md").read_text()
    file = descriptor(name)
    for service in file.services_by_name.values():
        assert f"\n## {service.name}\n" in text
        for method in service.methods:
            assert f"\n### {method.name}\n" in text
    for message in file.message_types_by_name.values():
        section = text.partition(f"\n### {message.name}\n")[2].partition("\n### ")[0]
        described = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
        assert described == [field.name for field in message.fields], message.name
    for enum in file.enum_types_by_name.values():
        section = text.partition(f"\n### {enum.name}\n")[2].partition("\n### ")[0]
        described = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
        assert described == [value.name for value in enum.values], enum.name


def test_every_rpc_has_its_role() -> None:
    text = (PAGES / "index.md").read_text()
    for service in SERVICES:
        for method in service.methods:
            role = method.required_role.name.lower()
            assert f"#{method.name.lower()}) | {role} |" in text, method.name


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("// What is locked.", "// What is held.", "lock.md"),
        ("  // What is locked.\n", "", "Lock.resource has no comment"),
        ("  string resource = 1;\n  // Who holds", "  // Who holds", "does not have Lock.resource"),
        (
            "// ListLocksRequest is",
            "message More {}\n// ListLocksRequest is",
            "lock.proto has More",
        ),
    ],
)
def test_what_does_not_follow_is_noticed(tmp_path: Path, old: str, new: str, fault: str) -> None:
    copy_generated(tmp_path)
    proto = tmp_path / LOCKS
    text = proto.read_text()
    assert old in text
    proto.write_text(text.replace(old, new, 1))
    done = run_generated(tmp_path, "check")
    assert done.returncode == 1
    assert fault in done.stderr
