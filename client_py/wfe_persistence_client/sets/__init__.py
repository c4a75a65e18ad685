"""Namespace sets: one store that is spread over several namespaces; see `connect`."""
