"""The peer is set up as its documentation says, in directories of its own; what is missing is named."""

import json
import tomllib

from bench.peers import containerd_side, kernel, needs


def test_the_configuration_names_only_directories_of_this_run(tmp_path):
    text = containerd_side.config_text(tmp_path / 'a "b"', tmp_path / "state")
    found = tomllib.loads(text)
    cri = found["plugins"]["io.containerd.grpc.v1.cri"]
    assert found["root"] == str(tmp_path / 'a "b"' / "root")
    assert found["state"] == str(tmp_path / "state")
    assert cri["restrict_oom_score_adj"] is True
    assert cri["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"] is False
    assert cri["cni"]["bin_dir"] == "/usr/lib/cni"
    places = [found["grpc"]["address"], cri["cni"]["conf_dir"]]
    places.append(found["plugins"]["io.containerd.internal.v1.opt"]["path"])
    assert all(place.startswith(str(tmp_path)) for place in places)


def test_each_server_has_a_bridge_and_a_subnet_of_its_own(tmp_path):
    def network(number):
        bridge, ports = json.loads(containerd_side.cni_text(tmp_path, number))["plugins"]
        assert (bridge["ipMasq"], ports["type"]) == (True, "portmap")
        return bridge["bridge"], bridge["ipam"]["ranges"][0][0]["subnet"]

    assert network(0) == ("bench-cni0", "10.237.0.0/20")
    assert network(3) == ("bench-cni3", "10.237.48.0/20")


def test_missing_programs_and_plugins_are_named_by_their_packages(tmp_path):
    programs = {"sh": "dash", "no-such-program": "some-package"}
    assert needs.packages_of(programs, tmp_path) == ["containernetworking-plugins", "some-package"]
    for name in needs.NETWORK:
        (tmp_path / name).touch()
    assert needs.packages_of(programs, tmp_path) == ["some-package"]


def test_cgroups_of_a_name_nobody_has_are_none():
    assert kernel.cgroups("/polypod-bench-nobody-has-this") == []
    assert kernel.members([]) == []
