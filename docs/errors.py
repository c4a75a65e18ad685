"""docs/errors.md: the reasons in error_reason.proto, and what to do about each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

PAGE: Final = Path(__file__).with_suffix(".md")
PROTO: Final = PAGE.parents[1] / "protos/wfe/persistence/v1/error_reason.proto"

# What to do, by reason: the caller's part first, then the operator's.
REMEDIES: Final = {
    "WORKFLOW_NOT_FOUND": "Is it the right namespace (metadata `wfe-namespace`)? It may have been deleted or "
    "purged; the audit log knows by whom.",
    "EVENT_NOT_FOUND": "As for workflows. Processed events are what purges remove first.",
    "SUBSCRIPTION_NOT_FOUND": "It was terminated, most likely by a host that handled its event: let go of it.",
    "NAMESPACE_NOT_FOUND": "Create it with CreateNamespace, or correct the metadata; ListNamespaces shows which "
    "there are. Without a role in a namespace, a caller is told ACCESS_DENIED instead.",
    "NAMESPACE_SET_NOT_FOUND": "Create it with CreateNamespaceSet, or correct its name. A namespace is not a set of one "
    "member.",
    "POINTER_NOT_FOUND": "The patch was made from another state than the stored one. Load the workflow again, "
    "and give the patch its revision.",
    "DATABASE_NOT_FOUND": "Correct the name or the labels; ListNamespaces shows which databases are in use. Or add "
    "the database to the settings of all servers ([databases.md](databases.md)).",
    "WORKFLOW_ALREADY_EXISTS": "Give each workflow an id of its own, or none: the store makes one. A repetition of "
    "the same creation is no error.",
    "NAME_TAKEN": "Names are unique in a namespace. Choose another, or find the workflow that has it with "
    "GetWorkflowInstanceByName.",
    "EVENT_ALREADY_EXISTS": "An id names one event for ever. If the content differs on purpose, use another id.",
    "SUBSCRIPTION_ALREADY_EXISTS": "As for events.",
    "REQUEST_ID_REUSED": "A `request_id` names one write. Make a new one for each, and keep it for its repetitions.",
    "RECORD_CONFLICT": "Import into an empty namespace, or say `--on-conflict skip` to keep what the store has. "
    "What was stored before stays; the same import can be repeated.",
    "NAMESPACE_IN_OTHER_DATABASE": "Use it where it is, or create another one. CreateNamespace without a database "
    "takes it as it is.",
    "NAMESPACE_SET_EXISTS": "Use the set as it is, with the number of members in the error's metadata, or create one of "
    "another name.",
    "REVISION_MISMATCH": "Somebody else has written. Load the workflow, apply the change again, write again. If it "
    "happens all the time, two hosts run the same workflow: hold a lock, and name it in `held_lock_tokens`.",
    "TRANSACTION_CONFLICT": "Repeat the call after the time in RetryInfo. If it is frequent, look for another program "
    "that writes these tables in an order of its own: PostgreSQL's log names both statements.",
    "ROW_LOCKED": "Repeat the call later. `pg_locks` and `pg_stat_activity` show who holds the lock: usually a session "
    "that is `idle in transaction`, a migration or a dump.",
    "TOKEN_MISMATCH": "The claim has expired, and somebody else may have it. Drop the work; do not write.",
    "LEASE_LOST": "As for claims: the item, command or lock is somebody else's now. If work takes longer than its "
    "lease, renew it in time, or ask for a longer one.",
    "TRUNCATE_NOT_ALLOWED": "TruncateAll is for tests. Start the server with `--allow-truncate` if that is what it is "
    "for.",
    "SCHEMA_OUTDATED": "Run `wfe-persistence migrate up`, or call EnsureStoreExists, or start the server without "
    "`--no-migrate`. What takes longer than `--migrate-seconds` waits for `migrate up` "
    "([upgrading.md](upgrading.md#up)).",
    "SCHEMA_TOO_NEW": "This server is older than its store allows: upgrade it. `wfe-persistence migrate status` shows "
    "both versions ([upgrading.md](upgrading.md#a-newer-store)).",
    "DATABASE_PERMISSION_DENIED": "Grant the server's role what it needs: `wfe-persistence migrate grants` prints it. "
    "The log names the statement.",
    "NAMESPACE_NOT_EMPTY": "Look at what is in it, then repeat with `force`. Tables and views that are not the server's "
    "must be dropped by hand.",
    "NAMESPACE_SET_INCOMPLETE": "Repeat the CreateNamespaceSet or DeleteNamespaceSet that was interrupted, which finishes "
    "it; or wait for the one that is at work.",
    "NAMESPACE_IN_SET": "Delete the whole set with DeleteNamespaceSet. To empty one member, use purges.",
    "DELETE_NAMESPACE_NOT_ALLOWED": "Start a server with `--allow-delete-namespace`, if that is wanted.",
    "CREATE_NAMESPACE_NOT_ALLOWED": "Start the server with `--allow-create-namespace`, or create namespaces through one "
    "that only administrators reach.",
    "STORE_NOT_OWNED": "Two installations share the database. Give this one another `--schema`, or namespaces of other "
    "names.",
    "MOVE_NOT_POSSIBLE": "The message says what is missing; [databases.md](databases.md#move-a-namespace) has what a move "
    "needs.",
    "MOVE_IN_PROGRESS": "Wait for that move, or give it up with `wfe-persistence namespace move NAME --abort`. One that "
    "has switched can only be moved back.",
    "INVALID_FIELD": "`google.rpc.BadRequest` names each field and what is wrong with it "
    "([below](#what-is-wrong-with-a-field)). It is a bug of the caller: repeating the call does not help.",
    "MALFORMED_MESSAGE": "The client's stubs are not those of this protocol, or put bytes in a text field.",
    "INVALID_PAGE_TOKEN": "Begin again with the first page. All other fields must be the same for every page.",
    "INVALID_NAMESPACE": "Use lower-case letters, digits and `_`, at most 40, a letter first; and send the metadata "
    "once.",
    "MESSAGE_TOO_LARGE": "Keep large data elsewhere and its address in the workflow; write patches instead of whole "
    "workflows; split batches. Or raise `--max-message-bytes` on the server, and the limits of clients and "
    "proxies with it.",
    "ANSWER_TOO_LARGE": "Of a read: ask for a smaller page or view. Of a write: what it would store is too large to "
    "be read again; as for MESSAGE_TOO_LARGE.",
    "POOL_EXHAUSTED": "Repeat the call later, with fewer at a time. If the database is slow, that is the cause; if it is "
    "idle, raise `--pool-size` or start another server.",
    "DATABASE_FULL": "Free disk space or connections of PostgreSQL; its log says which.",
    "NAMESPACE_BUSY": "Fewer concurrent calls for this namespace, or more servers.",
    "TOO_MANY_CALLS": "Fewer concurrent calls on this connection, or more servers; `--max-calls`, "
    "`--max-calls-per-connection`, `--max-request-mb`.",
    "TOO_MANY_NAMESPACES": "Delete some, or raise `--max-namespaces`.",
    "ADMINISTRATION_BUSY": "Create, migrate and delete namespaces fewer at a time.",
    "CALLER_LIMITED": "Repeat the call after the time in RetryInfo. The limit is in the policy file "
    "([security.md](security.md#limits)).",
    "NAMESPACE_FULL": "Purge ended workflows, processed events and old errors, or raise the limit in the policy file. "
    "Space on disk comes back when PostgreSQL has vacuumed.",
    "DEADLINE_EXCEEDED": "Nothing was written, or the answer was lost: see the RPC's comment. Give the call more time, "
    "or find out why the database is slow: the metric "
    "`wfe_persistence_database_round_trip_seconds` names the statement.",
    "CURSOR_EXPIRED": "Of an export: begin anew. Of a watcher: start from `oldest_cursor`, and read what was missed from the store itself. A watcher that is away "
    "for long needs a longer `--lifecycle-retention`.",
    "READER_TOO_SLOW": "Resume from the `cursor`. If it happens again, handle events in several tasks, or watch fewer of "
    "them.",
    "DATABASE_UNAVAILABLE": "Repeat the call; the clients do. The server's log says, once, why the database can't be "
    "reached, and `/readyz?verbose` too.",
    "COMMIT_OUTCOME_UNKNOWN": "Repeat the same call if it is idempotent, or has a `request_id` or ids of its own; else "
    "read first whether it was applied.",
    "SHUTTING_DOWN": "Repeat the call; another server, or this one after its restart, answers it.",
    "KEYS_UNAVAILABLE": "The server can't fetch the issuer's keys: its log says why. Calls with tokens signed by keys "
    "that it knows go on.",
    "DATABASE_NOT_CONFIGURED": "Give all servers of the service the same `[databases]`, and start this one anew "
    "([databases.md](databases.md)). Clients try again, and may get to a server that knows it.",
    "CREDENTIALS_REQUIRED": "Send a token or a client certificate ([security.md](security.md)). A proxy that ends TLS "
    "takes the certificate away.",
    "CREDENTIALS_INVALID": "The server's log says what is wrong with it, the caller is not told. Revoked, for another "
    "audience, of an unknown issuer, or clocks apart.",
    "CREDENTIALS_EXPIRED": "Get a new one. Clients that read their token from a file do so by themselves.",
    "ACCESS_DENIED": "`wfe-persistence policy check POLICY --principal P --namespace N --rpc R` says which grant is "
    "missing.",
    "INTERNAL": "A bug: report it, with what the log has under the id in the message.",
    "SERVER_UNREACHABLE": "Is the address right, does the server run, does TLS fit on both sides? The clients repeat "
    "calls until their deadline.",
    "TRANSPORT_LIMIT": "Too many streams or too much metadata for a proxy or for gRPC: see their limits.",
    "UNAUTHENTICATED": "A proxy wants credentials, not the server: ask its operator.",
    "PERMISSION_DENIED": "A proxy refuses the call, not the server: ask its operator.",
    "MEMBERS_DIFFER": "Write what is on other members of the set with calls of their own, such as "
    "`mark_event_processed` after the commit: see [Namespace sets](namespace-sets.md).",
    "NOT_OVER_A_SET": "Make the call in each of the set's members, as a single namespace.",
    "UNIMPLEMENTED": "Upgrade the server, or connect to the right one: `grpcurl ADDRESS list` shows what it serves.",
}  # fmt: skip

INTRODUCTION: Final = """\
# Errors

