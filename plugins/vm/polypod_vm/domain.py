"""A virtual machine as data, and as the XML that libvirt takes. Pure: nothing is opened or asked here.

Every string goes through an XML writer, so none of them can add an element; what XML cannot hold at all is
refused.

Spec:
    libvirt formatdomain; XML 1.0, production 2 (Char).
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from polypod.plugin import InvalidArgument

CHANNEL = "polypod.0"
"""The virtio-serial port by which guest and relay find each other."""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TYPES = {"kvm": "kvm", "tcg": "qemu"}
_CPU_MODES = {"kvm": "host-passthrough", "tcg": "maximum"}
_SOCKET_PATH_MAX = 107
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Domain:
    """One pod's machine."""

    name: str
    uuid: str
    accel: str
    """``kvm`` or ``tcg``."""
    memory_mib: int
    vcpus: int
    kernel: Path
    initramfs: Path
    command_line: str
    channel: Path
    """Unix socket that QEMU listens on for the relay."""
    console: Path
    """File that the guest's serial port is written to."""
    emulator: Path
    machine: str = "pc"
    """``pc`` takes disks and interfaces while it runs without ports reserved for them."""
    arch: str = "x86_64"


@dataclass(frozen=True, slots=True)
class Disk:
    """One read-only image in a machine; the guest finds it by its serial (at most 20 characters)."""

    path: Path
    target: str
    serial: str


def disk_target(number: int) -> str:
    """Return the name of the N-th virtio disk, from vda over vdz to vdaa and on."""
    text = ""
    while True:
        number, digit = divmod(number, len(_LETTERS))
        text = _LETTERS[digit] + text
        if number == 0:
            return f"vd{text}"
        number -= 1


def domain_xml(domain: Domain) -> str:
    """Return a domain's description.

    Raises:
        InvalidArgument: a text that XML cannot hold, or a socket path that is too long.
    """
    if len(str(domain.channel).encode()) > _SOCKET_PATH_MAX:
        raise InvalidArgument(f"{domain.channel}: longer than the path of a unix socket may be")
    root = ET.Element("domain", type=_TYPES[domain.accel])
    _text(root, "name", domain.name)
    _text(root, "uuid", domain.uuid)
    _text(root, "memory", str(domain.memory_mib), unit="MiB")
    _text(root, "vcpu", str(domain.vcpus))
    system = ET.SubElement(root, "os")
    _text(system, "type", "hvm", arch=domain.arch, machine=domain.machine)
    _text(system, "kernel", str(domain.kernel))
    _text(system, "initrd", str(domain.initramfs))
    _text(system, "cmdline", domain.command_line)
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    ET.SubElement(root, "cpu", mode=_CPU_MODES[domain.accel])
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _text(root, event, "destroy")
    _devices(root, domain)
    return ET.tostring(root, encoding="unicode")


def _devices(root: ET.Element, domain: Domain) -> None:
    devices = ET.SubElement(root, "devices")
    _text(devices, "emulator", str(domain.emulator))
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "controller", type="virtio-serial", index="0")
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "source", mode="bind", path=_checked(str(domain.channel)))
    ET.SubElement(channel, "target", type="virtio", name=CHANNEL)
    serial = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(serial, "source", path=_checked(str(domain.console)))
    ET.SubElement(devices, "memballoon", model="none")


def disk_xml(disk: Disk) -> str:
    """Return a disk's description, to be attached to a running domain."""
    root = ET.Element("disk", type="file", device="disk")
    ET.SubElement(root, "driver", name="qemu", type="raw")
    ET.SubElement(root, "source", file=_checked(str(disk.path)))
    ET.SubElement(root, "target", dev=_checked(disk.target), bus="virtio")
    ET.SubElement(root, "readonly")
    ET.SubElement(root, "shareable")
    _text(root, "serial", disk.serial)
    return ET.tostring(root, encoding="unicode")


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = _checked(text)


def _checked(text: str) -> str:
    if _NOT_XML.search(text):
        raise InvalidArgument(f"{text!r}: has characters that a domain's description cannot hold")
    return text
