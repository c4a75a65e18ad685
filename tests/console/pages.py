"""The pages of the console with something to see on each."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlencode

_ORDER: Final = {"id": "order-1042"}
PAGES: Final = {
    "overview": "",
    "workflows": "workflows",
    "workflows-filtered": "workflows?status=runnable&stuck=300&definition=invoice",
    "workflow": "workflow?" + urlencode(_ORDER),
    "timeline": "workflow?" + urlencode(_ORDER | {"tab": "timeline"}),
    "data": "workflow?" + urlencode(_ORDER | {"tab": "data"}),
    "workflow-errors": "workflow?" + urlencode(_ORDER | {"tab": "errors"}),
    "subscriptions": "workflow?" + urlencode(_ORDER | {"tab": "subscriptions"}),
    "workflow-commands": "workflow?" + urlencode(_ORDER | {"tab": "commands"}),
    "tree": "workflow?" + urlencode({"id": "campaign-north", "tab": "tree"}),
    "errors": "errors",
    "events": "events",
    "commands": "commands",
    "queues": "queues",
    "queue": "queues?queue=mails",
    "locks": "locks",
    "namespaces": "namespaces",
    "storage": "storage",
    "nothing": "workflow?id=none",
}
# What is in the text of each page, if it works.
SHOWN: Final = {
    "overview": ["Backlog", "invoice-2026-2", "2 h 3", "mails", "the bank did not answer"],
    "workflows": ["mail-0", "Waits for event", "complete"],
    "workflows-filtered": ["invoice-2026-1", "3 shown"],
    "workflow": ["await payment", "waits for payment.confirmed", "customer-17", "Graph (8)"],
    "timeline": ["reserve stock", "payment.confirmed / ord", "sleeping", "3.5 s"],
    "data": ["12345678901234567890123", "42.95", "[ 2 items ]"],
    "workflow-errors": ["the bank did not answer", "reserve stock"],
    "subscriptions": ["payment.confirmed", "open"],
    "workflow-commands": ["process workflow"],
    "tree": ["campaign-north-1", "campaign-north-2"],
    "errors": ["no price for article"],
    "events": ["stock.arrived", "Waiting", "worker-7"],
    "commands": ["process workflow", "worker-1"],
    "queues": ["orders", "mails"],
    "queue": ["mail-3", "worker-3", "delayed"],
    "locks": ["nightly-report", "cron"],
    "namespaces": ["default"],
    "storage": ["execution_pointers", "All other workflows, complete", "after 30 d"],
    "nothing": ["WORKFLOW_NOT_FOUND"],
}


def in_namespace(page: str, namespace: str) -> str:
    """The same page of another namespace."""
    path, _, query = page.partition("?")
    return f"{path}?namespace={namespace}{'&' if query else ''}{query}"
