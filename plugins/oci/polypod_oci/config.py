"""The ``config.json`` that a runtime reads: core's configuration with the names that it can open.

Spec:
    runtime-spec bundle.md, config.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from polypod.plugin import BackendError, InvalidArgument, Unsupported
from polypod.plugin.oci import Linux, Namespace, OciConfig, OciResources, Process
from polypod.spec.oci_json import to_json


def bundle_config(
    config: OciConfig, *, version: str, root: str, cgroup: str, namespaces: Mapping[str, str]
) -> OciConfig:
    """Return the configuration for a runtime.

    Args:
        config: core's.
        version: the ``ociVersion`` that it accepts.
        root: absolute path of the root file system.
        cgroup: path below every hierarchy.
        namespaces: what stands in `Namespace.path` → a path that the runtime can open.

    Raises:
        InvalidArgument: a namespace is named that is not there.
    """
    found = tuple(_namespace(item, namespaces) for item in config.linux.namespaces)
    linux = replace(config.linux, namespaces=found, cgroups_path=cgroup)
    return replace(config, oci_version=version, root_path=root, linux=linux)


def _namespace(item: Namespace, paths: Mapping[str, str]) -> Namespace:
    if not item.path or item.path.startswith("/"):
        return item
    if item.path not in paths:
        raise InvalidArgument(f"namespace {item.type}: there is no {item.path!r}")
    return replace(item, path=paths[item.path])


def config_text(config: OciConfig) -> bytes:
    """Return the file's content.

    Raises:
        Unsupported: something in it is no UTF-8, which JSON cannot say.
    """
    return _text(to_json(config))


def process_text(process: Process) -> bytes:
    """Return a ``process.json`` for ``exec``."""
    return _text(to_json(OciConfig(process))["process"])


def resources_text(resources: OciResources) -> bytes:
    """Return a file for ``update --resources``."""
    document = to_json(OciConfig(Process(), linux=Linux(resources=resources)))
    linux = document.get("linux", {})
    if not isinstance(linux, dict):
        raise BackendError("the resources cannot be written")
    return _text(linux.get("resources", {}))


def _text(document: object) -> bytes:
    try:
        return json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Unsupported(
            "a value of the environment or an argument is not UTF-8: an OCI runtime reads JSON, which "
            "cannot hold it"
        ) from error
