"""The members of a namespace set, and how a call finds the right ones."""

import functools
import inspect
from collections import OrderedDict
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Sequence,
)
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

from wfe_persistence_client.calls import Calls, RetryPolicy
from wfe_persistence_client.deadline import Deadline
from wfe_persistence_client.errors import (
    LeaseLost,
    MembersDiffer,
    NotFound,
    NotOverASet,
    PersistenceError,
)
from wfe_persistence_client.misfit import FieldValueError
from wfe_persistence_client.provider import PersistenceProvider
from wfe_persistence_client.sets.merging import by_number, merged, together
from wfe_persistence_client.sets.routing import home_of, member_of, tag, untag

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: How many names of workflows are remembered, so that they need not be taken again.
_MOST_NAMES: Final = 10_000


@dataclass(slots=True)
class SetState:
    """What all copies of a set's provider share."""

    name: str
    #: The namespaces; None: not read yet.
    members: tuple[str, ...] | None = None
    #: Of workflows that have a name other than their id, the names, most recently used last.
    names: OrderedDict[str, str] = field(default_factory=OrderedDict)
    #: Which member is asked first for items and commands the next time.
    turn: int = 0

    def remember(self, workflow_id: str, name: str) -> None:
        """Notes that a workflow has a name."""
        if name and name != workflow_id:
            self.names[workflow_id] = name
            self.names.move_to_end(workflow_id)
            if len(self.names) > _MOST_NAMES:
                self.names.popitem(last=False)


def naming(error: PersistenceError, member: str | None) -> PersistenceError:
    """The error of a call in a member, which it names: the others may well be there."""
    if member is not None and error.metadata.get("namespace") != member:
        error.metadata = {**error.metadata, "namespace": member}
        said = error.args[0] if error.args else ""
        error.args = (f"{said} (in {member}, a member of the namespace set)",)
    return error


class _MemberCalls(Calls):
    """Makes calls in one member."""

    #: Not the provider itself, which would be a cycle.
    member: str | None = None

    async def _with_retries(
        self,
        request: Any,
        attempt: Callable[[float, Any], Awaitable[_T]],
        deadline: Deadline | None,
    ) -> _T:
        try:
            return await super()._with_retries(request, attempt, deadline)
        except PersistenceError as error:
            naming(error, self.member)
            raise


class _Member(PersistenceProvider):
    """The provider of one member, whose errors name it."""

    def _bind(self, namespace: str | None, timeout: float, retry: RetryPolicy) -> None:
        super()._bind(namespace, timeout, retry)
        plain = self._calls
        calls = _MemberCalls(
            self._link,
            timeout=timeout,
            retry=retry,
            metadata=plain._metadata,
            reading=plain.reading,
        )
        calls.member = namespace
        self._calls = calls


