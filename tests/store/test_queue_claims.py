"""What a dequeue hands out is what its rows say, whatever the lengths."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from wfe.persistence.v1.queue_item_pb2 import QueueItem
from wfe.persistence.v1.queue_pb2 import DequeuedItem, DequeueResponse
from wfe_persistence.store.lease import new_lease_id
from wfe_persistence.store.queue_claims import decode_claim, encode_claim, encode_claims

DAY: Final = Timestamp(seconds=946_684_800 + 86_400, nanos=7000)
ITEMS: Final = {
    "short": (QueueItem(queue="q", id="i", visible_time=DAY), 1, 1),
    "long": (
        QueueItem(
            queue="q" * 64,
            id="é" * 256,
            payload_json=f'"{"x" * 65_000}"',
            visible_time=DAY,
            blocked_by=["a", 'b "quoted"', "ü" * 256],
        ),
        2**63 - 1,
        2**31 - 1,
    ),
    "at the edge": (
        QueueItem(queue="q", id="i" * 127, payload_json="1" * 128, visible_time=DAY),
        128,
        127,
    ),
    "at the epoch": (QueueItem(queue="q", id="i", visible_time=Timestamp()), 16_384, 128),
}


class Rows:
    """The result of a dequeue."""

    def __init__(self, rows: Sequence[Sequence[bytes | None]]) -> None:
        self.rows = rows
        self.ntuples = len(rows)

    def get_value(self, row: int, column: int) -> bytes | None:
        return self.rows[row][column]


def row(item: QueueItem, epoch: int, attempt: int) -> list[bytes | None]:
    blocked = [each.replace('"', '\\"') for each in item.blocked_by]
    return [
        item.queue.encode(),
        item.id.encode(),
        b"\1" + item.payload_json.encode() if item.HasField("payload_json") else None,
        micros(item.visible_time),
        b"\1[" + ", ".join(f'"{each}"' for each in blocked).encode() + b"]" if blocked else None,
        struct.pack("!q", 42),
        micros(DAY),
        struct.pack("!q", epoch),
        struct.pack("!i", attempt),
    ]


def micros(time: Timestamp) -> bytes:
    return struct.pack("!q", (time.seconds - 946_684_800) * 1_000_000 + time.nanos // 1000)


def claimed(lease_id: str, item: QueueItem, epoch: int, attempt: int) -> DequeuedItem:
    claim = DequeuedItem(
        item=item, receipt=f"42.{lease_id}", lease_expiry=DAY, epoch=epoch, attempt=attempt
    )
    claim.item.visible_time.SetInParent()
    return claim


@pytest.mark.parametrize("name", ITEMS)
def test_one_row(name: str) -> None:
    lease_id = new_lease_id()
    rows: Any = Rows([row(*ITEMS[name])])
    assert decode_claim(encode_claim(rows, 0, lease_id.encode())) == claimed(lease_id, *ITEMS[name])


def test_all_rows_in_their_order() -> None:
    lease_id = new_lease_id()
    rows: Any = Rows([row(*each) for each in ITEMS.values()])
    response = DequeueResponse.FromString(b"".join(encode_claims(rows, lease_id)))
    assert list(response.items) == [claimed(lease_id, *each) for each in ITEMS.values()]
    nothing: Any = Rows([])
    assert encode_claims(nothing, lease_id) == []


@pytest.mark.parametrize("bits", range(63))
def test_epochs_of_all_lengths(bits: int) -> None:
    for epoch in {2**bits - 1, 2**bits, 2**bits + 1} - {0}:
        rows: Any = Rows([row(ITEMS["short"][0], epoch, 1)])
        assert decode_claim(encode_claim(rows, 0, b"x")).epoch == epoch
