"""Who a process is and what it may do: capabilities (E7), groups (E16), users (E17), limits."""

from __future__ import annotations

import logging
import os
import resource
import shutil
from dataclasses import replace

import pytest
from support.containment_parts import python, python_mounts, security

from polypod.plugin.images import ImageConfig
from polypod.plugin.oci import CapabilitySets, Rlimit
from polypod.plugin.requests import Capabilities, Mount, SupplementalGroupsPolicy
from polypod.spec.capabilities import ALL_CAPABILITIES, DEFAULT_CAPABILITIES

pytestmark = [pytest.mark.needs_root, pytest.mark.needs_overlay, pytest.mark.needs_busybox]

_STATUS = "grep -E '^(Cap|Uid|Gid|Groups|NoNewPrivs|Seccomp:)' /proc/self/status"
PASSWD = b"root:x:0:0::/root:/bin/sh\nann:x:1001:1002::/home/ann:/bin/sh\n0:x:77:77::/:/bin/sh\nzero:x:0:0::/:/bin/sh\n"
GROUP = b"root:x:0:\nann:x:1002:\nstaff:x:50:ann,bob\nwheel:x:60:ann\nother:x:70:bob\n"
USERS = {"/etc/passwd": PASSWD, "/etc/group": GROUP}


def facts(result) -> dict[str, str]:
    assert result.code == 0, result
    return dict(line.split(":\t") for line in result.lines)


def capabilities(result) -> dict[str, set[str]]:
    """Set → names."""
    return {
        name[3:]: {cap for bit, cap in enumerate(ALL_CAPABILITIES) if int(mask, 16) >> bit & 1}
        for name, mask in facts(result).items()
        if name.startswith("Cap")
    }


async def both(pod, command, **options):
    """Yield what the first process says, and what an exec in it says."""
    first = await pod.run(command, **options)
    box = await pod.start("echo ready; exec sleep 100", **options)
    await box.says("ready")
    return first, await box.exec(command)


@pytest.fixture
def grantable(bench) -> set[str]:
    return set(bench.facts.grantable)


async def test_e7_root_has_the_default_set(pod):
    for result in await both(pod, _STATUS):
        found = capabilities(result)
        assert found["Bnd"] == found["Prm"] == found["Eff"] == DEFAULT_CAPABILITIES
        assert found["Inh"] == found["Amb"] == set()


async def test_e7_another_user_has_none_but_the_bounding_set(pod):
    for result in await both(pod, _STATUS, security=security(run_as_user=1000)):
        found = capabilities(result)
        assert found["Bnd"] == DEFAULT_CAPABILITIES
        assert found["Prm"] == found["Eff"] == found["Inh"] == found["Amb"] == set()
        assert facts(result)["Uid"].split() == ["1000"] * 4


@pytest.mark.parametrize("user", [0, 1000])
async def test_e7_added_and_dropped(pod, user):
    asked = Capabilities(add=("NET_ADMIN", "cap_sys_time"), drop=("CHOWN", "NET_RAW"))
    wanted = DEFAULT_CAPABILITIES - {"CAP_CHOWN", "CAP_NET_RAW"} | {"CAP_NET_ADMIN", "CAP_SYS_TIME"}
    options = {"security": security(run_as_user=user, capabilities=asked)}
    for result in await both(pod, _STATUS, **options):
        found = capabilities(result)
        assert found["Bnd"] == wanted
        assert found["Eff"] == (wanted if user == 0 else set())
        assert found["Inh"] == found["Amb"] == set()


async def test_e7_dropped_all(pod):
    options = {"security": security(capabilities=Capabilities(drop=("ALL",)))}
    for result in await both(pod, _STATUS, **options):
        assert set(map(frozenset, capabilities(result).values())) == {frozenset()}


async def test_e7_ambient_where_asked(pod):
    asked = Capabilities(drop=("ALL",), add_ambient=("NET_BIND_SERVICE",))
    options = {"security": security(run_as_user=1000, capabilities=asked)}
    for result in await both(pod, _STATUS, **options):
        for name, found in capabilities(result).items():
            assert found == {"CAP_NET_BIND_SERVICE"}, name


async def test_e7_privileged_has_all_that_can_be_granted(pod, grantable, caplog):
    with caplog.at_level(logging.WARNING):
        results = await both(pod, _STATUS, security=security(privileged=True))
    for result in results:
        found = capabilities(result)
        assert found["Bnd"] == found["Prm"] == found["Eff"] == grantable
        assert found["Inh"] == found["Amb"] == set()
    for name in set(ALL_CAPABILITIES) - grantable:
        assert name in caplog.text


