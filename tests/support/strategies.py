"""Hypothesis strategies: messages that are valid by the comments of the protos, the odder the
better.

Ids are odd texts with a UUID behind, so that no example meets another one's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.support import make
from wfe.persistence.v1.command_pb2 import CommandName, ScheduledCommand
from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.store_pb2 import ExecutionError
from wfe.persistence.v1.subscription_pb2 import EventSubscription
from wfe.persistence.v1.transfer_pb2 import ErrorRecord, Record, WorkflowRecord
from wfe.persistence.v1.workflow_pb2 import (
    ExecutionPointer,
    PointerStatus,
    WorkflowInstance,
    WorkflowStatus,
    WorkflowView,
)

T = TypeVar("T")

INT4_MAX: Final = 2**31 - 1
INT8_MIN: Final = -(2**63)
INT8_MAX: Final = 2**63 - 1
MOST_LEVELS: Final = 100

_ODD_TEXTS: Final = (
    "'; DROP TABLE wfc.workflows; --", "$1", "%s", "%00", "\\", "\\x00", "\\u0000", '"', "'",
    "null", "NULL", "{}", "[]", "0", "\x01\x1f\x7f", " ", "\t\r\n", "\x85", "\xa0", " lead",
    "trail ", "\u00e9", "e\u0301", "\ufb01", "I\u0307", "\u0130", "\u200b", "\u202e", "\u2028",
    "\ufeff", "\ufffe", "\uffff", "\U0001f469\u200d\U0001f680", "\U0010ffff", "\ud7ff", "\ue000",
)  # fmt: skip


def texts(max_bytes: int = 200) -> SearchStrategy[str]:
    """Any text that can be stored: all of Unicode but NUL (and surrogates, which UTF-8 lacks)."""
    characters = st.characters(codec="utf-8", exclude_characters="\0")
    some = st.text(characters, max_size=20) | st.sampled_from(_ODD_TEXTS)
    long = st.builds(lambda text, n: text * n, some, st.integers(1, 200))
    return (some | long).map(lambda text: _cut(text, max_bytes))


def _cut(text: str, max_bytes: int) -> str:
    return text.encode()[:max_bytes].decode(errors="ignore")


def keys() -> SearchStrategy[str]:
    """A text of at most 512 bytes."""
    return texts(512)


def names() -> SearchStrategy[str]:
    """A text of at most 512 bytes, not blank."""
    return keys().map(lambda text: text if text.strip() else _cut(text, 500) + "name")


def new_ids() -> SearchStrategy[str]:
    """An id that no one has, of at most 512 bytes."""
    return texts(512 - 36).map(lambda text: text + make.new_id("")[1:])


def times() -> SearchStrategy[Timestamp]:
    """A time of the years 1 to 9999, to the nanosecond."""
    first, last = make.FIRST_TIME.seconds, make.LAST_TIME.seconds
    seconds = st.integers(first, last) | st.sampled_from((first, -1, 0, 1, 2**31, last))
    nanos = st.integers(0, 999_999_999) | st.sampled_from((0, 1, 999, 1000, 999_999_999))
    return st.builds(Timestamp, seconds=seconds, nanos=nanos)


def int4s() -> SearchStrategy[int]:
    """A number from 0 to 2^31-1."""
    return st.integers(0, INT4_MAX) | st.sampled_from((0, 1, INT4_MAX))


def int8s() -> SearchStrategy[int]:
    """Any int64."""
    return st.integers(INT8_MIN, INT8_MAX) | st.sampled_from((INT8_MIN, -1, 0, 1, INT8_MAX))


def maybe(strategy: SearchStrategy[T]) -> SearchStrategy[T | None]:
    """Or absent."""
    return st.none() | strategy


# JSON documents as text. What has levels is a pair, text and depth, until it is finished.

_Document = tuple[str, int]
_SPACE = st.sampled_from(("", "", "", " ", "\n", " \t\r\n"))


def json_documents() -> SearchStrategy[str]:
    """A JSON document as text, however it may be written down."""
    scalars = (_numbers() | _strings() | st.sampled_from(("null", "true", "false"))).map(
        lambda text: (text, 0)
    )
    documents = st.recursive(scalars, _containers, max_leaves=6)
    deep = st.builds(_nest, documents, st.integers(0, MOST_LEVELS), st.sampled_from("[{"))
    return st.builds(
        lambda before, document, after: before + document[0] + after,
        _SPACE,
        documents | deep,
        _SPACE,
    )


def _containers(children: SearchStrategy[_Document]) -> SearchStrategy[_Document]:
    lists = st.builds(_list, st.lists(children, max_size=4), _SPACE)
    # The same key may stand in an object twice, and be written in two ways.
    members = st.lists(st.tuples(_strings() | st.just('"k"'), children), max_size=4)
    return lists | st.builds(_object, members, _SPACE)


def _list(items: list[_Document], space: str) -> _Document:
    text = f"{space},{space}".join(text for text, _ in items)
    return f"[{space}{text}{space}]", 1 + max((depth for _, depth in items), default=0)


def _object(members: list[tuple[str, _Document]], space: str) -> _Document:
    text = f"{space},{space}".join(f"{key}{space}:{space}{text}" for key, (text, _) in members)
    return f"{{{space}{text}{space}}}", 1 + max((depth for _, (_, depth) in members), default=0)


def _nest(document: _Document, levels: int, bracket: str) -> _Document:
    text, depth = document
    levels = min(levels, MOST_LEVELS - depth)
    if bracket == "[":
        return "[" * levels + text + "]" * levels, depth + levels
    return '{"":' * levels + text + "}" * levels, depth + levels


def _numbers() -> SearchStrategy[str]:
    """A number: up to 1000 digits, an exponent up to 1000."""
    digits = st.integers(0, 10**20) | st.sampled_from((2**53 + 1, 2**63, 2**64, 10**999))
    whole = st.builds(lambda sign, number: f"{sign}{number}", st.sampled_from(("", "-")), digits)
    fraction = st.just("") | st.from_regex(r"\.[0-9]{1,30}", fullmatch=True)
    exponent = st.just("") | st.builds(
        lambda letter, sign, number: f"{letter}{sign}{number}",
        st.sampled_from("eE"),
        st.sampled_from(("", "+", "-")),
        st.integers(0, 1000) | st.just(1000),
    )
    decimals = st.builds(
        lambda number, *rest: number[:900] + "".join(rest), whole, fraction, exponent
    )
    return decimals | whole | st.sampled_from(("0", "-0", "-0.0", "0e1000", "9" * 1000, "1.10"))


def _strings() -> SearchStrategy[str]:
    """A string, its characters as they are or escaped: all of them, none, every other one."""
    content = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
    return st.builds(_string, content | st.sampled_from(_ODD_TEXTS), st.sampled_from((0, 1, 2)))


_SHORT_ESCAPES: Final = {
    '"': '\\"', "\\": "\\\\", "/": "\\/", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r",
    "\t": "\\t",
}  # fmt: skip


def _string(content: str, escape_every: int) -> str:
    written = (
        _written(character, escaped=escape_every > 0 and i % escape_every == 0)
        for i, character in enumerate(content)
    )
    return f'"{"".join(written)}"'


def _written(character: str, *, escaped: bool) -> str:
    if character in _SHORT_ESCAPES and (escaped or character != "/"):
        return _SHORT_ESCAPES[character]
    if escaped or character < " ":
        data = character.encode("utf-16-be")
        return "".join(f"\\u{data[i : i + 2].hex()}" for i in range(0, len(data), 2))
    return character


# Messages. Fields of None are absent.


def execution_pointers() -> SearchStrategy[ExecutionPointer]:
    """A pointer; its id is to be unique within its workflow."""
    json = maybe(json_documents())
    lists = st.lists(names(), max_size=3)
    return _builds(
        ExecutionPointer,
        id=names(),
        step_id=int4s(),
        active=st.booleans(),
        status=_known(PointerStatus.values()),
        sleep_until=maybe(times()),
        persistence_data_json=json,
        start_time=maybe(times()),
        end_time=maybe(times()),
        event_name=maybe(keys()),
        event_key=maybe(keys()),
        event_published=st.booleans(),
        event_data_json=json,
        step_name=maybe(texts()),
        retry_count=int4s(),
        children=lists,
        context_item_json=json,
        predecessor_id=maybe(keys()),
        outcome_json=json,
        scope=lists,
        extension_attributes_json=st.dictionaries(texts(), json_documents(), max_size=2),
    )


def workflow_instances() -> SearchStrategy[WorkflowInstance]:
    """A workflow of a new id, with a new name or none."""
    pointers = st.lists(execution_pointers(), max_size=2, unique_by=lambda pointer: pointer.id)
    return _builds(
        WorkflowInstance,
        id=new_ids(),
        name=st.just("") | new_ids(),
        root_workflow_id=maybe(keys()),
        workflow_definition_id=names(),
        version=int4s(),
        description=maybe(texts()),
        reference=maybe(keys()),
        execution_pointers=pointers,
        next_execution=maybe(int8s()),
        status=_known(WorkflowStatus.values()),
        data_json=json_documents(),
        create_time=times(),
        complete_time=maybe(times()),
        revision=int8s(),
        extension_attributes_json=st.dictionaries(texts(200), st.just("null"), max_size=2),
        view=st.sampled_from(
            (WorkflowView.WORKFLOW_VIEW_UNSPECIFIED, WorkflowView.WORKFLOW_VIEW_FULL)
        ),
    )


def events() -> SearchStrategy[Event]:
    """An event of a new id."""
    return _builds(
        Event,
        id=new_ids(),
        event_name=names(),
        event_key=keys(),
        event_data_json=json_documents(),
        event_time=times(),
        is_processed=st.booleans(),
    )


def event_subscriptions() -> SearchStrategy[EventSubscription]:
    """A subscription of a new id, open or held."""
    return _builds(
        EventSubscription,
        id=new_ids(),
        workflow_id=names(),
        step_id=int4s(),
        execution_pointer_id=keys(),
        event_name=names(),
        event_key=keys(),
        subscribe_as_of=times(),
        subscription_data_json=maybe(json_documents()),
        external_token=maybe(names()),
        external_worker_id=maybe(keys()),
        external_token_expiry=maybe(times()),
        external_token_epoch=int8s(),
    )


def scheduled_commands() -> SearchStrategy[ScheduledCommand]:
    """A command with new data."""
    return _builds(
        ScheduledCommand,
        command_name=_known(CommandName.values()),
        data=texts(2048 - 36).map(lambda text: text + make.new_id("")[1:]),
        execute_time=int8s(),
    )


def execution_errors() -> SearchStrategy[ExecutionError]:
    """An error of a new workflow."""
    return _builds(
        ExecutionError,
        error_time=times(),
        workflow_id=new_ids(),
        execution_pointer_id=keys(),
        message=texts(2000),
    )


def records() -> SearchStrategy[Record]:
    """A record that can be imported into an empty namespace, odd in all fields."""
    hashes = st.binary(min_size=32, max_size=32) | st.just(b"")
    positive = st.integers(1, INT8_MAX) | st.sampled_from((1, 2, INT8_MAX))
    return st.one_of(
        st.builds(_workflow_record, workflow_instances(), positive, positive, hashes),
        st.builds(_subscription_record, event_subscriptions(), int4s(), hashes),
        st.builds(lambda e, h: Record(event=e, creation_hash=h), events(), hashes),
        execution_errors().map(lambda e: Record(error=ErrorRecord(error=e))),
        scheduled_commands().map(lambda c: Record(command=c)),
    )


def _workflow_record(w: WorkflowInstance, one: int, other: int, hash_: bytes) -> Record:
    w.name = w.name or w.id
    w.revision = max(one, other)
    record = WorkflowRecord(instance=w, first_revision=min(one, other))
    return Record(workflow=record, creation_hash=hash_)


def _subscription_record(s: EventSubscription, epoch: int, hash_: bytes) -> Record:
    s.external_token_epoch = epoch
    return Record(subscription=s, creation_hash=hash_)


def _known(values: list[Any]) -> SearchStrategy[Any]:
    """A value of an enum other than UNSPECIFIED."""
    return st.sampled_from([value for value in values if value != 0])


def _builds(kind: Callable[..., T], /, **fields: SearchStrategy[Any]) -> SearchStrategy[T]:
    """A message of fields; every field of it must be among them, so that a new one is not left
    out."""
    known = {field.name for field in kind.DESCRIPTOR.fields}  # type: ignore[attr-defined]
    assert known == set(fields), known ^ set(fields)
    return st.fixed_dictionaries(fields).map(lambda given: kind(**given))
