"""The pages: links lead somewhere, and options and reasons that they name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.generated import copy_generated, run_generated
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.cli.options import known_variables
from wfe_persistence.settings import SETTINGS
from wfe_persistence_cli.target import OTHER_VARIABLES

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", ".tools", ".pytest_cache", "build", "node_modules", "target"}
    & set(path.relative_to(ROOT).parts)
)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text()), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        lost = anchor and target.suffix == ".md" and target.is_file()
        if not target.exists() or (lost and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n[a](gone.md) [b](#one) [c](#two) [d](page.md#one) [e](page.md#two)")
    assert broken_links(page) == ["gone.md", "#two", "page.md#two"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_variables(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # it may name what is gone
    known = {setting.env for setting in SETTINGS.values()} | set(known_variables())
    known |= OTHER_VARIABLES
    named = set(re.findall(r"\bWFE_PERSISTENCE_[A-Z_]*[A-Z]\b(?![_*])", page.read_text()))
    # docs/configuration.md names those that Kubernetes makes.
    made = re.compile(r"WFE_PERSISTENCE_(SERVICE_(HOST|PORT)|PORT(_50052_TCP_ADDR)?)")
    assert {name for name in named - known if not made.fullmatch(name)} == set()


def test_the_page_of_errors_has_all_reasons() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    headings = set(re.findall(r"^## ([A-Z_]+)$", text, re.MULTILINE))
    names = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()}  # noqa: SIM118
    assert headings == names - {"UNSPECIFIED"}


def test_a_reason_without_a_remedy_is_noticed(tmp_path: Path) -> None:
    copy_generated(tmp_path)
    proto = tmp_path / "protos/wfe/persistence/v1/error_reason.proto"
    proto.write_text(
        proto.read_text().replace(
            "enum ErrorReason {\n",
            "enum ErrorReason {\n  // INTERNAL: for a test.\n  ERROR_REASON_UNHEARD_OF = 999;\n",
        )
    )
    done = run_generated(tmp_path, "check")
    assert (done.returncode, "UNHEARD_OF" in done.stderr) == (1, True)
