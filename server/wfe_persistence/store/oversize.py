"""What is too large to be returned: which parts of it are left out of lists and streams.

What one request stores can be read back. But other software may store more, and patches can make a
workflow grow beyond a message, one after the other. A list must go on behind such an item.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from wfe.persistence.v1.workflow_pb2 import WorkflowInstance, WorkflowView

_JSON: Final = "_json"
_LONGEST_TEXT: Final = 512


def reduce(item: Message, most_bytes: int) -> None:
    """Leave out parts of an item until it has at most `most_bytes`; one that has stays as it is.

    A workflow first loses its pointers, and its view becomes HEADER. Then all documents become
    empty texts, which no document is: so the reader knows, and storing them again is refused. Last,
    other texts are cut off and lists of texts left out.
    """
    if item.ByteSize() <= most_bytes:
        return
    if isinstance(item, WorkflowInstance):
        del item.execution_pointers[:]
        item.view = WorkflowView.WORKFLOW_VIEW_HEADER
        if item.ByteSize() <= most_bytes:
            return
    _leave_out_documents(item)
    if item.ByteSize() > most_bytes:
        _cut_texts(item)


def _leave_out_documents(item: Message) -> None:
    for field in item.DESCRIPTOR.fields:
        if field.name.endswith(_JSON):
            if field.is_repeated:
                item.ClearField(field.name)
            else:  # set even if there was none: it marks the item
                setattr(item, field.name, "")


def _cut_texts(item: Message) -> None:
    for field, value in item.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE and not field.is_repeated:
            _cut_texts(value)
        if field.type != FieldDescriptor.TYPE_STRING or field.name == "id":
            continue
        if field.is_repeated:
            item.ClearField(field.name)
        elif len(value) > _LONGEST_TEXT:
            setattr(item, field.name, f"{value[: _LONGEST_TEXT - 1]}…")
