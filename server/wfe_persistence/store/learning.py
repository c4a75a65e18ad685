"""Knowing where all namespaces are, so that those that are elsewhere can be found while the home is
away."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from wfe_persistence.errors import PersistenceError
from wfe_persistence.recurring import RecurringWarnings
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.schema import HOME

log = logging.getLogger(__name__)
warnings = RecurringWarnings(log)

_SECONDS: Final = 60.0
_PAGE: Final = 1000


async def learn_placements(namespaces: Namespaces) -> None:
    """Read the whole directory now and then, for as long as the server runs; once, if there is only
    one database, to warn that there should be others."""
    while True:
        try:
            unknown = await _learn(namespaces)
        except PersistenceError as exc:
            log.debug("can't read where namespaces are: %s", exc)
        else:
            for name in unknown:
                warnings.warn_each(
                    "unknown",
                    name,
                    f"there are namespaces in the database {name}, which this server is not "
                    "configured for (--database)",
                )
        if len(namespaces.databases) == 1:
            return
        await asyncio.sleep(_SECONDS)


async def _learn(namespaces: Namespaces) -> set[str]:
    """Read the directory; returns the names in it of databases that are unknown."""
    after = ""
    unknown: set[str] = set()
    while page := await namespaces.placements.page(after, _PAGE):
        for placement in page:
            if placement.database not in namespaces.databases:
                unknown.add(placement.database)
            if placement.is_there and placement.database != HOME:
                namespaces.remember(placement)
        after = page[-1].namespace
    return unknown
