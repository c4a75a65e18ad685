"""How things are written: harmless, in as many cells as there are, as JSON and YAML."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import click
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cli.scene import NOON, workflows
from wfe_persistence_cli.data import json_lines, one_line, plain, yaml_item, yaml_lines
from wfe_persistence_cli.text import cut, harmless, isolated, width_of, wrapped
from wfe_persistence_cli.times import Age, Since, ago, brief, from_ms, stamp
from wfe_persistence_client import ABSENT, LEFT_OUT, WorkflowStatus

DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("order-42", "order-42"),
        ("Bestellung für Łukasz 注文", "Bestellung für Łukasz 注文"),
        ("\x1b]0;title\x07\x1b[2J", "\\x1b]0;title\\x07\\x1b[2J"),
        ("a\nb\tc\rd\x00", "a\\nb\\tc\\rd\\x00"),
        ("\x9b31m", "\\x9b31m"),
        ("user\u202egnp.exe", "user\\u202egnp.exe"),
        ("\u2066a\u2069\u200b\ufeff", "\\u2066a\\u2069\\u200b\\ufeff"),
        ("\u2028", "\\u2028"),
        ("\U000e0041", "\\U000e0041"),
        ("\U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680"),
    ],
)
def test_what_is_not_to_be_seen_is_an_escape(text: str, shown: str) -> None:
    assert harmless(text) == shown


@settings(deadline=None)
@given(st.text())
def test_nothing_that_is_shown_can_do_anything(text: str) -> None:
    shown = harmless(text)
    assert all(c.isprintable() or c in "\u200c\u200d \u3000" or c.isspace() for c in shown)
    assert not set(shown) & {"\n", "\r", "\x1b", "\x9b", "\u2028", "\u202e"}
    assert harmless(shown) == shown


@settings(deadline=None)
@given(st.text(), st.integers(0, 30))
def test_a_text_is_cut_to_the_cells_that_there_are(text: str, width: int) -> None:
    text = harmless(text)
    made = cut(text, width)
    assert width_of(made) <= width
    if width_of(text) <= width:
        assert made == text
    elif width:
        assert made.endswith("…")
        assert text.startswith(made[:-1])


def test_wide_and_combining_characters_are_measured() -> None:
    assert width_of("注文") == 4
    assert width_of("e\u0301") == 1
    assert cut("注文注文", 5) == "注文…"


@settings(max_examples=200)
@given(st.text(alphabet="ab 漢é\u0301😀", max_size=40), st.integers(2, 12))
def test_a_text_is_broken_between_words_into_lines_of_so_many_cells(text: str, width: int) -> None:
    lines = wrapped(text, width)
    assert all(width_of(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    if all(width_of(word) <= width for word in text.split()):
        assert " ".join(lines).split() == text.split()


def test_what_is_written_from_right_to_left_is_isolated() -> None:
    assert isolated("order") == "order"
    assert isolated("הזמנה") == "\u2068הזמנה\u2069"


@settings(deadline=None)
@given(DOCUMENTS)
def test_json_and_yaml_mean_the_document(document: Any) -> None:
    assert json.loads(one_line(document)) == document
    pretty = list(json_lines(document))
    assert json.loads("\n".join(pretty)) == document
    for made in (one_line(document), "".join(pretty)):
        assert harmless(made) == made
    assert yaml.safe_load("\n".join(yaml_lines(document))) == document
    assert yaml.safe_load("\n".join(yaml_item(document))) == [document]


@pytest.mark.parametrize(
    "text",
    ["no", "Yes", "NULL", "~", "1", "1e3", "0x1", "1:30", "2026-01-05", "- a", "a: b", "a #b", "#",
     "", " ", "'", '"', "{", "!x", "&a", "*a", "?", "%", "@", "`", "=", "<<", ".inf", ".nan", "y"],
)  # fmt: skip
def test_what_yaml_would_take_for_something_else_is_quoted(text: str) -> None:
    assert yaml.safe_load("\n".join(yaml_lines({text: text}))) == {text: text}


def test_a_workflow_for_programs() -> None:
    order = next(each for each in workflows() if each.name == "order-42")
    order.data = {"exact": Decimal("12.500"), "large": 10**30}
    made = json.loads("\n".join(json_lines(plain(order))), parse_float=str)
    assert made["status"] == "RUNNABLE"
    assert made["data"] == {"exact": "12.500", "large": 10**30}
    assert made["create_time"] == "2026-01-05T09:00:00Z"
    assert made["complete_time"] is None
    first = made["execution_pointers"][0]
    assert "persistence_data" not in first, "it is absent, which is not null"
    assert first["outcome"] == {"reserved": True}


def test_values_for_programs() -> None:
    assert plain({"a": timedelta(seconds=90), "b": timedelta(milliseconds=1500)}) == {
        "a": 90,
        "b": Decimal("1.5"),
    }
    assert plain([WorkflowStatus.RUNNABLE, {"x": ABSENT, "y": LEFT_OUT, "z": None}]) == [
        "RUNNABLE",
        {"z": None},
    ]


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(0), "0µs"),
        (timedelta(microseconds=12), "12µs"),
        (timedelta(milliseconds=250), "0.25s"),
        (timedelta(seconds=9.96), "9.96s"),
        (timedelta(seconds=59.9), "59s"),
        (timedelta(minutes=5, seconds=3), "5m3s"),
        (timedelta(hours=2), "2h"),
        (timedelta(days=2, hours=4, minutes=59), "2d4h"),
        (timedelta(days=365 * 3 + 40), "3y40d"),
        (timedelta(minutes=-5), "-5m"),
    ],
)
def test_a_duration_is_brief(duration: timedelta, text: str) -> None:
    assert brief(duration) == text


def test_times() -> None:
    assert ago(NOON - timedelta(hours=1), NOON) == "1h"
    assert ago(NOON + timedelta(hours=1), NOON) == "in 1h"
    assert stamp(NOON) == "2026-01-05 12:00:00Z"
    assert from_ms(2**63 - 1) is None
    assert from_ms(-(2**63)) is None
    assert from_ms(0) == datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "age"),
    [("90s", 90), ("15m", 900), ("2h30m", 9000), ("30d", 2_592_000), ("2w", 1_209_600)],
)
def test_an_age(text: str, age: int) -> None:
    assert Age().convert(text, None, None) == timedelta(seconds=age)


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "-5m", "5mm", "999999999w"])
def test_what_is_no_age(text: str) -> None:
    with pytest.raises(click.BadParameter, match="must be"):
        Age().convert(text, None, None)


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-05T12:00:00Z",
        "2026-01-05T12:00:00",
        "2026-01-05 12:00:00",
        "2026-01-05T14:00:00+0200",
    ],
)
def test_a_moment(text: str) -> None:
    assert Since().convert(text, None, None) == NOON


def test_a_moment_by_its_age() -> None:
    assert Since().convert("2026-01-05", None, None) == NOON.replace(hour=0)
    hour_ago = Since().convert("1h", None, None)
    assert timedelta(hours=1) <= datetime.now(UTC) - hour_ago < timedelta(hours=2)
    for text in ("yesterday", "999999d999999d", "2026-13-01"):
        with pytest.raises(click.BadParameter):
            Since().convert(text, None, None)
