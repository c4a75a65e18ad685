"""Checks what callers give against the type hints, and names what is wrong.

Protobuf accepts some wrong values (a string as a list of letters, bytes as text, 1 as
true, the number of another enum), and its errors do not name the field. So each
argument of a public method is checked when it is called, and each field of a dataclass
when it is converted. The hints are the only declaration: a new method or field is
checked without further code.
"""

import functools
import inspect
from collections.abc import AsyncIterable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from types import NoneType, UnionType
from typing import (
    Any,
    Final,
    ParamSpec,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    is_typeddict,
)

from wfe_persistence_client.json_text import JSON
from wfe_persistence_client.misfit import FieldTypeError, check_text

_P = ParamSpec("_P")
_T = TypeVar("_T")
_ClassT = TypeVar("_ClassT", bound=type)

_JSON_TYPES: Final = frozenset(get_args(JSON))
#: Iterables that are one value.
_TEXTS: Final = (str, bytes, bytearray, memoryview)


class Rule:
    """What a hint of a plain type, a class, or a union of them allows."""

    def __init__(
        self, expected: str, plain: Iterable[type], accepts: Callable[[object], bool]
    ) -> None:
        #: The allowed types, for errors.
        self.expected = expected
        #: Types whose instances are accepted without another look; for speed.
        self.plain = frozenset(plain)
        self._accepts = accepts

    def fit(self, path: str, value: Any) -> Any:
        """The value to use; raises if it is wrong."""
        if type(value) in self.plain or self._accepts(value):
            return value
        raise self.wrong(path, value)

    def wrong(self, path: str, value: object) -> FieldTypeError:
        """The error for a value of another type."""
        given = "None" if value is None else type(value).__name__
        return FieldTypeError(path, f"expected {self.expected}, not {given}")


class _Items(Rule):
    """What the hint of a sequence, a collection or an iterable allows."""

    def __init__(self, kind: type, item: Rule | None, *, optional: bool = False) -> None:
        of = f" of {item.expected}" if item else ""
        name = "a list" if issubclass(kind, Sequence) else "an iterable"
        super().__init__(f"{name}{of}{' or None' if optional else ''}", (), self._is_one)
        self._kind = kind
        self._item = item
        self._optional = optional

    def _is_one(self, value: object) -> bool:
        kind = Sequence if issubclass(self._kind, Sequence) else self._kind
        return isinstance(value, kind) and not isinstance(value, _TEXTS)

    def fit(self, path: str, value: Any) -> Any:
        if type(value) is not list:
            if value is None and self._optional:
                return None
            if not self._is_one(value):
                raise self.wrong(path, value)
            if not isinstance(value, Collection):
                # It can be read only once.
                value = list(value)
        if value and self._item is not None:
            plain = self._item.plain
            for index, item in enumerate(value):
                if type(item) not in plain:
                    self._item.fit(f"{path}[{index}]", item)
        return value


class _Source(Rule):
    """What the hint of items allows that are read one by one, so that there may be any number:
    each is checked when it is read."""

    def __init__(self, item: type) -> None:
        super().__init__(f"an iterable or async iterable of {item.__name__}", (), self._is_one)

    def _is_one(self, value: object) -> bool:
        return isinstance(value, Iterable | AsyncIterable) and not isinstance(value, _TEXTS)


class _Attributes(Rule):
    """What the hint of a mapping from names to JSON allows; `write_json` checks the values."""

    def __init__(self) -> None:
        super().__init__("a dict", (), lambda value: isinstance(value, Mapping))

    def fit(self, path: str, value: Any) -> Any:
        super().fit(path, value)
        for key in value:
            if not isinstance(key, str):
                raise FieldTypeError(path, f"expected str as keys, not {type(key).__name__}")
        return value


def rule_of(hint: Any) -> Rule | None:
    """The rule of a hint; None: it allows anything, or `write_json` checks it."""
    if hint is Any or hint is object or hint is JSON:
        return None
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return _union(get_args(hint))
    if is_typeddict(hint) or (origin is not None and issubclass(origin, Mapping)):
        return _Attributes()
    if origin is not None and issubclass(origin, Iterable):
        return _Items(origin, rule_of(get_args(hint)[0]))
    if origin is Callable or hint is Callable:
        return Rule("a function", (), callable)
    if hint in (None, NoneType):
        return Rule("None", (NoneType,), lambda _value: False)
    return _class(origin or hint)


