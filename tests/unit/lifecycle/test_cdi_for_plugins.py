"""CDI devices that plugins ask for: node, rule, environment, on top of a config that is made already."""

import json

import pytest

from polypod.lifecycle.cdi import add_devices
from polypod.plugin.errors import NotFound
from polypod.plugin.oci import DeviceRule, Linux, OciConfig, OciDevice, OciResources, Process

FILE = {
    "cdiVersion": "0.6.0",
    "kind": "example.org/box",
    "devices": [
        {
            "name": "one",
            "containerEdits": {
                "env": ["BOX=one"],
                "deviceNodes": [
                    {"path": "/dev/box", "type": "c", "major": 250, "minor": 1, "permissions": "rw"}
                ],
            },
        }
    ],
}
CONFIG = OciConfig(
    Process(env=("PATH=/bin",)),
    linux=Linux(
        devices=(OciDevice("/dev/box", "c", 1, 3), OciDevice("/dev/other", "c", 1, 5)),
        resources=OciResources(devices=(DeviceRule(False), DeviceRule(True, "c", 1, 3, "rwm"))),
    ),
)


def test_a_device_is_added_to_a_config(tmp_path):
    (tmp_path / "box.json").write_text(json.dumps(FILE))
    config = add_devices(CONFIG, ["example.org/box=one"], [tmp_path])
    assert config.process.env == ("PATH=/bin", "BOX=one")
    assert [(each.path, each.major) for each in config.linux.devices] == [
        ("/dev/other", 1),
        ("/dev/box", 250),
    ]
    assert config.linux.resources.devices == (
        *CONFIG.linux.resources.devices,
        DeviceRule(True, "c", 250, 1, "rw"),
    )


def test_a_device_that_no_file_has_is_named(tmp_path):
    with pytest.raises(NotFound, match=r"example\.org/box=one"):
        add_devices(CONFIG, ["example.org/box=one"], [tmp_path])
