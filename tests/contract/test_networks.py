"""Both networks of `polypod_network` keep the contract, each on a host of the test's own."""

from __future__ import annotations

import json

import pytest
from support import networks

from polypod.plugin.network import NetworkContext
from polypod.testing.network_suite import CHECKS, Outcome, run_check
from polypod_network.bridge import open_bridge
from polypod_network.cni.network import open_cni

pytestmark = pytest.mark.needs_root


@pytest.fixture
def host():
    with networks.own_host():
        yield


@pytest.fixture
def bridge(tmp_path, host):
    options = {"subnets": ["10.213.0.0/24", "fd13::/64"]}
    subject = networks.Subject(lambda: open_bridge(NetworkContext(options, tmp_path, tmp_path)))
    yield subject
    subject.close()


@pytest.fixture
def cni(tmp_path, host):
    conf = tmp_path / "net.d"
    conf.mkdir()
    ranges = [[{"subnet": "10.214.0.0/24"}], [{"subnet": "fd14::/112"}]]
    plugins = [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipam": {"type": "host-local", "dataDir": str(tmp_path / "ipam"), "ranges": ranges},
        }
    ]
    (conf / "10-test.conflist").write_text(
        json.dumps({"cniVersion": "1.0.0", "name": "test", "plugins": plugins})
    )
    table = {"conf_dir": str(conf), "bin_dirs": list(networks.CNI_BIN_DIRS)}

    async def opened():
        network = await open_cni(NetworkContext({"cni": table}, tmp_path, tmp_path))
        return networks.with_paths(network, tmp_path)

    subject = networks.Subject(opened)
    yield subject
    subject.close()
    assert not list((tmp_path / "netns").glob("*"))
    leases = [each.name for each in (tmp_path / "ipam").rglob("*") if each.name[0].isdigit()]
    assert leases == []


async def judged(check, subject):
    verdict = await run_check(check, subject)
    if verdict.outcome is Outcome.NOT_APPLICABLE:
        pytest.skip(verdict.detail)
    assert verdict.good, verdict.detail


@pytest.mark.needs_nft
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_bridge(check, bridge):
    await judged(check, bridge)


@pytest.mark.needs_cni
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_cni(check, cni):
    await judged(check, cni)
