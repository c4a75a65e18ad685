"""Moving a namespace from one database to another while it is used; `mover.py` has the phases.

At each moment exactly one database may be written. What decides is on the source, in one
transaction: the fence. It drops the move's publication and renames the schema, so that every
statement of a server that does not know of it yet fails. Before that the source is whole and the
target is marked as incoming; after that the target has everything. Whoever finds a move that nobody
drives any more can see in the source on which side of the fence it is, and go on from there.
"""
