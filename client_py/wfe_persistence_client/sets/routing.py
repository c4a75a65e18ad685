"""Which member of a namespace set a thing belongs to.

The same in every language; `protos/wfe/persistence/v1/namespace_sets.json` has test vectors.
"""

from hashlib import sha256
from typing import Final

_MASK: Final = 2**64 - 1
_MARK: Final = "@"
#: What hosts of the engine in Rust put in front of a workflow's id: for a lock of their own on it,
#: and for one in the member of each workflow that one of its steps starts.
_EXECUTION: Final = "workflow-execution."
_CHILDREN: Final = "children."


def member_of(key: str, members: int) -> int:
    """The index of the member that has what has this key: a workflow's id, a name, a resource."""
    digest = sha256(key.encode()).digest()
    return jump(int.from_bytes(digest[:8], "big"), members)


def jump(key: int, buckets: int) -> int:
    """Jump consistent hash, by Lamping and Veach: the bucket of a 64-bit key, from 0."""
    bucket, following = -1, 0
    while following < buckets:
        bucket = following
        key = (key * 2862933555777941757 + 1) & _MASK
        following = int((bucket + 1) * (float(1 << 31) / float((key >> 33) + 1)))
    return bucket


def tag(value: str, index: int) -> str:
    """A token, a receipt or an id that the client made up, with the member that it belongs to."""
    return f"{value}{_MARK}{index}"


def untag(value: str, members: int) -> tuple[str, int | None]:
    """What was tagged, and the member; None: it was not."""
    bare, mark, digits = value.rpartition(_MARK)
    if mark and digits.isascii() and digits.isdigit() and len(digits) <= 3:
        index = int(digits)
        if index < members and digits == str(index):
            return bare, index
    return value, None


def lock_home(resource: str, members: int) -> int:
    """The member of a lock; of one on a workflow, that of the workflow."""
    if resource.startswith(_CHILDREN) and (index := untag(resource, members)[1]) is not None:
        return index
    return member_of(resource.removeprefix(_EXECUTION), members)


def home_of(id_: str, members: int) -> int:
    """Where an event or a subscription with this id is looked for first."""
    index = untag(id_, members)[1]
    return member_of(id_, members) if index is None else index
