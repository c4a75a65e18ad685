"""values.schema.json of the chart: what its values may be, the settings as they are declared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from wfe_persistence.settings import SETTINGS, Setting

CHART: Final = Path(__file__).parent / "wfe-persistence"
SCHEMA: Final = CHART / "values.schema.json"

Schema = dict[str, Any]

_TYPES: Final[dict[type, str]] = {
    bool: "boolean", int: "integer", float: "number", str: "string", Path: "string", list: "array",
}  # fmt: skip
_TEXT: Final[Schema] = {"type": "string"}
_SWITCH: Final[Schema] = {"type": "boolean"}
_TEXTS: Final[Schema] = {"type": "object", "additionalProperties": _TEXT}
_PORTS: Final[Schema] = {
    "type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 65535},
}  # fmt: skip
_NAME: Final[Schema] = {"type": "string", "pattern": "^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"}
_ANYTHING: Final[Schema] = {"type": "object"}


def an_object(**properties: Schema) -> Schema:
    """An object with these properties and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def of_setting(setting: Setting) -> Schema:
    """What a setting may be."""
    about = setting.about
    schema: Schema = {"type": _TYPES[setting.type], "description": about.help}
    if setting.type is list:
        schema["items"] = _TEXT
    if about.choices:
        schema["enum"] = list(about.choices)
    for keyword, bound in (
        ("minimum", about.minimum), ("maximum", about.maximum), ("exclusiveMinimum", about.above),
    ):  # fmt: skip
        if bound is not None:
            schema[keyword] = bound
    return schema


def schema() -> Schema:
    """What the values may be."""
    # Secrets would be in a ConfigMap, for everybody to read.
    settings = {s.key: of_setting(s) for s in SETTINGS.values() if not s.about.secret}
    values = an_object(
        mode={"enum": ["shared", "sidecar"]},
        image=an_object(
            repository=_TEXT,
            tag=_TEXT,
            digest={"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
            pullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
        ),
        imagePullSecrets={"type": "array", "items": an_object(name=_NAME)},
        nameOverride=_TEXT,
        fullnameOverride=_TEXT,
        secrets=an_object(database=_NAME, tls=_NAME, tokens=_NAME, scrape=_NAME),
        settings=an_object(**settings),
        env={
            "type": "object",
            "additionalProperties": _TEXT,
            # Those of the server are `settings`.
            "propertyNames": {"not": {"pattern": "^WFE_PERSISTENCE_"}},
        },
        policy=_TEXT,
        migrate=an_object(
            enabled=_SWITCH, backoffLimit={"type": "integer", "minimum": 0}, resources=_ANYTHING
        ),
        replicas={"type": "integer", "minimum": 0},
        resources=_ANYTHING,
        terminationGracePeriodSeconds={"type": "integer", "minimum": 1},
        topologySpread={"type": "array", "items": _TEXT},
        nodeSelector=_TEXTS,
        tolerations={"type": "array", "items": _ANYTHING},
        affinity=_ANYTHING,
        priorityClassName=_TEXT,
        podAnnotations=_TEXTS,
        podLabels=_TEXTS,
        podDisruptionBudget=an_object(
            enabled=_SWITCH, maxUnavailable={"type": ["integer", "string"]}
        ),
        networkPolicy=an_object(
            enabled=_SWITCH, clients=_TEXTS, monitoring=_TEXTS, egressPorts=_PORTS
        ),
        serviceMonitor=an_object(enabled=_SWITCH, serverName=_TEXT, labels=_TEXTS),
        serviceAccount=an_object(create=_SWITCH, name=_TEXT, annotations=_TEXTS),
        sidecar=an_object(resources=_ANYTHING),
        # What Helm hands to a chart that another depends on.
        **{"global": _ANYTHING, "enabled": _SWITCH},
    )
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "wfe-persistence",
    } | values


FILES: Final = {SCHEMA: lambda: json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"}
