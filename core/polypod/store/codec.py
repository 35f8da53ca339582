"""Frozen dataclasses to JSON values and back, by functions compiled once for each type.

Knows what the records are made of: dataclasses, enums, tuples, mappings with string keys, optional
values, paths, bytes, strings, numbers, and ``object`` (JSON values, kept as they are). Fields that
equal their default are left out, so that a record grows fields without a new version. An unknown
field is an error: it was written by a newer server, and dropping it would lose state.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, cast

T = TypeVar("T")

_Convert = Callable[[Any], Any]
_PLAIN = (str, int, bool)
_json = json.JSONEncoder(separators=(",", ":")).encode


class CodecError(ValueError):
    """A stored value does not have the shape of its type; the text names type and field."""


def dumps(value: object) -> str:
    """Return a dataclass as JSON text."""
    return _json(_encoder(cast("Hashable", type(value)))(value))


def loads(kind: type[T], text: str) -> T:
    """Build a dataclass from JSON text.

    Raises:
        CodecError: not JSON, or not the shape of ``kind``.
    """
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise CodecError(f"{kind.__name__}: not JSON: {error}") from error
    return cast("T", _decoder(cast("Hashable", kind))(raw))


@functools.cache
def _encoder(kind: Any) -> _Convert:  # noqa: ANN401 - any annotation may stand in a field
    """Return the function that turns a value of a type into JSON values."""
    kind = _resolve(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass_encoder(kind)
    if kind in _PLAIN or kind in (float, object, type(None)):
        return _same
    if kind is bytes:
        return lambda value: base64.b64encode(value).decode("ascii")
    if kind is Path:
        return str
    if isinstance(kind, type) and issubclass(kind, Enum):
        return lambda value: value.value
    return _generic_encoder(kind)


def _generic_encoder(kind: Any) -> _Convert:  # noqa: ANN401
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = _encoder(_optional(kind, args))
        return lambda value: None if value is None else inner(value)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        item = _encoder(args[0])
        return list if item is _same else lambda value: [item(each) for each in value]
    if origin is tuple:
        items = [_encoder(arg) for arg in args]
        return lambda value: [encode(each) for encode, each in zip(items, value, strict=True)]
    if origin is not None and issubclass(origin, Mapping):
        item = _encoder(args[1])
        return dict if item is _same else lambda value: {k: item(v) for k, v in value.items()}
    raise TypeError(f"the codec has no form for {kind!r}")


def _dataclass_encoder(kind: Any) -> _Convert:  # noqa: ANN401
    hints = typing.get_type_hints(kind)
    plan = [(f.name, _encoder(hints[f.name]), _default(f)) for f in dataclasses.fields(kind)]

    def encode(value: object) -> dict[str, Any]:
        out = {}
        for name, convert, default in plan:
            item = getattr(value, name)
            if item is not default and item != default:
                out[name] = convert(item)
        return out

    return encode


@functools.cache
def _decoder(kind: Any) -> _Convert:  # noqa: ANN401
    """Return the function that builds a value of a type from JSON values, or raises CodecError."""
    kind = _resolve(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass_decoder(kind)
    if kind is object:
        return _same
    if kind in _PLAIN or kind is type(None):
        return _exact(kind)
    if kind is float:
        return lambda value: float(_exact_number(value))
    if kind is bytes:
        return lambda value: base64.b64decode(_exact(str)(value), validate=True)
    if kind is Path:
        return lambda value: Path(_exact(str)(value))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind
    return _generic_decoder(kind)


def _generic_decoder(kind: Any) -> _Convert:  # noqa: ANN401
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = _decoder(_optional(kind, args))
        return lambda value: None if value is None else inner(value)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        item = _decoder(args[0])
        return lambda value: tuple(item(each) for each in _exact(list)(value))
    if origin is tuple:
        items = [_decoder(arg) for arg in args]
        return lambda value: tuple(
            decode(each) for decode, each in zip(items, _exact(list)(value), strict=True)
        )
    if origin is not None and issubclass(origin, Mapping):
        item = _decoder(args[1])
        return lambda value: {key: item(each) for key, each in _exact(dict)(value).items()}
    raise TypeError(f"the codec has no form for {kind!r}")


def _dataclass_decoder(kind: Any) -> _Convert:  # noqa: ANN401
    hints = typing.get_type_hints(kind)
    fields = {f.name: _decoder(hints[f.name]) for f in dataclasses.fields(kind)}

    def decode(value: object) -> Any:  # noqa: ANN401 - an instance of `kind`
        if not isinstance(value, dict):
            raise CodecError(f"{kind.__name__}: an object was expected, not {type(value).__name__}")
        unknown = value.keys() - fields.keys()
        if unknown:
            raise CodecError(f"{kind.__name__}: unknown fields {sorted(unknown)}")
        try:
            return kind(**{name: fields[name](item) for name, item in value.items()})
        except (TypeError, ValueError) as error:
            raise CodecError(f"{kind.__name__}: {error}") from error

    return decode


def _resolve(kind: Any) -> Any:  # noqa: ANN401
    """Look through NewType."""
    while isinstance(kind, typing.NewType):
        kind = kind.__supertype__
    return kind


def _optional(kind: object, args: tuple[Any, ...]) -> Any:  # noqa: ANN401
    """Return X of ``X | None``; other unions have no form."""
    rest = [arg for arg in args if arg is not type(None)]
    if len(rest) != 1:
        raise TypeError(f"the codec has no form for {kind!r}")
    return rest[0]


def _default(field: dataclasses.Field[Any]) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _same(value: Any) -> Any:  # noqa: ANN401
    return value


@functools.cache
def _exact(kind: type) -> _Convert:
    def check(value: object) -> object:
        if type(value) is not kind:
            raise CodecError(f"{kind.__name__} was expected, not {type(value).__name__}")
        return value

    return check


def _exact_number(value: object) -> float:
    if type(value) not in (int, float):
        raise CodecError(f"a number was expected, not {type(value).__name__}")
    return cast("float", value)
