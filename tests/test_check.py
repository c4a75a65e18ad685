"""What the server takes for JSON that it can store, and how large it is when it is read back."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import nullcontext
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import make
from tests.support.strategies import json_documents
from wfe.persistence.v1.event_pb2 import Event, GetEventResponse
from wfe.persistence.v1.workflow_pb2 import (
    ExecutionPointer,
    GetWorkflowInstanceResponse,
    PointerStatus,
    WorkflowInstance,
)
from wfe_persistence.errors import PersistenceError
from wfe_persistence.rpc.check import Check, json_rules, read_back, scalars
from wfe_persistence.rpc.status import violation_name


def objection(text: str) -> str:
    """Why a document is refused; empty: it is not."""
    check = Check(0, 0)
    check.json("", "data_json", text)
    try:
        check.done()
    except PersistenceError as exc:
        [violation] = exc.violations
        assert violation.field == "data_json"
        return violation_name(violation.reason)
    return ""


def nested(levels: int, inner: str = "", bracket: str = "[") -> str:
    if bracket == "[":
        return "[" * levels + inner + "]" * levels
    return '{"a":' * levels + (inner or "1") + "}" * levels


GOOD = {
    "scalars": ["null", "true", "false", "0", "-0", "1.5", '""', '"x"'],
    "containers": ["[]", "{}", "[[]]", '{"": {"": []}}', '[null, "a", 1, {"b": false}]'],
    "whitespace": [" 1 ", "\t[\r\n1\n,\n2 ]\n", '{ "a" : 1 }'],
    "escapes": ['"\\"\\\\\\/\\b\\f\\n\\r\\t"', '"\\u0041\\u00e9\\u20AC"', '{"\\u0061": 1}'],
    "surrogate pairs": ['"\\ud83d\\ude00"', '"\\uD83D\\uDE00"', '"\\ud800\\udc00\\udbff\\udfff"'],
    "what only looks like an escape": ['"\\\\u0000"', '"\\\\ud800"', '"\\\\\\\\u0000"'],
    "any character": ['"\x7f"', '"\u2028\ufeff\uffff"', '"😀"', '"\U0010ffff"', '{"é": 1}'],
    "the same key twice": ['{"a": 1, "a": 2}', '{"a": 1, "\\u0061": 2}'],
    "exponents": ["1e1000", "1E+1000", "1e-1000", "-1.5e1000", "1e0001000", "0e1000", "1e-0"],
    "digits": ["7" * 1000, "-" + "7" * 1000, "0." + "7" * 999, "7" * 500 + "." + "7" * 500],
    "many numbers": [f"[{','.join(['7' * 999] * 3)}]", f"[{','.join(['1e1000'] * 3)}]"],
    "numbers in strings": ['"1e1001"', f'"{"7" * 2000}"', '{"1e1001": "1e-9999"}'],
    "words in strings": ['"NaN"', '["Infinity", "-Infinity"]'],
    "100 levels": [nested(100), nested(100, "1"), nested(100, "", "{"), nested(50, nested(50))],
    "more brackets than levels": [f"[{','.join(['[]'] * 500)}]", nested(100, f'"{"[" * 500}"')],
    "brackets behind quotes": [f'["\\"{"[" * 200}"]', f'["\\\\", "{"[" * 200}"]', f'"{"]" * 200}"'],
}


@pytest.mark.parametrize("texts", GOOD.values(), ids=list(GOOD))
def test_good_json(texts: list[str]) -> None:
    assert {text: objection(text) for text in texts} == dict.fromkeys(texts, "")


@given(text=json_documents())
@settings(max_examples=150, deadline=None)
def test_any_good_json(text: str) -> None:
    assert objection(text) == ""


BAD = {
    "JSON_INVALID": [
        "", " ", "x", "nul", "True", "None", "'a'", "{a: 1}", "[1,]", '{"a": 1,}', "[1 2]", "[",
        "]", '"', '"a', '{"a"}', '{"a": }', '{1: 2}', "01", "-", "+1", ".5", "1.", "1e", "1e+",
        "0x1", "1_0", "\u0661", "\uff11", "NaN", "Infinity", "-Infinity", "[NaN]", "1 1", "{} {}",
        '{"a": -Infinity}', "[1]]", "\ufeff1", "\u00a01", "1\x00", '"\n"', '"\x1f"', '"\\x41"',
        '"\\u12"', '"\\u12g4"', '"\\u+123"', '"\\"', "// 1", "/**/1", "[1]x", nested(200)[:-1],
        nested(50) + "]",
    ],
    "JSON_CHARACTER": [
        '"\\u0000"', '"a\\u0000b"', '{"\\u0000": 1}', '[[{"a": ["\\u0000"]}]]', '"\\\\\\u0000"',
        '"\\ud800"', '"\\udfff"', '"\\ude00\\ud83d"', '"\\ud83d\\ud83d\\ude00"', '"\\ud83dx"',
        '{"\\ud83d": 1}', '"\\ud83d\\n"', '"\\uD83D\\\\uDE00"',
    ],
    "JSON_TOO_DEEP": [
        nested(101), nested(101, "1"), nested(101, "", "{"), nested(50, nested(51)),
        f"[1, {nested(100)}]", f'{{"a": 1, "b": {nested(100)}}}', nested(100_000),
        nested(100, f'["{"]" * 50}"]'),
    ],
    "JSON_NUMBER": [
        "1e1001", "1E+1001", "1e-1001", "-1e1001", "1e131071", "0e1001", "1e" + "9" * 5000,
        "1e-" + "0" * 20 + "1001", "[1, 1e1001]", '{"a": [1e1001]}', "7" * 2001,
        "-" + "7" * 2001, "0." + "7" * 2000, "7" * 2000 + "e1", f"[{'1' * 5000}]",
    ],
}  # fmt: skip


@pytest.mark.parametrize("reason", BAD)
def test_bad_json(reason: str) -> None:
    seen = {text: objection(text) for text in BAD[reason]}
    assert {text[:60]: found for text, found in seen.items() if found != reason} == {}


def test_a_text_may_be_bad_in_two_ways_but_is_bad() -> None:
    for text in (
        '["\\u0000", 1e1001]',
        nested(101, "1e1001"),
        nested(101, '"\\ud800"'),
        "[NaN, 1e1001",
    ):
        assert objection(text)


# Fragments of which much that is nearly JSON can be made.
FRAGMENTS = [
    *'"[]{}:,-+.eE01', "\\", '\\"', "\\\\", "\\u", "d83d", "\\ud83d", "\\ude00", "\\u0041",
    "\\u0000", "\\/", "\\x", " ", "\n", "\x0b", "\x00", "\x1f", "\x7f", "é", "😀", "1e5", "1.5",
    "true", "null", "NaN", "-Infinity", "tru", '"a"', '"a":1', "[]", "00", "-0", "1e1001", "\ufeff",
    "\u00a0", "//",
]  # fmt: skip


def nearly_json() -> st.SearchStrategy[str]:
    """Mostly invalid documents, and some valid ones."""
    pieces = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=8).map("".join)
    within = st.sampled_from(['"{}"', '["a", {}]', '{{"a": {}}}', '["{}", 1e5]', "{}"])
    spoiled = st.builds(
        lambda text, at, piece: text[: at % len(text)] + piece + text[at % len(text) :],
        json_documents(),
        st.integers(0, 10**6),
        pieces,
    )
    return st.builds(lambda form, piece: form.format(piece), within, pieces) | spoiled


def _reject(constant: str) -> None:
    raise ValueError(constant)


def reference(text: str) -> set[str]:
    """What may be said of a document, by Python's own decoder."""
    try:
        value = json.loads(
            text,
            parse_constant=_reject,
            parse_int=_Number,
            parse_float=_Number,
            object_pairs_hook=list,  # of pairs, and none is dropped
        )
    except ValueError:
        return {"JSON_INVALID"}
    return set(_faults(value, 0)) or {""}


