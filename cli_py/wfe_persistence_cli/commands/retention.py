"""`wfe-persistence retention show | set | run` and `wfe-persistence storage`: calls to a server."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from wfe_persistence_cli.calling import Caller, calls_server
from wfe_persistence_cli.options import ClientCommand
from wfe_persistence_cli.output import Output, output_option
from wfe_persistence_cli.status import EPILOG

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

    from wfe.persistence.v1.store_pb2 import RetentionCounts, WorkflowRetention

_UNITS: Final = {"m": 60, "h": 3600, "d": 86_400}
_COUNTED: Final = (
    "workflows", "execution_pointers", "subscriptions", "events", "errors", "commands"
)  # fmt: skip


class _Age(click.ParamType):  # type: ignore[type-arg]
    """A time for which something is kept; in a rule for workflows after `DEFINITION=`."""

    name = "AGE"

    def __init__(self, *, of_definition: bool = False) -> None:
        self._of_definition = of_definition

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        definition, _, age = value.rpartition("=") if self._of_definition else ("", "", value)
        found = re.fullmatch(r"([1-9][0-9]{0,8})([mhd])", age)
        if not found:
            self.fail("must be like 90d, 12h or 30m", param, ctx)
        seconds = int(found[1]) * _UNITS[found[2]]
        return (definition, seconds) if self._of_definition else seconds


@click.group(short_help="Show and set what is deleted by itself.")
def retention() -> None:
    """Show, set and try out what the servers delete by themselves in a namespace.

    By default that is nothing.

    \b
    Example: wfe-persistence retention set --complete 30d --processed-events 7d
    """


@retention.command(cls=ClientCommand, epilog=EPILOG)
@calls_server
@click.option("--json", "as_json", is_flag=True, help="As -o json.")
@output_option
def show(call: Caller, *, as_json: bool, output: Output) -> None:
    """Show the retention policy of a namespace, and what it has done.

    \b
    Example: wfe-persistence retention show --namespace prod
    """
    from google.protobuf.json_format import MessageToDict

    from wfe.persistence.v1 import store_pb2

    call.of_one_namespace()
    state = call("GetRetentionPolicy", store_pb2.GetRetentionPolicyRequest())
    if as_json or output.is_data:
        shown = MessageToDict(state, preserving_proto_field_name=True)
        (Output("json") if as_json else output).one(shown)
        return
    if not state.HasField("set_time"):
        click.echo("no policy: nothing is deleted by itself")
        return
    policy = state.policy
    for rule in policy.workflows:
        of = rule.workflow_definition_id
        which = f"workflows of {of}" if of else "other workflows"
        click.echo(
            f"{which}: COMPLETE after {_age(rule, 'complete_age')}, "
            f"TERMINATED after {_age(rule, 'terminated_age')}"
        )
    click.echo(f"processed events: after {_age(policy, 'processed_event_age')}")
    click.echo(f"errors: after {_age(policy, 'error_age')}")
    click.echo(f"overdue commands: after {_age(policy, 'overdue_command_age')}")
    click.echo(f"set: {state.set_time.ToJsonString()}")
    done = state.complete_time.ToJsonString() if state.HasField("complete_time") else "not yet"
    click.echo(f"deleted since: {state.deleted_rows} rows; complete: {done}")


def _age(message: Any, field: str) -> str:
    if not message.HasField(field):
        return "never"
    age: Duration = getattr(message, field)
    return str(timedelta(seconds=age.seconds, microseconds=age.nanos // 1000))


@retention.command("set", cls=ClientCommand, epilog=EPILOG)
@calls_server
@click.option(
    "--complete",
    type=_Age(of_definition=True),
    multiple=True,
    metavar="[DEFINITION=]AGE",
    help="Delete COMPLETE workflows of a definition, or of all others, so long after their end: "
    "90d, 12h, 30m.",
)
@click.option(
    "--terminated",
    type=_Age(of_definition=True),
    multiple=True,
    metavar="[DEFINITION=]AGE",
    help="The same of TERMINATED workflows.",
)
@click.option("--keep", multiple=True, metavar="DEFINITION", help="Keep its workflows for ever.")
@click.option("--processed-events", type=_Age(), help="Delete processed events of this age.")
@click.option("--errors", type=_Age(), help="Delete logged errors of this age.")
@click.option(
    "--overdue-commands", type=_Age(), help="Delete commands that nobody has claimed for so long."
)
@click.option("--none", is_flag=True, help="Delete nothing any more.")
def set_(
    call: Caller,
    *,
    complete: tuple[tuple[str, int], ...],
    terminated: tuple[tuple[str, int], ...],
    keep: tuple[str, ...],
    processed_events: int | None,
    errors: int | None,
    overdue_commands: int | None,
    none: bool,
) -> None:
    """Replace the retention policy of a namespace: what is not named here is not deleted any more.

    \b
    Examples:
      wfe-persistence retention set --complete 30d --terminated 90d --keep invoice
      wfe-persistence retention set --complete ping=1h --processed-events 7d --errors 30d
      wfe-persistence retention set --none
    """
    from google.protobuf.duration_pb2 import Duration

    from wfe.persistence.v1 import store_pb2

    call.of_one_namespace()
    policy = store_pb2.RetentionPolicy()
    rules: dict[str, WorkflowRetention] = {}

    def rule(definition: str) -> WorkflowRetention:
        if definition not in rules:
            rules[definition] = policy.workflows.add(workflow_definition_id=definition)
        return rules[definition]

    for definition, seconds in complete:
        rule(definition).complete_age.seconds = seconds
    for definition, seconds in terminated:
        rule(definition).terminated_age.seconds = seconds
    for definition in keep:
        if not definition or definition in rules:
            raise click.UsageError(f"--keep {definition}: has an age as well, or no name")
        rule(definition)
    for field, age in (
        ("processed_event_age", processed_events),
        ("error_age", errors),
        ("overdue_command_age", overdue_commands),
    ):
        if age is not None:
            getattr(policy, field).CopyFrom(Duration(seconds=age))
    if none == bool(policy.ByteSize()):
        raise click.UsageError("say what is to be deleted, or --none")
    call("SetRetentionPolicy", store_pb2.SetRetentionPolicyRequest(policy=policy))


@retention.command(cls=ClientCommand, epilog=EPILOG)
@calls_server
@click.option("--dry-run", is_flag=True, help="Only count what would be deleted.")
@click.option(
    "--max-rows",
    type=click.IntRange(1, 100_000),
    default=100_000,
    show_default=True,
    help="With --dry-run: about how many rows to count at most.",
)
def run(call: Caller, *, dry_run: bool, max_rows: int) -> None:
    """Have the servers apply the retention policy now, or count what it would delete.

    \b
    Examples:
      wfe-persistence retention run --dry-run --timeout 60
      wfe-persistence retention run
    """
    from wfe.persistence.v1 import store_pb2

    call.of_one_namespace()
    request = store_pb2.RunRetentionRequest(dry_run=dry_run, max_rows=max_rows)
    answer = call("RunRetention", request)
    if dry_run:
        click.echo(f"would be deleted: {_counts(answer.counts)}")
    else:
        click.echo("started; `retention show` tells when it is complete")


def _counts(counts: RetentionCounts) -> str:
    parts = [f"{getattr(counts, f)} {f.replace('_', ' ')}" for f in _COUNTED if getattr(counts, f)]
    more = " and more" if counts.is_partial else ""
    return (", ".join(parts) or "nothing") + more


@click.command(
    cls=ClientCommand, epilog=EPILOG, short_help="Show how much space a namespace takes."
)
@calls_server
@click.option(
    "--max-rows",
    type=click.IntRange(1, 100_000),
    default=10_000,
    show_default=True,
    help="About how many rows to count at most of those that the retention policy lets go.",
)
@click.option("--json", "as_json", is_flag=True, help="As -o json.")
@output_option
def storage(call: Caller, *, max_rows: int, as_json: bool, output: Output) -> None:
    """Show how much space a namespace takes, and what its retention policy would free.

    \b
    Example: wfe-persistence storage --namespace prod
    """
    from google.protobuf.json_format import MessageToDict

    from wfe.persistence.v1 import store_pb2

    call.of_one_namespace()
    request = store_pb2.GetStorageReportRequest(max_rows=max_rows)
    report = call("GetStorageReport", request)
    if as_json or output.is_data:
        shown = MessageToDict(
            report, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        (Output("json") if as_json else output).one(shown)
        return
    lines = [("table", "rows", "dead rows", "table", "indexes", "bloat")]
    for each in report.tables:
        bloat = _size(each.bloat_bytes) if each.HasField("bloat_bytes") else "?"
        lines.append(
            (
                each.name,
                f"{each.estimated_rows}",
                f"{each.dead_rows}",
                _size(each.table_bytes),
                _size(each.index_bytes),
                bloat,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *numbers in lines:
        cells = (text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True))
        click.echo("  ".join((name.ljust(widths[0]), *cells)))
    total = sum(each.table_bytes + each.index_bytes for each in report.tables)
    click.echo(f"together: {_size(total)}")
    click.echo(
        f"retention would delete: {_counts(report.freed)}; about {_size(report.freed_bytes)}"
    )


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
