"""Moves of namespaces under load, with kills at every place: the short form is `test_moves.py`."""
