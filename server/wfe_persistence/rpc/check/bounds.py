"""The bounds of values in requests, as the comments of the protos state them."""

from __future__ import annotations

from typing import Final

MAX_ID_BYTES: Final = 512
MAX_COMMAND_DATA_BYTES: Final = 2048
MAX_PAYLOAD_BYTES: Final = 65_536
"""Of an item of a queue: work to be done, not data."""
MAX_BLOCKERS: Final = 8
MAX_DEQUEUED_QUEUES: Final = 10
MAX_LIFECYCLE_MESSAGE_BYTES: Final = 65_536
MAX_INT4: Final = 2**31 - 1
MAX_JSON_DEPTH: Final = 100
MAX_JSON_EXPONENT: Final = 1000
MAX_JSON_DIGITS: Final = 2000
MAX_PAGE_SIZE: Final = 1000
DEFAULT_PAGE_SIZE: Final = 100
MAX_LEASE_SECONDS: Final = 24 * 3600
DEFAULT_LEASE_MS: Final = 30_000
MAX_WAIT_SECONDS: Final = 60
DEFAULT_HEARTBEAT_SECONDS: Final = 10.0
MAX_HEARTBEAT_SECONDS: Final = 60
MAX_LIST_ITEMS: Final = 1000
MAX_LABELS: Final = 64
MAX_ITEMS: Final = 200_000
"""Of lists that have no smaller bound: more would take much longer to decode than to send."""
MAX_ATTRIBUTES: Final = 100_000
"""Of all pointers together, because they are sorted in one call when a request is hashed."""
MAX_HEADER_ATTRIBUTES_BYTES: Final = 4096
ATTRIBUTE_BYTES: Final = 16
"""What one attribute takes in a message beside its name and its value."""
MAX_REVISION: Final = 2**63 - 1
MAX_PURGED_ROWS: Final = 100_000
DEFAULT_PURGED_ROWS: Final = 10_000
MAX_RETENTION_RULES: Final = 100
MAX_SNAPSHOT_SECONDS: Final = 600
MIN_RETENTION_SECONDS: Final = 60
MAX_RETENTION_SECONDS: Final = 1_000_000 * 86_400

FIRST_SECOND: Final = -62_135_596_800  # 0001-01-01T00:00:00Z
LAST_SECOND: Final = 253_402_300_799  # 9999-12-31T23:59:59Z
