"""docs/api/: the protocol, a page for each proto file.

What there is, the descriptors of the stubs tell; their comments are read from the protos, since
stubs have none. An element that one of the two does not have ends the generation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Final

import grpc
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.rpc.services import ADDS, LASTS, READS, REQUIRED_ROLE, SERVER_WIDE, Source

PAGES: Final = Path(__file__).with_name("api")
PROTOS: Final = PAGES.parents[1] / "protos/wfe/persistence/v1"
PACKAGE: Final = "wfe.persistence.v1"

# The pages in the order of the menu, each with its heading.
TITLES: Final = {
    "workflow": "Workflows",
    "event": "Events",
    "subscription": "Subscriptions",
    "command": "Scheduled commands",
    "queue": "Queues",
    "queue_item": "Items of queues",
    "item_error": "Errors of items",
    "lock": "Locks",
    "lifecycle": "Lifecycle events",
    "store": "Store, namespaces, retention",
    "transfer": "Export and import",
    "list_order": "Order of lists",
    "error_reason": "Error reasons",
}

_GENERATED: Final = "<!-- Generated from protos/wfe/persistence/v1 by `./run gen`. -->"

# Names of status codes are not linked, even if a reason is called the same.
REASONS: Final = (
    {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()}  # noqa: SIM118
    - {code.name for code in grpc.StatusCode}
    - {"UNSPECIFIED"}
)

INTRODUCTION: Final = f"""\
# API reference

{_GENERATED}

The package is `{PACKAGE}`. gRPC reflection serves it, and the protos are in
[protos/wfe/persistence/v1](../../protos/wfe/persistence/v1); [stubs.md](../stubs.md) has how to generate
clients.

**For every call:**

