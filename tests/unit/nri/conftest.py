"""The NRI plugin, opened over a socket of the test's own."""

from __future__ import annotations

import pytest
from support.nri import FakeServices, Lab, close_all

from polypod_nri.plugin import NriPlugin


@pytest.fixture
def services():
    return FakeServices()


@pytest.fixture
def open_lab(tmp_path, services):
    """Return a function that opens the plugin with options."""
    opened = []

    async def open_(**options):
        plugin = NriPlugin()
        path = tmp_path / "run" / "nri.sock"
        given = {
            "enabled": True,
            "socket": str(path),
            "plugin_dir": str(tmp_path / "plugins"),
            "config_dir": str(tmp_path / "conf.d"),
            **options,
        }
        observer = await plugin.open(services, given)
        lab = Lab(plugin, services, path)
        opened.append((lab, observer))
        return lab

    open_.opened = opened
    return open_


@pytest.fixture
async def lab(open_lab):
    made = await open_lab()
    yield made
    await close_all(open_lab)
