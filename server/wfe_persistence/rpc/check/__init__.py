"""What a request must look like.

`messages.Check` collects the violations of a request, with one method a message; it builds on the
rules for single values in `scalars` and for JSON in `json_rules`. `read_back` predicts the size of
the responses in which what is stored would be read. `bounds` has the limits.

A request is checked as a whole before anything is done, so that a caller learns of all its invalid
fields at once and nothing is half written. Paths of fields are only built for invalid ones.
"""

from wfe_persistence.rpc.check import read_back
from wfe_persistence.rpc.check.messages import Check
from wfe_persistence.rpc.check.scalars import R

__all__ = ["Check", "R", "read_back"]