- The metadata `wfe-namespace` names the [namespace](../concepts.md#namespaces); without it, that is `default`.
- Where databases have read replicas, the metadata `wfe-read` and `wfe-lsn` say what is read from, and what the answer
  must contain: see Database, and [replicas.md](../replicas.md).
- Its caller needs the role of the RPC, or a higher one, where callers have roles
  ([security.md](../security.md)): `reader`, `host`, `operator`, `admin`.
- A request has at most `--max-message-bytes` (4 MiB), and takes at most `--max-deadline`.
- An error has a reason. Those of an RPC are in its description; besides them, any call may be refused for its
  form (INVALID_FIELD, MALFORMED_MESSAGE, MESSAGE_TOO_LARGE, INVALID_NAMESPACE, NAMESPACE_NOT_FOUND), its caller
  (CREDENTIALS_REQUIRED, CREDENTIALS_INVALID, CREDENTIALS_EXPIRED, ACCESS_DENIED, KEYS_UNAVAILABLE), the load
  (TOO_MANY_CALLS, CALLER_LIMITED, NAMESPACE_BUSY, POOL_EXHAUSTED, ROW_LOCKED, TRANSACTION_CONFLICT), the
  database (DATABASE_UNAVAILABLE, COMMIT_OUTCOME_UNKNOWN, DATABASE_FULL, DATABASE_PERMISSION_DENIED,
  SCHEMA_OUTDATED, SCHEMA_TOO_NEW), or end with the server or its time (SHUTTING_DOWN, DEADLINE_EXCEEDED).
  An RPC that adds something may be refused with NAMESPACE_FULL.

| RPC | role | |
|---|---|---|
"""

# What begins an element, and its name.
_SCOPE: Final = re.compile(r"\s*(message|enum|service|oneof) (\w+) \{(.*)$")
_ELEMENT: Final = re.compile(r"\s*(?:rpc (\w+)\(|(?:[\w.]+ )?[\w.<>, ]*?(\w+) = -?\d+)")


@cache
def files() -> dict[str, FileDescriptorProto]:
    """The proto files by the names of their pages."""
    found = {}
    for path in sorted(PROTOS.glob("*.proto")):
        module = import_module(f"{PACKAGE}.{path.stem}_pb2")
        found[path.stem] = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(found[path.stem])
    if unknown := found.keys() ^ TITLES.keys():
        raise SystemExit(f"docs/protocol.py: what is the heading of {', '.join(sorted(unknown))}?")
    return {name: found[name] for name in TITLES}


@cache
def comments(name: str) -> dict[str, str]:
    """The comments of a file by the paths of their elements: `Lock.owner`, `LockService.ListLocks`.
    Of values of enums too: `QueueKind.QUEUE_KIND_PLAIN`."""
    found: dict[str, str] = {}
    scopes: list[str | None] = []
    above: list[str] = []
    for line in (PROTOS / f"{name}.proto").read_text("utf-8").splitlines():
        stripped = line.strip()
        if stripped.startswith("//"):
            above.append(stripped[2:].removeprefix(" "))
            continue
        path = [scope for scope in scopes if scope]
        if scope := _SCOPE.match(line):
            kind, own, rest = scope.groups()
            if kind != "oneof":
                found[".".join([*path, own])] = "\n".join(above)
            if "}" not in rest:
                # The fields of a oneof are those of its message.
                scopes.append(own if kind != "oneof" else None)
        elif stripped.startswith("}"):
            scopes.pop()
        elif path and (element := _ELEMENT.match(line)):
            found[".".join([*path, element[1] or element[2]])] = "\n".join(above)
        above = []
    return found


def _comment(name: str, path: str) -> str:
    try:
        text = comments(name)[path]
    except KeyError:
        raise SystemExit(f"{name}.proto does not have {path}: ./run gen") from None
    if not text:
        raise SystemExit(f"{name}.proto: {path} has no comment")
    return text


def _described(file: FileDescriptorProto) -> Iterator[str]:
    """The names of what a file has a section for."""
    yield from (message.name for message in file.message_type)
    yield from (enum.name for enum in file.enum_type)
    yield from (service.name for service in file.service)


@cache
def _anchors() -> dict[str, str]:
    """Where messages, enums and RPCs are described, by their names."""
    found: dict[str, str] = {}
    for name, file in files().items():
        names = [*_described(file)]
        names += [method.name for service in file.service for method in service.method]
        for each in names:
            if each in found:
                raise SystemExit(f"docs/protocol.py: {each} is described twice")
            found[each] = f"{name}.md#{each.lower()}"
    return found


def _linked(text: str, own: str = "") -> str:
    """A comment as Markdown, with links to what it names besides its `own` name."""

    def linked(found: re.Match[str]) -> str:
        word = found[0]
        if word in REASONS:
            return f"[{word}](../errors.md#{word.lower()})"
        known = word in _anchors() and word != own
        return f"[{word}]({_anchors()[word]})" if known else word

    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`")
        else re.sub(r"\b[A-Z][A-Za-z_]+\b", linked, part.replace("<", "&lt;"))
        for part in parts
    )  # fmt: skip


def _cell(text: str) -> str:
    """A comment as one cell of a table."""
    paragraphs = [" ".join(each.split()) for each in re.split(r"\n\n+", text)]
    return "<br>".join(map(_linked, paragraphs)).replace("|", "\\|")


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    """What a field holds."""
    entries = {each.name: each for each in message.nested_type if each.options.map_entry}
    last = field.type_name.rpartition(".")[2]
    if last in entries:
        key, value = entries[last].field
        return f"map of {_type(key, message)} to {_type(value, message)}"
    if field.type_name.startswith(f".{PACKAGE}."):
        kind = f"[{last}]({_anchors()[last]})"
    elif field.type_name:
        kind = last
    else:
        kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"list of {kind}"
    if field.proto3_optional:
        return f"optional {kind}"
    if field.HasField("oneof_index"):
        return f"{kind}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return kind


def _message(name: str, message: DescriptorProto) -> Iterator[str]:
    yield f"### {message.name}\n\n{_linked(_comment(name, message.name), message.name)}\n\n"
    if not message.field:
        return
    yield "| field | type | meaning |\n|---|---|---|\n"
    for field in message.field:
        comment = _cell(_comment(name, f"{message.name}.{field.name}"))
        yield f"| `{field.name}` ({field.number}) | {_type(field, message)} | {comment} |\n"
    yield "\n"


def _enum(name: str, enum: EnumDescriptorProto) -> Iterator[str]:
    yield f"### {enum.name}\n\n{_linked(_comment(name, enum.name), enum.name)}\n\n"
    yield "| value | number | meaning |\n|---|---|---|\n"
    for value in enum.value:
        comment = _cell(_comment(name, f"{enum.name}.{value.name}"))
        yield f"| `{value.name}` | {value.number} | {comment} |\n"
    yield "\n"


_READS_NOTES: Final = {
    Source.REPLICA: "from a replica unless `wfe-read` is `primary`",
    Source.EITHER: "from a replica if `wfe-read` is `replica`",
}
"""Where an RPC reads, if there are replicas."""


def _notes(method: MethodDescriptorProto) -> str:
    """What the server's tables say of an RPC."""
    notes = [f"role `{REQUIRED_ROLE[method.name].name.lower()}`"]
    if method.name in SERVER_WIDE:
        notes.append("of the whole server")
    if method.server_streaming:
        notes.append("a stream without a maximum deadline" if method.name in LASTS else "a stream")
    if method.name in ADDS:
        notes.append("refused when the namespace is full")
    if note := _READS_NOTES.get(READS.get(method.name, Source.PRIMARY)):
        notes.append(note)
    return ", ".join(notes)


def _service(name: str, service: ServiceDescriptorProto) -> Iterator[str]:
    yield f"## {service.name}\n\n{_linked(_comment(name, service.name), service.name)}\n\n"
    for method in service.method:
        of, to = (each.rpartition(".")[2] for each in (method.input_type, method.output_type))
        stream = "stream of " if method.server_streaming else ""
        streamed = "stream of " if method.client_streaming else ""
        yield (
            f"### {method.name}\n\n"
            f"{streamed}[{of}]({_anchors()[of]}) → {stream}[{to}]({_anchors()[to]}); {_notes(method)}.\n\n"
            f"{_linked(_comment(name, f'{service.name}.{method.name}'), method.name)}\n\n"
        )


def page(name: str) -> str:
    """The page of a proto file."""
    file = files()[name]
    if unknown := {path for path in comments(name) if "." not in path} - set(_described(file)):
        raise SystemExit(f"{name}.proto has {', '.join(sorted(unknown))}: ./run gen")
    parts = [f"# {TITLES[name]}\n\n{_GENERATED}\n\n"]
    for service in file.service:
        parts += _service(name, service)
    if file.message_type:
        parts.append("## Messages\n\n")
    for message in file.message_type:
        parts += _message(name, message)
    if file.enum_type:
        parts.append("## Enums\n\n")
    for enum in file.enum_type:
        parts += _enum(name, enum)
    return "".join(parts).rstrip() + "\n"


def index() -> str:
    """The page with all RPCs."""
    introduction = "\n".join(
        line if line.startswith(("<!--", "#")) else _linked(line)
        for line in INTRODUCTION.splitlines()
    )
    parts = [introduction, "\n"]
    for name, file in files().items():
        for service in file.service:
            parts.append(f"| **[{service.name}]({_anchors()[service.name]})** | | |\n")
            for method in service.method:
                first = _comment(name, f"{service.name}.{method.name}").split("\n\n")[0]
                sentence = re.split(r"(?<=[^.][a-z`)])\. ", " ".join(first.split()))[0]
                role = REQUIRED_ROLE[method.name].name.lower()
                parts.append(
                    f"| [{method.name}]({_anchors()[method.name]}) | {role} "
                    f"| {_cell(sentence.rstrip('.'))} |\n"
                )
    return "".join(parts)


FILES: Final = {PAGES / "index.md": index} | {
    PAGES / f"{name}.md": lambda name=name: page(name) for name in TITLES
}
