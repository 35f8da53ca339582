"""A machine as XML: every string escaped, and what libvirt's own parser makes of it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from polypod.plugin import InvalidArgument
from polypod_vm.domain import Disk, Domain, disk_target, disk_xml, domain_xml

DOMAIN = Domain(
    name="polypod-1",
    uuid="11111111-2222-3333-4444-555555555555",
    accel="tcg",
    memory_mib=256,
    vcpus=2,
    kernel=Path("/guest/kernel"),
    initramfs=Path("/guest/initramfs"),
    command_line="quiet panic=-1",
    channel=Path("/run/c"),
    console=Path("/run/console"),
    emulator=Path("/usr/bin/qemu-system-x86_64"),
)
HOSTILE = "</name><name>&\"'<!-- ]]>"


def parsed(domain: Domain = DOMAIN) -> ET.Element:
    return ET.fromstring(domain_xml(domain))


def test_machine_has_what_the_data_says():
    root = parsed()
    assert root.get("type") == "qemu"
    assert root.findtext("name") == "polypod-1"
    assert (root.findtext("memory"), root.find("memory").get("unit")) == ("256", "MiB")
    assert root.findtext("vcpu") == "2"
    assert root.findtext("os/kernel") == "/guest/kernel"
    assert root.findtext("os/initrd") == "/guest/initramfs"
    assert root.findtext("os/cmdline") == "quiet panic=-1"
    assert root.find("devices/channel/source").get("path") == "/run/c"
    assert root.find("devices/channel/target").get("name") == "polypod.0"
    assert root.find("devices/serial/source").get("path") == "/run/console"


def test_machine_ends_instead_of_starting_again():
    root = parsed()
    assert {root.findtext(f"on_{event}") for event in ("poweroff", "reboot", "crash")} == {
        "destroy"
    }


@pytest.mark.parametrize(
    ("accel", "kind", "cpu"), [("kvm", "kvm", "host-passthrough"), ("tcg", "qemu", "maximum")]
)
def test_accelerator_decides_type_and_processor(accel, kind, cpu):
    root = parsed(replace(DOMAIN, accel=accel))
    assert (root.get("type"), root.find("cpu").get("mode")) == (kind, cpu)


@pytest.mark.parametrize("field", ["name", "uuid", "command_line"])
def test_a_text_cannot_add_elements(field):
    plain = [element.tag for element in parsed().iter()]
    root = parsed(replace(DOMAIN, **{field: HOSTILE}))
    assert [element.tag for element in root.iter()] == plain
    where = {"name": "name", "uuid": "uuid", "command_line": "os/cmdline"}[field]
    assert root.findtext(where) == HOSTILE


@pytest.mark.parametrize("field", ["kernel", "initramfs", "console", "emulator", "channel"])
def test_a_path_cannot_add_elements(field):
    plain = [element.tag for element in parsed().iter()]
    root = parsed(replace(DOMAIN, **{field: Path("/a" + HOSTILE)}))
    assert [element.tag for element in root.iter()] == plain


@pytest.mark.parametrize("text", ["a\0b", "a\x1bb", "\ud800", "￾"])
def test_what_xml_cannot_hold_is_refused(text):
    with pytest.raises(InvalidArgument, match="cannot hold"):
        domain_xml(replace(DOMAIN, command_line=text))


def test_a_socket_path_that_is_too_long_is_refused():
    with pytest.raises(InvalidArgument, match="longer"):
        domain_xml(replace(DOMAIN, channel=Path("/" + "x" * 107)))


def test_disk_is_read_only_and_found_by_its_serial():
    root = ET.fromstring(disk_xml(Disk(Path('/images/"<1>.erofs'), "vdb", "0123456789abcdef")))
    assert root.find("source").get("file") == '/images/"<1>.erofs'
    assert root.find("target").attrib == {"dev": "vdb", "bus": "virtio"}
    assert root.findtext("serial") == "0123456789abcdef"
    assert root.find("readonly") is not None
    assert root.find("shareable") is not None


@pytest.mark.parametrize(
    ("number", "name"),
    [(0, "vda"), (25, "vdz"), (26, "vdaa"), (51, "vdaz"), (52, "vdba"), (701, "vdzz")],
)
def test_disks_are_numbered_in_letters(number, name):
    assert disk_target(number) == name


def test_libvirt_parses_it():
    libvirt = pytest.importorskip("libvirt")
    root = parsed()
    # The test driver runs every description, but knows its own type of machine alone.
    root.set("type", "test")
    connection = libvirt.open("test:///default")
    try:
        made = connection.createXML(ET.tostring(root, encoding="unicode"), 0)
        assert made.name() == "polypod-1"
        assert made.UUIDString() == DOMAIN.uuid
        assert made.maxMemory() == 256 * 1024
        shown = ET.fromstring(made.XMLDesc(0))
        assert shown.findtext("os/cmdline") == "quiet panic=-1"
        assert shown.find("devices/channel/target").get("name") == "polypod.0"
        made.destroy()
    finally:
        connection.close()


def test_libvirt_sees_a_hostile_name_as_a_name():
    libvirt = pytest.importorskip("libvirt")
    root = parsed(replace(DOMAIN, command_line=HOSTILE))
    root.set("type", "test")
    connection = libvirt.open("test:///default")
    try:
        made = connection.createXML(ET.tostring(root, encoding="unicode"), 0)
        assert ET.fromstring(made.XMLDesc(0)).findtext("os/cmdline") == HOSTILE
        made.destroy()
    finally:
        connection.close()
