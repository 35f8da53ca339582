"""The doctor's probes on made-up hosts, and on this one."""

import json
import os
import resource

import pytest

from polypod.cli import main
from polypod.doctor import calls, cgroups, child, kvm, missing, network, privilege, report, security
from polypod.doctor.report import rows
from polypod.doctor.row import Row, State

V1 = "30 20 0:1 / /cg/memory rw - cgroup cgroup rw,memory\n"
V2 = "31 20 0:2 / {place} rw - cgroup2 cgroup2 rw\n"


def status(tmp_path, effective, bounding=(1 << 41) - 1):
    file = tmp_path / "status"
    file.write_text(f"Name:\tx\nCapEff:\t{effective:016x}\nCapBnd:\t{bounding:016x}\n")
    return file


def test_capabilities_all(tmp_path):
    assert privilege.capabilities(status(tmp_path, (1 << 41) - 1)).state is State.OK


def test_capabilities_without_sys_resource_are_limited(tmp_path):
    row = privilege.capabilities(status(tmp_path, ((1 << 41) - 1) & ~(1 << 24)))
    assert (row.state, "SYS_RESOURCE" in row.text) == (State.LIMITED, True)


def test_capabilities_name_what_is_missing_and_who_took_it(tmp_path):
    less = ((1 << 41) - 1) & ~(1 << 21)
    row = privilege.capabilities(status(tmp_path, less))
    assert (row.state, row.text) == (State.MISSING, "without CAP_SYS_ADMIN: start us with them")
    assert "bounding" in privilege.capabilities(status(tmp_path, less, less)).text


@pytest.mark.parametrize(
    ("hard", "state"),
    [(1024, State.LIMITED), (20_000, State.OK), (resource.RLIM_INFINITY, State.OK)],
)
def test_descriptors(hard, state):
    assert privilege.descriptors((1024, hard)).state is state


@pytest.mark.parametrize(
    ("text", "state", "words"),
    [
        (V1, State.OK, "v1"),
        (V1 + V2.format(place="/cg/unified"), State.OK, "hybrid"),
        (V2.format(place="/cg"), State.OK, "v2 at /cg"),
        ("40 20 0:3 / /x rw - tmpfs tmpfs rw\n", State.MISSING, "mount -t cgroup2"),
    ],
    ids=["v1", "hybrid", "v2", "none"],
)
def test_cgroup_version(tmp_path, text, state, words):
    file = tmp_path / "mountinfo"
    file.write_text(text)
    row = cgroups.version(file)
    assert (row.state, words in row.text) == (state, True)


@pytest.mark.parametrize(
    ("there", "state"),
    [
        ("cpu memory pids io cpuset hugetlb", State.OK),
        ("cpu memory pids io", State.LIMITED),
        ("cpu io", State.MISSING),
    ],
)
def test_cgroup_controllers_of_v2(tmp_path, there, state):
    (tmp_path / "cgroup.controllers").write_text(there)
    file = tmp_path / "mountinfo"
    file.write_text(V2.format(place=tmp_path))
    assert cgroups.controllers(file).state is state


def test_kernel_that_is_too_old(monkeypatch):
    monkeypatch.setattr(calls.platform, "release", lambda: "5.4.0-generic")
    assert calls.kernel().state is State.MISSING
    monkeypatch.setattr(calls.platform, "release", lambda: "6.1.0-13-amd64")
    assert calls.kernel().state is State.LIMITED
    monkeypatch.setattr(calls.platform, "release", lambda: "6.18.1")
    assert calls.kernel().state is State.OK


def test_has_call_knows_a_call_that_no_kernel_has():
    assert calls.has_call(434)
    assert not calls.has_call(1023)


def test_overlay_says_how_to_load_it(tmp_path):
    file = tmp_path / "filesystems"
    file.write_text("nodev\ttmpfs\n\text4\n")
    assert calls.overlay(file) == Row("overlayfs", State.MISSING, "modprobe overlay")
    file.write_text("nodev\toverlay\n")
    assert calls.overlay(file).state is State.OK


def test_user_namespaces_that_are_forbidden(tmp_path):
    file = tmp_path / "max"
    file.write_text("0\n")
    assert "sysctl -w" in calls.user_namespaces(file).text


def test_seccomp_and_modules(tmp_path):
    file = tmp_path / "f"
    assert security.seccomp(file).state is State.MISSING
    file.write_text("errno allow\n")
    assert "kill_process" in security.seccomp(file).text
    file.write_text("lockdown,apparmor\n")
    assert security.modules(file) == Row("security modules", State.OK, "apparmor")


def test_forwarding_names_each_family(tmp_path):
    file = tmp_path / "f"
    file.write_text("0\n")
    row = network.forwarding({"IPv4": file, "IPv6": tmp_path / "none"})
    assert row.text == "IPv4 off, the network turns it on; IPv6 not in the kernel"


def test_kvm_without_device_and_on_pvm(tmp_path):
    assert kvm.kvm(tmp_path / "none").state is State.ABSENT
    (tmp_path / "kvm").touch()
    (tmp_path / "kvm_pvm").mkdir()
    assert "PVM" in kvm.kvm(tmp_path / "kvm", tmp_path).text


def test_kvm_that_does_not_answer_is_limited(tmp_path):
    (tmp_path / "kvm").write_bytes(b"")
    row = kvm.kvm(tmp_path / "kvm", tmp_path)
    assert (row.state, "emulated" in row.text) == (State.LIMITED, True)


def test_link_request_has_the_lengths_that_netlink_wants():
    message = child.new_link("veth")
    assert int.from_bytes(message[:4], "little") == len(message)
    assert len(message) % 4 == 0
    assert b"veth" in message


@pytest.mark.needs_root
@pytest.mark.parametrize("probe", ["links", "idmap"])
def test_what_is_tried_in_a_child_leaves_nothing(probe):
    before = set(os.listdir("/sys/class/net"))
    first = child.outcome(probe)
    assert child.outcome(probe) == first
    assert set(os.listdir("/sys/class/net")) == before


def test_a_probe_that_fails_is_a_row_and_hides_no_other():
    def odd_one():
        raise ValueError("odd")

    found = rows((odd_one, privilege.root))
    assert found[0].state is State.LIMITED
    assert "odd" in found[0].text
    assert found[1].what == "root"


def test_report_and_missing_agree():
    found = report()
    lacking = [f"{what}: {text}" for what, state, text in found if state == "missing"]
    assert missing() == lacking
    assert len({what for what, _state, _text in found}) == len(found)


def test_the_command_answers_json_and_tells_by_its_code(capsys):
    code = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == int(any(row[1] == "missing" for row in found))