class _Number(str):
    """A number as it is written."""


def _faults(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, _Number):
        mantissa, _, exponent = value.lower().partition("e")
        if (
            abs(int(exponent or 0)) > 1000
            or len(exponent) > 10
            or len(mantissa) > 2002
            or sum(map(str.isdigit, format(Decimal(value), "f"))) > 2000
        ):
            yield "JSON_NUMBER"
    elif isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            yield "JSON_CHARACTER"
    elif isinstance(value, list):
        if depth == 100:
            yield "JSON_TOO_DEEP"
        for item in value:
            for part in item if isinstance(item, tuple) else (item,):
                yield from _faults(part, depth + 1)


@given(text=nearly_json())
@settings(max_examples=600, deadline=None)
def test_verdict_is_that_of_another_decoder(text: str) -> None:
    assert objection(text) in reference(text)


@given(text=nearly_json() | json_documents(), piece=st.integers(1, 30))
@settings(max_examples=300, deadline=None)
def test_it_does_not_matter_where_a_long_document_is_cut(text: str, piece: int) -> None:
    def judged() -> object:
        try:
            json_rules.check_json(text)
            return json_rules.stored_bytes(text)
        except json_rules.BadJsonError as exc:
            return exc.reason

    whole = judged()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rules, "_PIECE", piece)
        in_pieces = judged()
    if whole != in_pieces:  # a document with two faults may be refused for either
        assert len(reference(text)) > 1


