"""Python's garbage collector, during a start and after it.

What a start makes (modules, classes, statements) stays until the end. So the collector, which comes
after every so many objects, finds nothing there, and takes a fifth of the time. Later it would go
through all of it again and again, and let no call go on meanwhile.
"""

from __future__ import annotations

import gc


def pause() -> None:
    """Begin a start: let it collect nothing for now."""
    gc.disable()


def resume() -> None:
    """End a start: collect garbage again, but of what is made from now on."""
    gc.freeze()
    gc.enable()


def resume_after_failure() -> None:
    """End a start that has failed: what it has made ends now, and not while Python itself ends,
    when gRPC could no longer log it."""
    gc.enable()
    gc.collect()