class SetMembers(PersistenceProvider):
    """The provider of a set: each call goes to the members that it concerns."""

    _set: SetState
    _providers: list[PersistenceProvider] | None = None

    @classmethod
    def over(cls, provider: PersistenceProvider, name: str) -> Self:
        """The provider of the set `name`, on the connection of another provider."""
        other = cls.__new__(cls)
        other.__dict__.update(provider.__dict__)
        other._set = SetState(name)
        return other

    def with_namespace(self, namespace: str | None) -> PersistenceProvider:  # type: ignore[override]
        """A provider on the same connection, for one namespace, such as a member of the set.

        Args:
            namespace: its name; None: the server's default.
        """
        return self._plain(namespace)

    def _plain(
        self, namespace: str | None, kind: type[PersistenceProvider] = PersistenceProvider
    ) -> PersistenceProvider:
        other = kind.__new__(kind)
        other.__dict__.update(self.__dict__)
        for own in ("_set", "_providers"):
            other.__dict__.pop(own, None)
        other._bind(namespace, self._calls.timeout, self._calls.retry)
        other._calls._deadline = self._calls._deadline
        return other

    def _copy(self, *, namespace: str | None, timeout: float) -> Self:
        other = super()._copy(namespace=namespace, timeout=timeout)
        other._providers = None
        return other

    def _in_one_go(self) -> Self:
        other = super()._in_one_go()
        other._providers = None
        return other

    async def _members(self) -> list[PersistenceProvider]:
        """A provider for each member, in their order. The server says which there are."""
        if self._providers is None:
            if self._set.members is None:
                found = await self._plain(None).get_namespace_set(self._set.name)
                self._set.members = tuple(found.members)
            self._providers = [self._plain(member, _Member) for member in self._set.members]
        return self._providers

    async def _of(self, key: object) -> PersistenceProvider:
        """The member that a key belongs to."""
        members = await self._members()
        # What is no text is for the member to refuse.
        return members[member_of(key, len(members)) if isinstance(key, str) else 0]

    async def _find(
        self,
        id_: str,
        missing: type[NotFound],
        call: Callable[[PersistenceProvider], Coroutine[Any, Any, _T]],
    ) -> _T:
        """Makes a call in the member that has something, which its id may not tell: what is
        written with a workflow is stored with it."""
        members = await self._members()
        first = home_of(id_, len(members)) if isinstance(id_, str) else 0
        try:
            return await call(members[first])
        except missing as error:
            not_there = error

        async def ask(member: PersistenceProvider) -> list[_T]:
            try:
                return [await call(member)]
            except missing:
                return []

        others = members[:first] + members[first + 1 :]
        for found in await together([ask(member) for member in others]):
            for result in found:
                return result  # type: ignore[no-any-return]
        raise not_there

    async def _each(
        self, call: Callable[[PersistenceProvider], Coroutine[Any, Any, _T]]
    ) -> list[_T]:
        """Makes a call in every member, at the same time."""
        return await together([call(member) for member in await self._members()])

    async def _merged(
        self,
        open_: Callable[[PersistenceProvider], AsyncIterator[_T]],
        key: Callable[[_T], Any],
        *,
        descending: bool = False,
    ) -> AsyncGenerator[_T, None]:
        """The lists of all members as one."""
        sources = [open_(member) for member in await self._members()]
        async with aclosing(merged(sources, key, descending=descending)) as items:
            async for item in items:
                yield item

    async def _merged_ids(
        self, open_: Callable[[PersistenceProvider], AsyncIterator[tuple[int, str]]]
    ) -> AsyncGenerator[str, None]:
        """Lists of ids, of which the members tell by what number they are in order, as one."""
        async with aclosing(self._merged(open_, by_number)) as keyed:
            async for _, id_ in keyed:
                yield id_

    async def _one_after_another(
        self, open_: Callable[[PersistenceProvider], AsyncIterator[_T]]
    ) -> AsyncGenerator[_T, None]:
        for member in await self._members():
            async for item in open_(member):
                yield item

    def _turns(self, members: Sequence[PersistenceProvider]) -> list[int]:
        """The indexes of the members in the order in which they are asked this time: each call
        begins with another one, so that none is preferred."""
        first = self._set.turn % len(members)
        self._set.turn = first + 1
        return [*range(first, len(members)), *range(first)]

    # Tokens and receipts, which have the index of their member at the end.

    def _bare(self, field_: str, token: str, index: int | None, members: int) -> tuple[str, int]:
        """A token without the member, and the member, which must be `index` unless that is None."""
        bare, found = untag(token, members)
        if found is None:
            raise FieldValueError(field_, "is not one that this namespace set has handed out")
        if index is not None and found != index:
            raise members_differ(field_)
        return bare, found

    async def _by_member(
        self, field_: str, tokens: Iterable[str]
    ) -> list[tuple[int, PersistenceProvider, list[str]]]:
        """Tokens by their members: index, provider, bare tokens."""
        members = await self._members()
        found: dict[int, list[str]] = {}
        for at, token in enumerate(tokens):
            bare, index = self._bare(f"{field_}[{at}]", token, None, len(members))
            found.setdefault(index, []).append(bare)
        return [(index, members[index], bare) for index, bare in found.items()]


def members_differ(field_: str) -> MembersDiffer:
    """The error of a write that would concern several members."""
    return MembersDiffer(
        f"{field_} is on another member of the namespace set than the workflow",
        reason="MEMBERS_DIFFER",
        metadata={"field": field_},
    )


def not_over_a_set(what: str) -> NotOverASet:
    """The error of what a set does not offer."""
    return NotOverASet(
        f"a namespace set does not offer {what}: call it in each member (`with_namespace`)",
        reason="NOT_OVER_A_SET",
    )


async def tagging(index: int, call: Coroutine[Any, Any, _T]) -> _T:
    """Makes a call in a member; the leases that its error names are tagged, as they were given."""
    try:
        return await call
    except LeaseLost as error:
        lost = [tag(token, index) for token in error.lease_tokens]
        error.metadata = {**error.metadata, "lease_tokens": ",".join(lost)}
        raise


def routed(
    method: Callable[Concatenate[PersistenceProvider, _P], Coroutine[Any, Any, _T]],
) -> Callable[Concatenate[SetMembers, _P], Coroutine[Any, Any, _T]]:
    """A method of the member to which the first argument belongs, a key."""
    name = method.__name__
    first = list(inspect.signature(method).parameters)[1]

    @functools.wraps(method)
    async def call(self: SetMembers, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        member = await self._of(args[0] if args else kwargs.get(first))
        result: _T = await getattr(member, name)(*args, **kwargs)
        return result

    return call


def found(
    method: Callable[Concatenate[PersistenceProvider, _P], Coroutine[Any, Any, _T]],
    missing: type[NotFound],
) -> Callable[Concatenate[SetMembers, _P], Coroutine[Any, Any, _T]]:
    """A method of the member that has what the first argument is the id of."""
    name = method.__name__
    first = list(inspect.signature(method).parameters)[1]

    @functools.wraps(method)
    async def call(self: SetMembers, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        id_: Any = args[0] if args else kwargs.get(first)
        return await self._find(id_, missing, lambda member: getattr(member, name)(*args, **kwargs))

    return call
