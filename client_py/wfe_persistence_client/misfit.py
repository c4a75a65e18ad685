"""Values that cannot be sent: errors that name the field, and helpers that keep its path."""

from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from wfe_persistence_client.errors import MalformedAnswer

_P = ParamSpec("_P")
_GivenT = TypeVar("_GivenT")
_MadeT = TypeVar("_MadeT")


class Misfit(Exception):  # noqa: N818 - never raised itself
    """A value that cannot be sent; its subclasses are a TypeError and a ValueError."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        #: Where it is, for example `execution_pointers[3].children`.
        self.path = path
        #: What is wrong with it.
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" if self.path else self.problem

    def enter(self, place: str) -> None:
        """Extends the path at its front: `path` is relative to `place`."""
        dot = "." if self.path and not self.path.startswith("[") else ""
        self.path = f"{place}{dot}{self.path}"
        self.args = (self.path, self.problem)


class FieldTypeError(Misfit, TypeError):
    """A value of a type that the field does not take."""


class FieldValueError(Misfit, ValueError):
    """A value of the right type that the field does not take."""


def each(
    place: str, values: Iterable[_GivenT], convert: Callable[[_GivenT], _MadeT]
) -> list[_MadeT]:
    """Converts each item of a list; errors say which one of `place` it was."""
    made: list[_MadeT] = []
    try:
        for value in values:
            # Not a comprehension: the length tells the place of an error.
            made.append(convert(value))
    except Misfit as exc:
        exc.enter(f"{place}[{len(made)}]")
        raise
    except MalformedAnswer as exc:
        exc.add_note(f"in {place}[{len(made)}]")
        raise
    return made


def build(kind: Callable[_P, _MadeT], /, *args: _P.args, **kwargs: _P.kwargs) -> _MadeT:
    """Makes a message; where protobuf rejects a value, the error names the field."""
    try:
        return kind(*args, **kwargs)
    except (TypeError, ValueError):
        for name, value in kwargs.items():
            _try_alone(kind, name, value)
        raise


def check_text(path: str, text: str) -> None:
    """Rejects text that has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise FieldValueError(path, "the text contains a lone surrogate") from exc


def _try_alone(kind: Callable[..., object], name: str, value: object) -> None:
    try:
        kind(**{name: value})
    except UnicodeEncodeError as exc:
        raise FieldValueError(name, "the text contains a lone surrogate") from exc
    except ValueError as exc:
        problem = "the number is out of range" if isinstance(value, int) else str(exc)
        raise FieldValueError(name, problem) from exc
    except TypeError as exc:
        raise FieldTypeError(name, str(exc)) from exc
