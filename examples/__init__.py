"""Hosts that use the persistence server, one folder a language."""