# What takes long to read would hold up every other call: one server has one event loop.

HARD = {
    "a string that does not end": "[" * 101 + '"' + '\\"' * 100_000,
    "strings that do not end": "[" * 101 + '"\\' * 100_000,
    "a long string": nested(101, f'"{"x" * 200_000}"'),
    "a long string of escapes": nested(101, '"' + "\\n" * 100_000 + '"'),
    "a long string with one escape": f'"{"x" * 200_000}\\u0041"',
    "numbers with exponents": f"[{','.join(['1e1'] * 50_000)}]",
    "numbers with large exponents": f"[{','.join(['1e1000'] * 30_000)}]",
    "many brackets": f"[{','.join(['[]'] * 65_000)}]",
    "brackets that do not match": "]" * 100_000 + "[" * 100_000,
    "brackets without end": "[" * 200_000,
}


# What is quadratic takes a day for these; what is linear, a moment.
@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", HARD.values(), ids=list(HARD))
def test_text_that_is_hard_to_read_is_judged(text: str) -> None:
    objection(text * 10)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("form", ["[{}]", '"{}"'])
def test_long_numbers_are_judged(form: str) -> None:
    """4 MB of digits, just fewer than are too many in a row."""
    assert objection(form.format(",".join(["7" * 1999] * 2000))) == ""


# How large a document is when it is read back.


class _Members(list[tuple[str, Any]]):
    """An object's members, also those that a later one replaces."""


def as_stored(text: str, *, every_member: bool) -> str:
    """A document as jsonb writes it out; with the members that it drops, if asked for."""
    hook: Any = _Members if every_member else lambda members: _Members(dict(members).items())
    return _written(
        json.loads(text, parse_int=Decimal, parse_float=Decimal, object_pairs_hook=hook)
    )


def _written(value: Any) -> str:
    match value:
        case Decimal():
            return format(value or abs(value), "f")  # PostgreSQL knows no negative zero
        case _Members():
            members = (f"{_written(key)}: {_written(item)}" for key, item in value)
            return f"{{{', '.join(members)}}}"
        case list():
            return f"[{', '.join(map(_written, value))}]"
        case _:
            return json.dumps(value, ensure_ascii=False)


def fits(text: str, limit: int) -> bool:
    """Whether the server would store an event with this content."""
    check = Check(10**9, limit)
    check.json("", "data_json", text)
    answer = GetEventResponse(event=Event(event_data_json=text))
    try:
        check.fits([answer])
    except PersistenceError:
        return False
    return True


def answer_size(text: str) -> int:
    return GetEventResponse(event=Event(event_data_json=text)).ByteSize()


@given(text=json_documents())
@settings(max_examples=150, deadline=None)
def test_size_of_the_answer(text: str) -> None:
    """Never taken for smaller than it is; for larger only by what jsonb drops or shortens."""
    assert not fits(text, answer_size(as_stored(text, every_member=False)) - 1)
    assert fits(text, answer_size(as_stored(text, every_member=True)) + len(text))


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("[1,2,3]", "[1, 2, 3]"),
        ("[1, 2, 3]", "[1, 2, 3]"),
        ("[ 1 ,\n\n2 ]", "[1, 2]"),
        ('{"a":1,"b":[]}', '{"a": 1, "b": []}'),
        ('"a,b:c , d"', '"a,b:c , d"'),
        ('"\\u0041\\u00e9\\ud83d\\ude00\\/"', '"Aé😀/"'),
        ('"\\u000a\\u0001"', '"\\n\\u0001"'),
        ("1e10", "10000000000"),
        ("1e-5", "0.00001"),
        ("-1.25E+10", "-12500000000"),
        ('["1e10", ",", ":"]', '["1e10", ",", ":"]'),
    ],
)
def test_size_of_the_answer_is_exact(text: str, stored: str) -> None:
    assert fits(text, answer_size(stored))
    assert not fits(text, answer_size(stored) - 1)


