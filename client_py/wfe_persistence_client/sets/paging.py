"""Pages of lists over a namespace set, with one token: where the page before ended."""

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from itertools import count
from typing import Final

from wfe_persistence_client.connection import LARGEST_PAGE
from wfe_persistence_client.misfit import FieldValueError
from wfe_persistence_client.model import (
    ListOrder,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowView,
)
from wfe_persistence_client.sets.workflows import SetWorkflows

_DEFAULT_PAGE: Final = 100
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TICK: Final = timedelta(microseconds=1)


@dataclass(slots=True, frozen=True)
class WorkflowPage:
    """Some workflows of a list."""

    instances: list[WorkflowInstance]
    #: Where the next page starts; empty: this is the last one.
    next_page_token: str


class SetPages(SetWorkflows):
    """Lists page by page, for those who can't keep an iterator: a console, a web page."""

    async def list_workflows_page(
        self,
        filter: WorkflowFilter | None = None,  # noqa: A002 - as of list_workflows
        *,
        order: ListOrder = ListOrder.NEWEST_FIRST,
        view: WorkflowView = WorkflowView.HEADER,
        page_size: int = 0,
        page_token: str = "",
    ) -> WorkflowPage:
        """Returns one page of `list_workflows`, in the order of all members.

        Workflows created or deleted between two pages neither shift the list nor make one appear
        twice. A token is as long for many members as for one.

        Args:
            filter, order, view: as for `list_workflows`; the same for all pages.
            page_size: at most how many, up to 1000; 0 means 100.
            page_token: the `next_page_token` of the page before; empty: the first page.
        """
        if not 0 <= page_size <= LARGEST_PAGE:
            raise FieldValueError("page_size", f"must be from 0 to {LARGEST_PAGE}")
        newest_first = order is ListOrder.NEWEST_FIRST
        given = filter or WorkflowFilter()
        query = blake2b(repr((given, order)).encode(), digest_size=9).hexdigest()
        after = _decoded(page_token, query) if page_token else None
        # The first page may be asked for by many; a later one begins where the page before ended.
        wanted = given if after is None else _from(given, after[0], newest_first)
        size = page_size or _DEFAULT_PAGE
        instances: list[WorkflowInstance] = []
        listed: AsyncIterator[WorkflowInstance] = self._in_one_go().iter_workflows(
            wanted, order=order, view=view, page_size=min(size + 1, LARGEST_PAGE)
        )
        for _ in count():
            instance = await anext(listed, None)
            if instance is None:
                return WorkflowPage(instances, "")
            key = (instance.create_time, instance.id.encode())
            if after is not None and (key >= after if newest_first else key <= after):
                continue
            if len(instances) == size:
                break
            instances.append(instance)
        await listed.aclose()  # type: ignore[attr-defined]
        return WorkflowPage(instances, _encoded(instances[-1], query))


def _from(given: WorkflowFilter, time: datetime, newest_first: bool) -> WorkflowFilter:
    """A filter that leaves out what certainly comes before a time in the list."""
    if newest_first:
        before = time + _TICK
        if given.create_time_before is not None:
            before = min(before, given.create_time_before)
        return replace(given, create_time_before=before)
    since = time if given.create_time_from is None else max(time, given.create_time_from)
    return replace(given, create_time_from=since)


def _encoded(last: WorkflowInstance, query: str) -> str:
    place = [query, (last.create_time - _EPOCH) // _TICK, last.id]
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def _decoded(token: str, query: str) -> tuple[datetime, bytes]:
    try:
        found, time, id_ = json.loads(base64.b64decode(token, b"-_", validate=True))
        if found == query:
            return _EPOCH + time * _TICK, str(id_).encode()
    except (ValueError, TypeError, OverflowError):
        pass
    raise FieldValueError("page_token", "is not one of this list")
