"""Each foreign library is behind one room or module; the child side needs none."""

import ast
import sys

import polypod_meta_tree as tree

OURS = {
    "polypod",
    "polypod_namespaces",
    "polypod_network",
    "polypod_image",
    "polypod_vm",
    "polypod_vm_child",
    "polypod_oci",
    "polypod_fly",
    "polypod_nri",
}
EVERYWHERE = {"typing_extensions"}
BEHIND = {
    "pluggy": ("core/polypod/plugin/hooks.py", "core/polypod/registry/"),
    "grpc": ("core/polypod/api/", "core/polypod/client/"),
    "google": ("core/polypod/api/", "core/polypod/client/", "plugins/nri/polypod_nri/wire/"),
    "yaml": ("core/polypod/spec/yaml_reader.py",),
    "rich": ("core/polypod/cli/",),
    "prometheus_client": ("core/polypod/telemetry/meter.py",),
    "opentelemetry": ("core/polypod/telemetry/tracing.py",),
    "h11": ("core/polypod/streaming/handshake.py", "core/polypod/streaming/dialing.py"),
    "wsproto": ("core/polypod/streaming/websocket.py",),
    "pyroute2": ("plugins/network/",),
    "isal": ("plugins/image/",),
    "zstandard": ("plugins/image/",),
    "aiohttp": ("plugins/image/polypod_image/registry/transport.py",),
    "yarl": ("plugins/image/polypod_image/registry/transport.py",),
    "libvirt": ("plugins/vm/",),
    "libvirt_qemu": ("plugins/vm/",),
}
"""Library → the only places that may import it."""


def imports(path):
    """The top-level names that a file imports, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(tree.syntax(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def test_foreign_libraries_are_behind_their_rooms():
    wrong = []
    for path in tree.sources("core/", "plugins/"):
        for library in set(imports(path)) - OURS - EVERYWHERE - set(sys.stdlib_module_names):
            if not tree.name(path).startswith(BEHIND.get(library, ("nowhere",))):
                wrong.append(f"{tree.name(path)} imports {library}")
    assert wrong == []


def test_the_child_side_needs_the_standard_library_alone():
    wrong = []
    for path in tree.sources("core/polypod/supervisor/", "core/polypod/plan/"):
        for library in set(imports(path)) - {"polypod"} - set(sys.stdlib_module_names):
            wrong.append(f"{tree.name(path)} imports {library}")
    assert wrong == []
