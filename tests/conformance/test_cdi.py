"""CDI devices: found in the files of vendors, given to containers, refused with the reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conformance.pods import Pods, refused

from polypod.client import pb
from polypod.plugin.runtime import Feature

KIND = "vendor.com/class"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The directories of the files: the second one wins."""
    return tmp_path_factory.mktemp("static"), tmp_path_factory.mktemp("dynamic")


@pytest.fixture(scope="module")
def handler(handler, places):
    """The handler of the suite, whose server looks into our directories."""
    named = json.dumps([str(place) for place in places])
    return replace(handler, settings=(*handler.settings, f"server.cdi_dirs={named}"))


@pytest.fixture(autouse=True)
def able(handler, places) -> None:
    handler.needs_kernel()
    handler.needs(Feature.DEVICES)
    for place in places:
        for path in place.iterdir():
            path.unlink()


def write(place: Path, name: str = "one", **edits) -> None:
    """Write a file with one device."""
    device = {"name": name, "containerEdits": edits}
    found = {"cdiVersion": "0.6.0", "kind": KIND, "devices": [device]}
    (place / f"{name}.json").write_text(json.dumps(found))


def devices(*names: str) -> list[pb.CDIDevice]:
    return [pb.CDIDevice(name=f"{KIND}={name}") for name in names]


async def test_a_device_brings_nodes_files_variables_and_groups(pods: Pods, places, tmp_path: Path):
    (tmp_path / "library").write_text("of the vendor\n")
    write(
        places[0],
        env=["MODEL=x1"],
        deviceNodes=[{"path": "/dev/vendor/zero", "hostPath": "/dev/zero", "permissions": "r"}],
        mounts=[{"hostPath": str(tmp_path / "library"), "containerPath": "/lib/vendor"}],
        additionalGids=[4242],
    )
    pod = await pods.run()
    script = "head -c 4 /dev/vendor/zero | wc -c; cat /lib/vendor; echo $MODEL; id -G; echo x > /lib/vendor"
    ended = await pod.run(script, CDI_devices=devices("one"))
    count, *words, model, groups = ended.out.splitlines()
    assert (count, words, model) == ("4", ["of the vendor"], "x1")
    assert "4242" in groups.split()
    assert "Read-only" in ended.err


async def test_a_file_in_yaml_and_the_stronger_directory(pods: Pods, places):
    write(places[0], env=["FROM=static"])
    text = (
        f"cdiVersion: 0.7.0\nkind: {KIND}\ndevices:\n- name: one\n"
        "  containerEdits:\n    env: [FROM=dynamic]\ncontainerEdits:\n  env: [ALL=1]\n"
    )
    (places[1] / "file.yaml").write_text(text)
    pod = await pods.run()
    ended = await pod.run("echo $FROM $ALL", CDI_devices=devices("one"))
    assert ended.out == "dynamic 1\n"


async def test_in_a_user_namespace(pods: Pods, places, handler):
    handler.needs(Feature.USER_NAMESPACES)
    write(places[0], deviceNodes=[{"path": "/dev/v", "type": "c", "major": 1, "minor": 5}])
    ranges = [pb.IDMapping(host_id=200_000, container_id=0, length=65_536)]
    users = pb.UserNamespace(mode=pb.POD, uids=ranges, gids=ranges)
    modes = pb.NamespaceOption(pid=pb.CONTAINER, userns_options=users)
    pod = await pods.run(security=pb.LinuxSandboxSecurityContext(namespace_options=modes))
    ended = await pod.run("head -c 3 /dev/v | wc -c", CDI_devices=devices("one"))
    assert ended.out == "3\n"
    write(places[0], additionalGids=[100_000])
    with refused("INVALID_ARGUMENT", "group 100000 is not mapped"):
        await pod.create(name="other", CDI_devices=devices("one"))


async def test_an_unknown_device_is_told_with_the_files_that_are_broken(pods: Pods, places):
    write(places[0], name="other")
    (places[1] / "broken.json").write_text("{")
    pod = await pods.run()
    with refused("NOT_FOUND", f"{KIND}=one", str(places[0]), "broken.json", "no JSON"):
        await pod.create(CDI_devices=devices("one"))


@pytest.mark.parametrize("name", ["one", "vendor.com/class", "vendor.com/class=../one"])
async def test_a_name_that_is_not_fully_qualified(pods: Pods, name: str):
    pod = await pods.run()
    with refused("INVALID_ARGUMENT", "vendor/class=name"):
        await pod.create(CDI_devices=[pb.CDIDevice(name=name)])


async def test_two_files_of_one_directory_contradict_each_other(pods: Pods, places):
    write(places[0])
    (places[0] / "copy.json").write_text((places[0] / "one.json").read_text())
    pod = await pods.run()
    with refused("INVALID_ARGUMENT", "copy.json", "one.json"):
        await pod.create(CDI_devices=devices("one"))


async def test_e23_hooks_are_refused_with_the_reason(pods: Pods, places):
    write(places[0], hooks=[{"hookName": "createContainer", "path": "/bin/true"}])
    pod = await pods.run()
    with refused("FAILED_PRECONDITION", "hooks"):
        await pod.create(CDI_devices=devices("one"))


async def test_a_node_that_the_host_lacks(pods: Pods, places):
    write(places[0], deviceNodes=[{"path": "/dev/no-such-thing"}])
    pod = await pods.run()
    with refused("INVALID_ARGUMENT", "no-such-thing"):
        await pod.create(CDI_devices=devices("one"))
