"""Options of a handler, the size of machines, and what decides between accelerators."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polypod.plugin import InvalidArgument, PodMetadata, Resources, SandboxConfig
from polypod_vm import guests
from polypod_vm.options import VmOptions, parse

MIB = 1 << 20


def pod(**limits) -> SandboxConfig:
    resources = Resources(**limits) if limits else None
    return SandboxConfig(PodMetadata("p", "u", "n"), resources=resources)


def test_defaults():
    assert parse("vm", {}) == VmOptions()


def test_all_options():
    given = {
        "uri": "qemu:///system",
        "accel": "tcg",
        "memory_mib": 300,
        "overhead_mib": 200,
        "vcpus": 2,
        "guest": "/g",
        "boot_s": 9,
    }
    assert parse("vm", given) == VmOptions("qemu:///system", "tcg", 300, 200, 2, Path("/g"), 9)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"memory": 1}, "memory_mib"),
        ({"zzz": 1}, "known are"),
        ({"memory_mib": 64}, "160"),
        ({"memory_mib": "512"}, "number"),
        ({"vcpus": True}, "number"),
        ({"accel": "hax"}, "auto, kvm, tcg"),
        ({"uri": 5}, "text"),
        ({"guest": "relative"}, "absolute"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_cannot_be_is_refused(given, words):
    with pytest.raises(InvalidArgument, match=words) as caught:
        parse("mine", given)
    assert "handlers.mine.options" in str(caught.value)


@pytest.mark.parametrize(
    ("limit", "wanted"), [(0, 512), (100 * MIB, 292), (100 * MIB + 1, 293), (1, 193)]
)
def test_memory_is_the_pods_limit_and_the_guests_own(limit, wanted):
    assert guests.memory_mib(pod(memory_limit_in_bytes=limit), VmOptions()) == wanted


def test_memory_without_resources_is_the_options():
    assert guests.memory_mib(pod(), VmOptions(memory_mib=700)) == 700


@pytest.mark.parametrize(
    ("quota", "period", "wanted"),
    [(0, 0, 1), (50_000, 100_000, 1), (100_001, 100_000, 2), (150_000, 0, 2)],
)
def test_processors_are_the_quota_rounded_up(quota, period, wanted, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert guests.vcpus(pod(cpu_quota=quota, cpu_period=period), VmOptions()) == wanted


def test_processors_are_never_more_than_the_host_has(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert guests.vcpus(pod(cpu_quota=900_000, cpu_period=100_000), VmOptions()) == 2


class Probe:
    """Counts how often a guest was booted to find out."""

    def __init__(self, answer: bool) -> None:
        self.answer = answer
        self.times = 0

    async def __call__(self) -> bool:
        self.times += 1
        return self.answer


@pytest.fixture
def device(tmp_path, monkeypatch):
    path = tmp_path / "kvm"
    path.touch()
    monkeypatch.setattr(guests, "_KVM", str(path))
    return path


@pytest.mark.parametrize(("works", "wanted"), [(True, "kvm"), (False, "tcg")])
async def test_a_device_node_proves_nothing(tmp_path, device, works, wanted):
    probe = Probe(works)
    assert await guests.Guests(tmp_path, VmOptions()).accel("key", probe) == wanted
    assert probe.times == 1


async def test_a_probe_is_kept_for_this_boot_and_this_guest(tmp_path, device):
    await guests.Guests(tmp_path, VmOptions()).accel("key", Probe(False))
    again = Probe(True)
    assert await guests.Guests(tmp_path, VmOptions()).accel("key", again) == "tcg"
    assert again.times == 0
    other = Probe(True)
    assert await guests.Guests(tmp_path, VmOptions()).accel("another", other) == "kvm"
    assert other.times == 1
    kept = tmp_path / "accelerator.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "boot": "earlier"}))
    later = Probe(False)
    assert await guests.Guests(tmp_path, VmOptions()).accel("another", later) == "tcg"
    assert later.times == 1


async def test_without_a_device_nothing_is_probed(tmp_path, monkeypatch):
    monkeypatch.setattr(guests, "_KVM", str(tmp_path / "none"))
    probe = Probe(True)
    assert await guests.Guests(tmp_path, VmOptions()).accel("key", probe) == "tcg"
    assert probe.times == 0


@pytest.mark.parametrize("accel", ["kvm", "tcg"])
async def test_what_is_configured_is_not_probed(tmp_path, device, accel):
    probe = Probe(False)
    assert await guests.Guests(tmp_path, VmOptions(accel=accel)).accel("key", probe) == accel
    assert probe.times == 0
