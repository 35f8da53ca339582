"""What a plugin makes of a container is what its program finds: environment, files, limits, cgroup."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conformance import images
from conformance.pods import log_text

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.needs_overlay,
    pytest.mark.needs_busybox,
]


CDI = {
    "cdiVersion": "0.6.0",
    "kind": "example.org/null",
    "devices": [
        {
            "name": "one",
            "containerEdits": {
                "env": ["CDI=by a file"],
                "deviceNodes": [{"path": "/dev/cdi-null", "hostPath": "/dev/null"}],
            },
        }
    ],
}


@pytest.fixture
def layout(tmp_path: Path) -> str:
    return f"oci:{images.write_layout(tmp_path / 'layout', [images.busybox_layer()])}"


async def test_every_adjustment_is_found_inside(real, pods_of, layout, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "file").write_text("from the host\n")
    (real.place / "cdi" / "example.json").write_text(json.dumps(CDI))
    real.install(
        adjust={
            "CDI_devices": [{"name": "example.org/null=one"}],
            "annotations": {"org.example.nri": "seen"},
            "env": [{"key": "ADDED", "value": "by a plugin"}, {"key": "-DROPPED"}],
            "mounts": [
                {"destination": "/shared", "type": "bind", "source": str(shared), "options": ["ro"]}
            ],
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 123, "hard": 456}],
            "linux": {
                "oom_score_adj": {"value": 321},
                "devices": [{"path": "/dev/added", "type": "c", "major": 1, "minor": 3}],
                "resources": {
                    "memory": {"limit": {"value": 64 << 20}},
                    "cpu": {"shares": {"value": 777}},
                    "pids": {"limit": 55},
                },
            },
        }
    )
    real.server.launch()
    await real.server.ready()
    cri, pods = await pods_of(real, layout)
    pod = await pods.run()
    script = """
        echo "$ADDED|$DROPPED"
        cat /shared/file
        touch /shared/other 2>/dev/null || echo read-only
        ulimit -Sn; ulimit -Hn
        cat /proc/self/oom_score_adj
        echo "$CDI"; echo hello > /dev/cdi-null && echo written to it
        echo hello > /dev/added && echo written
        sleep 1000
    """
    container = await pod.start(script)
    await pod.said(container, "written\n")
    status = (await cri.container_status(container)).status
    said = log_text(status.log_path)
    assert said.splitlines() == [
        "by a plugin|",
        "from the host",
        "read-only",
        "123",
        "456",
        "321",
        "by a file",
        "written to it",
        "written",
    ]
    assert cgroup_value(container, "memory", "memory.limit_in_bytes", "memory.max") == 64 << 20
    assert cgroup_value(container, "pids", "pids.max", "pids.max") == 55
    assert status.resources.linux.memory_limit_in_bytes == 64 << 20
    assert status.resources.linux.cpu_shares == 777
    await pods.remove_all()


def cgroup_value(container: str, hierarchy: str, old: str, new: str) -> int:
    """What one file of a container's cgroup says, in either version of cgroups."""
    top = Path("/sys/fs/cgroup")
    legacy = (top / hierarchy).is_dir()
    place = top / hierarchy if legacy else top
    (directory,) = (path for path in place.glob(f"polypod-cri-*/*/{container}") if path.is_dir())
    return int((directory / (old if legacy else new)).read_text())