async def test_e7_what_the_daemon_has_is_not_handed_on(pod):
    """An OCI config without capabilities means none."""

    def bare(config):
        return replace(config, process=replace(config.process, capabilities=None))

    for result in await both(pod, _STATUS, adjust=bare):
        assert set(map(frozenset, capabilities(result).values())) == {frozenset()}


async def test_e7_inheritable_cannot_be_used_by_file_capabilities(pod):
    """CVE-2022-24769: with an empty inheritable set nothing is gained by a file's inheritable set."""
    code = """
import os, shutil, struct, subprocess
shutil.copy("/bin/busybox", "/tmp/busybox")
# VFS_CAP_REVISION_2 with the effective bit: no permitted, inheritable NET_RAW.
os.setxattr("/tmp/busybox", "security.capability", struct.pack("<5I", 0x02000001, 0, 1 << 13, 0, 0))
subprocess.run(["/tmp/busybox", "grep", "CapPrm", "/proc/self/status"], user=1000)
"""
    result = await pod.run(python(code), mounts=python_mounts())
    assert result.out.split() == ["CapPrm:", "0" * 16], result


async def test_unknown_and_ungrantable_capabilities_are_logged(pod, grantable, caplog):
    """runtime-spec 1.1: a capability that cannot be granted is a warning, not an error."""
    asked = Capabilities(add=("SYS_RESOURCE", "NO_SUCH_THING"))
    with caplog.at_level(logging.WARNING):
        result = await pod.run(_STATUS, security=security(capabilities=asked))
    assert "CAP_NO_SUCH_THING" in caplog.text
    assert ("CAP_SYS_RESOURCE" in capabilities(result)["Bnd"]) == ("CAP_SYS_RESOURCE" in grantable)


async def test_capability_sets_of_a_config_that_nobody_can_have(pod):
    """More effective than permitted, ambient that is not inheritable: the kernel's rules hold."""
    sets = CapabilitySets(
        bounding=("CAP_CHOWN",),
        permitted=("CAP_CHOWN",),
        effective=("CAP_CHOWN", "CAP_SYS_ADMIN"),
        ambient=("CAP_CHOWN",),
    )

    def odd(config):
        return replace(config, process=replace(config.process, capabilities=sets))

    found = capabilities(await pod.run(_STATUS, adjust=odd))
    assert found["Eff"] == found["Prm"] == found["Bnd"] == {"CAP_CHOWN"}
    assert found["Inh"] == found["Amb"] == set()


# Groups


@pytest.mark.parametrize(
    ("options", "image", "groups"),
    [
        ({}, "ann", {1002, 50, 60}),
        ({}, "1001", {1002, 50, 60}),
        ({"supplemental_groups": (5, 50)}, "ann", {1002, 50, 60, 5}),
        ({"supplemental_groups_policy": SupplementalGroupsPolicy.STRICT}, "ann", {1002}),
        (
            {"supplemental_groups": (5,), "supplemental_groups_policy": SupplementalGroupsPolicy.STRICT},
            "ann",
            {1002, 5},
        ),
        ({"run_as_user": 1001, "run_as_group": 9}, "", {9, 50, 60}),
        ({"run_as_user": 4242}, "ann", {0}),
        ({}, "4242:4343", {4343}),
        ({}, "", {0}),
    ],
    ids=str,
)  # fmt: skip
async def test_e16_groups(pod, options, image, groups):
    asked = security(**options)
    for result in await both(
        pod, _STATUS, users=USERS, image=ImageConfig(user=image), security=asked
    ):
        found = facts(result)
        gid = int(found["Gid"].split()[0])
        assert set(map(int, found["Groups"].split())) == groups
        # The primary group is always among them, or a program could shed what a file denies to it.
        assert gid in groups


async def test_e16_denied_group_stays_denied(pod, tmp_path):
    """CVE-2023-25173: a file that denies its group cannot be read by dropping that group."""
    (tmp_path / "volume").mkdir()
    secret = tmp_path / "volume/secret"
    secret.write_text("secret\n")
    os.chown(secret, 0, 1002)
    secret.chmod(0o604)
    code = "import os\ntry:\n os.setgid(4)\nexcept OSError: pass\nprint(os.access('/v/secret', os.R_OK))"
    result = await pod.run(
        python(code),
        users=USERS,
        image=ImageConfig(user="ann"),
        mounts=(*python_mounts(), Mount("/v", str(tmp_path / "volume"))),
    )
    assert result.out == "False\n", result


# Users


