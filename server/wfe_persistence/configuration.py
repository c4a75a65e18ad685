"""The configuration in force: every setting, where its value is from, and what follows from all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from wfe_persistence.database import read_sources_from, source_from, sources_from
from wfe_persistence.redaction import redacted
from wfe_persistence.settings import SETTINGS, Setting, Settings
from wfe_persistence.store.postgres.source import ConnectionSource

HIDDEN: Final = "***"


@dataclass(frozen=True, slots=True)
class Source:
    """Where the value of a setting is from."""

    kind: Literal["flag", "environment", "file", "default"]
    name: str | None = None
    """The option, the variable or the path of the file; None for a default."""


def configuration(settings: Settings, sources: Mapping[str, Source]) -> dict[str, Any]:
    """The settings and what is derived from them, without secrets, for JSON.

    `sources` are by the settings' names. Neither connects to the database nor starts one. Call it
    after `refusal`, which learns the passwords that are to be hidden.
    """
    return {
        "settings": {
            setting.key: {
                "value": _shown(setting, getattr(settings, setting.name)),
                "source": sources[setting.name].kind,
                "from": sources[setting.name].name,
            }
            for setting in SETTINGS.values()
        },
        "derived": {
            "database": _database(settings),
            "replicas": _replicas(settings),
            "protection": settings.protection,
            "authentication": list(settings.authentication),
            "reflection": settings.reflection_enabled,
            "allow-create-namespace": settings.create_namespace_allowed,
            "workers": settings.worker_count,
            "drain-delay": settings.seconds_before_drain,
        },
    }


def refusal(settings: Settings) -> str | None:
    """Why a server does not start with these settings, as far as they alone tell; None: it does."""
    try:
        settings.require_protection()
        source = source_from(settings)
        if not settings.uses_embedded_database:
            source.check()
        for other in sources_from(settings).values():
            other.check()
        for replica in read_sources_from(settings):
            replica.check()
    except ValueError as exc:
        return redacted(str(exc))
    return None


def _shown(setting: Setting, value: Any) -> Any:
    if setting.type is tuple:
        return {each.name: each.shown(HIDDEN) for each in value}
    if setting.type is list and setting.about.secret:
        return [HIDDEN] * len(value)
    if setting.about.secret:
        return HIDDEN if value else value
    if isinstance(value, Path):
        value = str(value)
    return redacted(value) if isinstance(value, str) else value


def _database(settings: Settings) -> str:
    if settings.uses_embedded_database:
        return f"embedded PostgreSQL in {settings.data_dir}"
    return _description(source_from(settings))


def _replicas(settings: Settings) -> list[str]:
    try:
        return [_description(each) for each in read_sources_from(settings)]
    except ValueError as exc:
        return [redacted(str(exc))]


def _description(source: ConnectionSource) -> str:
    try:
        return redacted(source.description())
    except ValueError as exc:
        return redacted(str(exc))
