"""JSON goes out and comes in without loss."""

import json
import sys
from decimal import Decimal, localcontext
from enum import IntEnum, StrEnum
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wfe_persistence_client.json_text import read_json, write_json

# A busy machine must not fail a test by its time.
unhurried = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# Everything that reading can answer.
TEXT = st.text(st.characters(codec="utf-8"), max_size=10)
NUMBERS = (
    st.integers()
    | st.integers(-(10**999), 10**999)
    | st.decimals(allow_nan=False, allow_infinity=False).filter(
        lambda number: "." in str(number) or "E" in str(number)
    )
)
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | TEXT | NUMBERS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=5,
)


class Number(IntEnum):
    ONE = 1


class Word(StrEnum):
    ONE = "one"


def same(left: object, right: object) -> bool:
    """Equality that tells 1 from True and 1.0 from 1.00."""
    return repr(left) == repr(right)


@unhurried
@given(JSON_VALUES)
def test_what_is_written_reads_the_same(value: Any) -> None:
    assert same(read_json(write_json(value)), value)


@unhurried
@given(JSON_VALUES)
def test_what_is_written_is_json_for_everybody(value: Any) -> None:
    json.loads(write_json(value), parse_constant=lambda constant: pytest.fail(constant))


@unhurried
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_keep_their_value(value: float) -> None:
    assert float(str(read_json(write_json(value)))) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (2**53 + 1, "9007199254740993"),
        (-0.0, "-0.0"),
        (1e300, "1e+300"),
        (Decimal("1E+5"), "1E+5"),
        (Decimal("-0.10"), "-0.10"),
        (Decimal(".5"), "0.5"),
        (Decimal("0E-10"), "0.0000000000"),
        (Decimal("1E-7"), "0.0000001"),
        (Decimal("1E-1001"), "1E-1001"),
        ('"\\\n\x00é', '"\\"\\\\\\n\\u0000é"'),
        ((), "[]"),
        ([], "[]"),
        ({}, "{}"),
        ((1, [2, {"a": None}]), '[1, [2, {"a": null}]]'),
        ({"a": 1, "b": {}}, '{"a": 1, "b": {}}'),
        (Number.ONE, "1"),
        (Word.ONE, '"one"'),
    ],
)
def test_how_it_is_written(value: Any, text: str) -> None:
    assert write_json(value) == text


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), -float("inf"), Decimal("NaN"), Decimal("sNaN"), Decimal("-Inf")],
)
def test_what_json_cannot_express_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="NaN"):
        write_json({"a": [value]})


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, object(), {1: "a"}, {None: 1}])
def test_what_has_no_json_type_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        write_json([value])


@pytest.mark.parametrize("value", ["\ud800", {"\udfff": 1}])
def test_lone_surrogates_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="surrogate"):
        write_json(value)


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="contains itself"):
        write_json(value)


def nested(levels: int, innermost: Any) -> Any:
    value = innermost
    for _ in range(levels):
        value = [value]
    return value


def loop(value: dict[str, Any]) -> dict[str, Any]:
    value["a"].append(value)
    return value


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"items": [{}, {}, {}, {"price": Decimal("NaN")}]}, "items[3].price"),
        (float("inf"), ""),
        ([1, [2, {3}]], "[1][1]"),
        ({"a": {"b": b"c"}}, "a.b"),
        ({"a": {"b": {1: 2}}}, "a.b"),
        ({"a b": {"": {"c": object()}}}, "['a b'][''].c"),
        ({"k" * 41: object()}, f"['{'k' * 40}'…]"),
        ({"a": ["", "\ud800"]}, "a[1]"),
        ({"a": {"\ud800": 1}}, "a"),
        (loop({"a": [1, 2]}), "a[2]"),
        # The same object twice is no loop.
        ([(twice := [1]), twice, {"a": set()}], "[2].a"),
        (nested(50_000, 1), ""),
        (nested(50_000, {1}), "[0]" * 99 + "…"),
    ],
)
def test_the_error_says_where_it_is(value: Any, path: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        write_json(value)
    assert str(caught.value).startswith(f"{path}: " if path else "")
    if not path:
        assert ": " not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "NaN", "[Infinity]", "-Infinity", "1 2", "'a'"])
def test_what_is_no_json_is_not_read(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each has words of its own
        read_json(text)


def test_what_is_nested_too_deeply_is_not_read() -> None:
    with pytest.raises(ValueError, match="deeply"):
        read_json("[" * 200_000)


def test_python_s_limit_for_long_integers_does_not_matter() -> None:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        text = "-" + "123456789" * 1000
        assert write_json(read_json(text)) == text
        assert write_json([read_json(f"1{'0' * 700}")]) == f"[1{'0' * 700}]"
    finally:
        sys.set_int_max_str_digits(limit)


def test_the_decimal_context_does_not_matter() -> None:
    with localcontext() as context:
        context.prec = 3
        context.capitals = 0
        assert same(read_json("1.23456789"), Decimal("1.23456789"))
        assert write_json(Decimal("1.23456789")) == "1.23456789"
        assert write_json(10**700 + 1) == "1" + "0" * 699 + "1"
        assert same(read_json(write_json(Decimal("1E+5"))), Decimal("1E+5"))
