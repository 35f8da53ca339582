"""``config.json`` of the runtime-spec to and from `OciConfig`.

What our dataclasses do not have is ignored on reading, as the specification wants of unknown fields;
defaults are left out on writing.

Spec:
    runtime-spec 1.3 config.md and config-linux.md.
"""

from __future__ import annotations

from typing import Final

from polypod.plugin.oci import OciConfig
from polypod.spec.json_reader import Node, load
from polypod.spec.oci_json_read import read_config
from polypod.spec.oci_json_write import write_config

MAX_CONFIG_BYTES: Final = 16 * 1024 * 1024


def to_json(config: OciConfig) -> dict[str, object]:
    """Return the document as JSON values. Bytes of the environment stay as lone surrogates."""
    return write_config(config)


def from_json(data: object) -> OciConfig:
    """Return the configuration in a parsed document.

    Raises:
        InvalidArgument: a value has the wrong type or is out of range; the text names its path.
    """
    return read_config(Node(data, ""))


def parse_config(text: bytes) -> OciConfig:
    """Return the configuration in a file's content, of at most 16 MiB (E8).

    Raises:
        InvalidArgument: it is no JSON, too large, or as in `from_json`.
    """
    return read_config(load(text, "config.json", MAX_CONFIG_BYTES))