def test_every_attribute_of_a_pointer_is_measured() -> None:
    """A map that changed while it was iterated over gave keys twice, or left some out."""

    def response(attribute: str) -> GetWorkflowInstanceResponse:
        instance = WorkflowInstance(data_json="{}")
        pointer = instance.execution_pointers.add()
        for n in range(300):
            pointer.extension_attributes_json[f"key {n}"] = attribute
        return GetWorkflowInstanceResponse(instance=instance)

    limit = response('{"a": 1}').ByteSize()  # as PostgreSQL returns it
    Check(limit, limit).fits([response('{"a":1}')])
    with pytest.raises(PersistenceError):
        Check(limit, limit - 1).fits([response('{"a":1}')])


# Nothing is done in vain, and nothing twice.


class Counter:
    """Counts the calls of a function."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        self.calls = 0
        function = getattr(module, name)

        def counted(*args: Any) -> Any:
            self.calls += 1
            return function(*args)

        monkeypatch.setattr(module, name, counted)


def pointers(count: int, **fields: Any) -> list[ExecutionPointer]:
    status = PointerStatus.POINTER_STATUS_PENDING
    return [ExecutionPointer(id=f"{i}", status=status, **fields) for i in range(count)]


def test_the_check_ends_with_the_100th_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = Counter(monkeypatch, scalars, "check_json")
    instance = make.instance(execution_pointers=pointers(5000, outcome_json="x"))
    check = Check(0, 10**9)
    with pytest.raises(PersistenceError) as raised:
        check.instance(instance, "instance")
    assert len(raised.value.violations) == 100
    assert checked.calls == 1 + 100


def test_a_document_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the check already, where that looks at each number."""
    measured = Counter(monkeypatch, json_rules, "stored_bytes")
    again = Counter(monkeypatch, scalars, "stored_bytes")
    documents = [f"[{i}e1]" for i in range(50)] + [f'"{"x" * 40_000}{i}"' for i in range(5)]
    check = Check(10**9, 10**9)
    for i, text in enumerate(documents):
        check.json("", f"{i}", text)
    assert measured.calls == len(documents)
    check.fits([GetEventResponse(event=Event(event_data_json=text)) for text in documents])
    assert (measured.calls, again.calls) == (len(documents), 0)


def test_what_would_be_stored_is_measured_without_being_made() -> None:
    text = f"[{','.join(['1e1000'] * 100_000)}]"  # 700 kB, and 100 MB when it is read back
    tracemalloc.start()
    try:
        assert not fits(text, 2**22)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@given(documents=st.lists(json_documents(), min_size=1, max_size=5), at_limit=st.booleans())
@settings(max_examples=50, deadline=None)
def test_size_of_a_workflow_is_the_sum_of_its_parts(documents: list[str], at_limit: bool) -> None:
    def instance(documents: list[str]) -> WorkflowInstance:
        attributes = {f"{i}": text for i, text in enumerate(documents)}
        pointer = make.pointer("1", outcome_json=documents[0], extension_attributes_json=attributes)
        pointer.step_name = "x" * read_back.HEADER_BYTES  # or the header alone would count
        return make.instance(data_json=documents[-1], execution_pointers=[pointer])

    stored = ["x" * json_rules.stored_bytes(text) for text in documents]
    [response] = read_back.workflow(instance(stored))
    limit = response.ByteSize() - (not at_limit)
    check = Check(10**9, limit)
    with nullcontext() if at_limit else pytest.raises(PersistenceError):
        check.fits(read_back.workflow(instance(documents)))


def test_small_requests_are_not_measured() -> None:
    """The exact size is worth its time only near the limit."""

    def measured() -> Iterator[GetEventResponse]:
        raise AssertionError
        yield

    Check(1000, 11_000).fits(measured())