<!-- Generated from error_reason.proto and docs/errors.py by `./run gen`. -->

Every error has a `google.rpc.ErrorInfo` with one of these reasons, and its message is for people. Those worth
repeating have a `google.rpc.RetryInfo` too. Programs decide by the reason: the Python client has an exception
for each, the Rust crate an enum. The reasons from SERVER_UNREACHABLE on are named by clients: gRPC itself or
a proxy ended the call.

| reason | status |
|---|---|
"""

FIELDS: Final = """\
## What is wrong with a field

INVALID_FIELD has a `google.rpc.BadRequest`, in which each violation has the path of a field and one of these:

| violation | meaning |
|---|---|
"""


class Reason(NamedTuple):
    """A value of one of the enums."""

    name: str
    comment: str

    @property
    def status(self) -> str:
        """The gRPC status code."""
        return self.comment.partition(":")[0]

    @property
    def meaning(self) -> str:
        """What it means, without the status code."""
        text = self.comment.partition(": ")[2]
        return text[0].upper() + text[1:]


def reasons(enum: str) -> list[Reason]:
    """The values of an enum of the proto, but for the one that is never sent."""
    [body] = re.findall(rf"^enum {enum} {{\n(.*?)^}}", PROTO.read_text(), re.MULTILINE | re.DOTALL)
    found = re.findall(r"((?:  //.*\n)+)  [A-Z]+(?:_VIOLATION)?_REASON_(\w+) = \d+;", body)
    assert len(found) == body.count(" = "), f"{enum}: a value without a comment"
    return [
        Reason(name, " ".join(line.strip(" /") for line in comment.splitlines()))
        for comment, name in found
        if name != "UNSPECIFIED"
    ]


def page() -> str:
    """The whole page. Raises SystemExit for a reason without a remedy, or the other way round."""
    listed = reasons("ErrorReason")
    if wrong := {reason.name for reason in listed} ^ REMEDIES.keys():
        raise SystemExit(f"docs/errors.py: what to do about {', '.join(sorted(wrong))}?")
    table = "".join(f"| [{r.name}](#{r.name.lower()}) | {r.status} |\n" for r in listed)
    sections = "".join(
        f"## {r.name}\n\n{r.status}. {r.meaning}\n\n**What to do:** {REMEDIES[r.name]}\n\n"
        for r in listed
    )
    fields = "".join(f"| {r.name} | {r.comment} |\n" for r in reasons("FieldViolationReason"))
    return f"{INTRODUCTION}{table}\n{sections}{FIELDS}{fields}"


FILES: Final = {PAGE: page}
