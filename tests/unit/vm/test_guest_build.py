"""What the guest is built from: the archive, the kernel's image and modules, the interpreter's files."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from polypod.plugin import BackendError
from polypod_vm import cpio, guestpython, kernelimage

_HERE = str(Path(__file__).parents[3]).encode()


def unpacked(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Read an archive back: name → (mode, content)."""
    found, at = {}, 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        size, length = fields[6], fields[11]
        name = data[at + 110 : at + 110 + length - 1].decode()
        at = at + 110 + length
        at += -at % 4
        content = data[at : at + size]
        at += size + -size % 4
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], content)


def test_archive_holds_what_was_put_in_with_its_parents():
    data = cpio.archive(
        [
            cpio.file("usr/bin/x", b"#!", 0o755),
            cpio.link("lib", "usr/lib"),
            cpio.directory("proc"),
            cpio.character_device("dev/null", 1, 3, 0o666),
        ]
    )
    found = unpacked(data)
    assert list(found) == ["dev", "dev/null", "lib", "proc", "usr", "usr/bin", "usr/bin/x"]
    assert found["usr/bin/x"] == (0o100755, b"#!")
    assert found["lib"] == (0o120777, b"usr/lib")
    assert found["usr"][0] == 0o040755
    assert found["dev/null"][0] == 0o020666
    assert len(data) % 512 == 0


def test_archive_does_not_depend_on_the_order():
    parts = [cpio.file(name, name.encode()) for name in ("b/1", "a", "c/2/3")]
    assert cpio.archive(parts) == cpio.archive(reversed(parts))


DEPENDENCIES = """\
kernel/fs/overlayfs/overlay.ko:
kernel/fs/erofs/erofs.ko: kernel/lib/libcrc32c.ko
kernel/lib/libcrc32c.ko: kernel/crypto/crc32c_generic.ko
kernel/crypto/crc32c_generic.ko:
kernel/drivers/net/virtio_net.ko.xz: kernel/net/core/failover.ko
kernel/net/core/failover.ko:
"""


def test_modules_come_behind_what_they_need():
    order = kernelimage.load_order(DEPENDENCIES, ["erofs", "virtio-net", "overlay"])
    assert order == [
        "kernel/crypto/crc32c_generic.ko",
        "kernel/lib/libcrc32c.ko",
        "kernel/fs/erofs/erofs.ko",
        "kernel/net/core/failover.ko",
        "kernel/drivers/net/virtio_net.ko.xz",
        "kernel/fs/overlayfs/overlay.ko",
    ]


def test_a_module_that_is_built_in_is_left_out():
    assert kernelimage.load_order(DEPENDENCIES, ["ext4", "overlay"]) == [
        "kernel/fs/overlayfs/overlay.ko"
    ]


def literal(data: bytes) -> bytes:
    """An LZ4 block of literals alone."""
    rest = len(data) - 15
    lengths = b""
    while rest >= 255:
        lengths, rest = lengths + b"\xff", rest - 255
    return b"\xf0" + lengths + bytes([rest]) + data


@pytest.mark.parametrize(
    ("block", "plain"),
    [
        (b"\x50hello", b"hello"),
        # Five literals, then eight bytes from five back: the copy overlaps itself.
        (b"\x54abcde\x05\x00" + b"\x10!", b"abcde" + b"abcdeabc" + b"!"),
        (b"\x1fa\x01\x00\x05" + b"\x10z", b"a" * 25 + b"z"),
        (literal(b"x" * 300), b"x" * 300),
        (b"\x80abcdefgh"[:9], b"abcdefgh"),
    ],
    ids=["literals", "overlap", "long match", "long literals", "eight"],
)
def test_lz4_blocks_are_unpacked(block, plain):
    assert kernelimage.lz4_block(block) == plain


def boot_image(payload: bytes) -> bytes:
    """A bzImage as far as its header goes: one sector of setup."""
    head = bytearray(2 * 512)
    head[0x1F1] = 1
    struct.pack_into("<II", head, 0x248, 16, len(payload))
    return bytes(head) + bytes(16) + payload


def test_kernel_image_is_taken_out_of_its_packing():
    elf = b"\x7fELF" + b"kernel" * 20
    block = literal(elf)
    payload = b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block
    assert kernelimage.uncompressed(boot_image(payload + struct.pack("<I", len(elf)))) == elf


@pytest.mark.parametrize("payload", [b"\x28\xb5\x2f\xfd1234", b"\x02\x21\x4c\x18" + bytes(4)])
def test_what_is_no_packed_kernel_is_refused(payload):
    with pytest.raises(BackendError, match=r"neither|no ELF"):
        kernelimage.uncompressed(boot_image(payload))


def test_newest_kernel_for_machines_is_found(tmp_path):
    for release in ("6.1.0-9-cloud-amd64", "6.1.0-56-cloud-amd64", "6.9.0-1-amd64"):
        (tmp_path / "boot").mkdir(exist_ok=True)
        (tmp_path / "boot" / f"vmlinuz-{release}").touch()
        modules = tmp_path / "lib/modules" / release
        modules.mkdir(parents=True)
        (modules / "modules.dep").touch()
    found = kernelimage.find(tmp_path)
    assert found is not None
    assert found.release == "6.1.0-56-cloud-amd64"
    assert kernelimage.find(tmp_path / "nowhere") is None


def test_loader_needs_nothing_of_what_is_cut_off(tmp_path):
    import subprocess

    program = tmp_path / "python"
    whole = guestpython.interpreter().read_bytes()
    cut = guestpython.loadable(whole)
    program.write_bytes(cut)
    program.chmod(0o755)
    assert len(cut) <= len(whole)
    done = subprocess.run(
        [program, "-I", "-S", "-c", "print(6 * 7)"],
        env={"LD_LIBRARY_PATH": str(guestpython.interpreter().parents[1] / "lib")},
        capture_output=True,
        text=True,
        check=False,
    )
    # It does not find its own library here, but it was loaded and spoke.
    assert "42" in done.stdout or "Python" in done.stderr


def test_guest_python_is_small_and_equal_each_time(tmp_path):
    first = guestpython.entries(_new(tmp_path / "1"))
    second = guestpython.entries(_new(tmp_path / "2"))
    assert cpio.archive(first) == cpio.archive(second)
    names = {entry.name for entry in first}
    home = f"usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
    assert f"{home}/polypod/supervisor/supervisor.pyc" in names
    assert f"{home}/polypod/plan/operations.pyc" in names
    assert f"{home}/polypod/backend/cgroups.pyc" in names
    for unneeded in ("asyncio/__init__", "logging/__init__", "json/tool", "pluggy/__init__"):
        assert f"{home}/{unneeded}.pyc" not in names
    assert not any(
        _HERE in entry.content or str(tmp_path).encode() in entry.content
        for entry in first
        if entry.name.endswith(".pyc")
    )


def _new(path):
    path.mkdir()
    return path
