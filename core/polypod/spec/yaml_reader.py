"""Reading YAML that somebody else wrote, as `json_reader` reads JSON."""

from __future__ import annotations

import yaml
from typing_extensions import override

from polypod.plugin.errors import InvalidArgument
from polypod.spec.json_reader import Node


class _Loader(yaml.SafeLoader):
    """No tags of programs; a key that stands twice is an error."""

    @override
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [self.construct_object(key, deep=True) for key, _value in node.value]
        if len({str(key) for key in keys}) < len(keys):
            raise yaml.YAMLError(f"a key stands twice:{node.start_mark}")
        return super().construct_mapping(node, deep)


def load_yaml(text: bytes, what: str, max_bytes: int) -> Node:
    """Parse a document.

    Args:
        text: UTF-8.
        what: how to call it in an error.
        max_bytes: more is refused.

    Raises:
        InvalidArgument: it is too long, too deep or no YAML.
    """
    if len(text) > max_bytes:
        raise InvalidArgument(f"{what}: has {len(text)} bytes, at most {max_bytes} are read")
    try:
        return Node(yaml.load(text, _Loader), "")  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what}: is no YAML document: {error}") from error
