"""How large a document is once stored, as predicted and as PostgreSQL says."""

from __future__ import annotations

import json
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.strategies import json_documents
from wfe_persistence.rpc.check import json_rules


def _nothing_is_dropped(text: str) -> bool:
    """Neither one of two members of the same name nor the sign of a zero."""
    dropped = False

    def members(pairs: list[tuple[str, object]]) -> None:
        nonlocal dropped
        dropped |= len(dict(pairs)) < len(pairs)

    def number(literal: str) -> None:
        nonlocal dropped
        dropped |= literal.startswith("-") and not literal.lower().partition("e")[0].strip("-0.")

    json.loads(text, object_pairs_hook=members, parse_int=number, parse_float=number)
    return not dropped


ODD = [
    "1.50e1", "0e5", "0.00e1", "0e-4", "1E+0", "100e-2", "0.001e3", "0.0010e2", "12.34e-1000",
    "1e1000", "-1.5e3", "1e0001000", '"\\u0001\\u001f\\u0009\\u007f\\u0080"',
    '"\\u07ff\\u0800\\uffff"', '"\\u0022\\u005c\\u002f\\/"', '"\\b\\f\\n\\r\\t\\\"\\\\"',
    '"\\ud83d\\ude00\\uDBFF\\uDFFF"', '[ 1 , "a , b" ,\t{ "c" : [ ] } ]',
    '"\u2028\ufeff\U0010ffff"',
]  # fmt: skip


@pytest.fixture(scope="module")
def jsonb(postgres_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


def stored(connection: psycopg.Connection, text: str) -> int:
    [size] = connection.execute("SELECT octet_length(%s::jsonb::text)", [text]).fetchone() or [0]
    return int(size)


@pytest.mark.parametrize("text", ODD)
def test_odd_documents(jsonb: psycopg.Connection, text: str) -> None:
    json_rules.check_json(text)
    assert json_rules.stored_bytes(text) == stored(jsonb, text)


@given(text=json_documents(), piece=st.sampled_from([20, 32_768]))
@settings(max_examples=500, deadline=None)
def test_any_document(jsonb: psycopg.Connection, text: str, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rules, "_PIECE", piece)
        predicted = json_rules.stored_bytes(text)
    if _nothing_is_dropped(text):
        assert predicted == stored(jsonb, text)
    else:
        assert predicted > stored(jsonb, text)
    checked = json_rules.check_json(text)
    assert checked in (predicted, None)