_NO_USERS = [
    ("4294967296", "must be a number from 0 to 2147483647"),
    ("4294967295", "must be a number from 0 to 2147483647"),
    ("2147483648", "must be a number from 0 to 2147483647"),
    ("99999999999999999999999", "must be a number from 0 to 2147483647"),
    ("0x0", "give a decimal number"),
    ("+0", "give a decimal number"),
    (" 0", "give a decimal number"),
    ("-1", "give a decimal number"),
    ("0o0", "give a decimal number"),
    ("1e3", "give a decimal number"),
    ("\u0660", "give a decimal number"),
    ("ann:99999999999", "must be a number from 0 to 2147483647"),
    ("nobody-there", "no such user"),
    ("ann:nowhere", "no group"),
    ("ann\nroot", "give a decimal number"),
]


async def test_e17_user_that_is_none(pod):
    for user, error in _NO_USERS:
        result = await pod.run("id -u", users=USERS, image=ImageConfig(user=user))
        assert result.kind == "InvalidArgument", user
        assert error in result.error, user


async def test_e17_number_of_a_request_is_checked_too(pod):
    for number in (2147483648, -1, 4294967296):
        result = await pod.run("id -u", security=security(run_as_user=number))
        assert result.kind == "InvalidArgument", number


@pytest.mark.parametrize(
    ("user", "uid"), [("2147483647", 2147483647), ("0", 0), ("007", 7), ("zero", 0), ("ann", 1001)]
)
async def test_e17_digits_are_never_a_name(pod, user, uid):
    """The image's database has an account named "0"; it does not get its number."""
    for result in await both(pod, "id -u", users=USERS, image=ImageConfig(user=user)):
        assert result.out == f"{uid}\n", result


async def test_home_of_the_user(pod):
    options = {"users": USERS, "image": ImageConfig(user="ann")}
    assert (await pod.run("echo $HOME", **options)).out == "/home/ann\n"


async def test_e18_home_cannot_add_a_line_anywhere(pod):
    evil = b"ann:x:1001:1002::/home\x0bann:/bin/sh\nroot:x:0:0::/\r\nroot2::0:0::/:/bin/sh\n"
    users = {"/etc/passwd": evil, "/etc/group": GROUP}
    result = await pod.run(
        "echo $HOME; grep -c root2 /etc/passwd", users=users, image=ImageConfig(user="ann")
    )
    assert result.lines == ["/", "0"]


# Limits of the process


async def test_rlimits(pod):
    limits = (Rlimit("RLIMIT_NOFILE", 100, 200), Rlimit("RLIMIT_CORE", 0, 0))

    def limited(config):
        return replace(config, process=replace(config.process, rlimits=limits))

    command = "ulimit -Sn; ulimit -Hn; ulimit -c"
    for result in await both(pod, command, adjust=limited):
        assert result.lines == ["100", "200", "0"]


async def test_rlimit_above_what_we_may_grant_becomes_ours(pod):
    def greedy(config):
        limits = (Rlimit("RLIMIT_NOFILE", 2**40, 2**40),)
        return replace(config, process=replace(config.process, rlimits=limits))

    result = await pod.run("ulimit -Hn", adjust=greedy)
    assert result.code == 0
    assert int(result.out) <= max(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 2**40)


async def test_rlimit_that_is_none(pod):
    def wrong(config):
        limits = (Rlimit("RLIMIT_NO_SUCH", 1, 1),)
        return replace(config, process=replace(config.process, rlimits=limits))

    result = await pod.run("true", adjust=wrong)
    assert result.kind == "InvalidArgument"
    assert "RLIMIT_NO_SUCH" in result.error


async def test_signals_are_a_fresh_process(pod):
    for result in await both(pod, ("/bin/grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status")):
        assert list(facts(result).values()) == ["0" * 16] * 3


async def test_umask(pod):
    for result in await both(pod, "umask"):
        assert result.out == "0022\n"


async def test_no_new_privileges(pod, tmp_path):
    for wanted in (False, True):
        for result in await both(pod, _STATUS, security=security(no_new_privs=wanted)):
            assert facts(result)["NoNewPrivs"] == str(int(wanted))


@pytest.mark.parametrize("held_back", [False, True])
async def test_no_new_privileges_holds_setuid_back(pod, bench, tmp_path, held_back):
    layer = tmp_path / "layer/opt"
    layer.mkdir(parents=True)
    shutil.copy(bench.root / "bin/busybox", layer / "busybox")
    (layer / "busybox").chmod(0o4755)
    (tmp_path / "layer/etc").mkdir()
    (tmp_path / "layer/etc/passwd").write_text("root::0:0::/:/bin/sh\nann:x:1000:1000::/:/bin/sh\n")
    result = await pod.run(
        ("/opt/busybox", "su", "-c", "id -u"),
        layers=[tmp_path / "layer"],
        security=security(run_as_user=1000, no_new_privs=held_back),
    )
    assert (result.out == "0\n") is not held_back, result