def _class(kind: type) -> Rule:
    if kind is int:
        # bool is a subclass of it.
        return Rule("int", (int,), lambda value: _is_number(value, int))
    if kind is float:
        return Rule("float", (float, int), lambda value: _is_number(value, (int, float)))
    return Rule(kind.__name__, (kind,), lambda value: isinstance(value, kind))


def _is_number(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _union(options: Sequence[Any]) -> Rule | None:
    if frozenset(options) >= _JSON_TYPES:
        return None
    origins = [get_origin(option) for option in options]
    if origins == [Iterable, AsyncIterable]:
        return _Source(get_args(options[0])[0])
    rules = [rule_of(option) for option in options]
    known = [rule for rule in rules if rule is not None]
    if len(known) < len(rules):
        return None
    for option, rule in zip(options, known, strict=True):
        if isinstance(rule, _Items):
            if set(options) != {option, NoneType}:
                raise TypeError(f"no rule for a union of a list with anything but None: {options}")
            return _Items(get_origin(option), rule._item, optional=True)
    return Rule(
        " or ".join(rule.expected for rule in known),
        frozenset().union(*(rule.plain for rule in known)),
        lambda value: any(rule._accepts(value) for rule in known),
    )


class Fields:
    """The hints of a dataclass, to check its objects.

    Made for speed, because it runs for every pointer that is sent: the types of all
    plain fields together are compared with those of earlier objects.
    """

    def __init__(self, kind: type) -> None:
        # Not typing.get_type_hints: it would expand the recursive type JSON.
        hints = [(field.name, rule_of(field.type)) for field in fields(kind)]
        rules = [(name, rule) for name, rule in hints if rule is not None]
        self._plain = [(name, rule) for name, rule in rules if rule.plain]
        self._others = [(name, rule) for name, rule in rules if not rule.plain]
        self._values = _getter([name for name, _ in self._plain])
        #: Combinations of types that are right. There are only as many as the hints have.
        self._right: set[tuple[type, ...]] = set()

    def check(self, value: object) -> None:
        """Raises for the first field that has a value of the wrong type."""
        types = tuple(map(type, self._values(value)))
        if types not in self._right:
            for name, rule in self._plain:
                rule.fit(name, getattr(value, name))
            if all(
                given in rule.plain for given, (_, rule) in zip(types, self._plain, strict=True)
            ):
                self._right.add(types)
        for name, rule in self._others:
            rule.fit(name, getattr(value, name))


def _getter(names: Sequence[str]) -> Callable[[object], tuple[Any, ...]]:
    """Gets these attributes of an object."""
    if len(names) < 2:
        # attrgetter would not return a tuple.
        return lambda value: tuple(getattr(value, name) for name in names)
    return attrgetter(*names)


def checked(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """A function that first checks its arguments; iterators among them become lists."""
    parameters = inspect.signature(function).parameters
    rules = {
        name: None if parameter.annotation is parameter.empty else rule_of(parameter.annotation)
        for name, parameter in parameters.items()
    }
    if not any(rules.values()):
        return function
    by_position = list(rules.items())

    def fitting(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        # Too many, unknown and missing arguments are left to Python.
        fit = list(args)
        for at, (_, (name, rule)) in enumerate(zip(args, by_position, strict=False)):
            if rule is not None:
                fit[at] = _fit(rule, name, args[at])
        for name, value in kwargs.items():
            rule = rules.get(name)
            if rule is not None:
                kwargs[name] = _fit(rule, name, value)
        return fit

    if inspect.iscoroutinefunction(function):
        # Still a coroutine function, for those who ask.
        @functools.wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            return await function(*fitting(args, kwargs), **kwargs)

        return cast("Callable[_P, _T]", call_async)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*fitting(args, kwargs), **kwargs)

    return cast("Callable[_P, _T]", call)


def _fit(rule: Rule, name: str, value: Any) -> Any:
    if isinstance(value, str):
        # The request may have another name for it.
        check_text(name, value)
    return rule.fit(name, value)


def checked_methods(kind: _ClassT) -> _ClassT:
    """A class decorator: every public method, also an inherited one, is `checked`."""
    for name in dir(kind):
        method = inspect.getattr_static(kind, name)
        if not name.startswith("_") and inspect.isfunction(method):
            setattr(kind, name, checked(method))
    return kind


def is_async(function: object) -> bool:
    """Whether it is an async function, or an object that is called like one."""
    call = getattr(function, "__call__", None)  # noqa: B004 - its kind matters
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)
