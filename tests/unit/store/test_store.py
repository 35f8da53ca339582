from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path

import pytest

from polypod.plugin.errors import FailedPrecondition
from polypod.plugin.oci import OciConfig, Process, Seccomp, SeccompArg, SeccompRule
from polypod.plugin.requests import (
    ContainerConfig,
    ContainerMetadata,
    HugepageLimit,
    IdMapping,
    ImageSpec,
    Mount,
    MountPropagation,
    Resources,
)
from polypod.store import codec
from polypod.store.database import RECORD, Database, Row, boot_id
from polypod.store.records import Records


class Colour(StrEnum):
    RED = "red"


class Number(IntEnum):
    TWO = 2


@dataclass(frozen=True, slots=True)
class Leaf:
    data: bytes
    number: Number = Number.TWO
    maybe: int | None = None


@dataclass(frozen=True, slots=True)
class Tree:
    name: str
    leaves: tuple[Leaf, ...] = ()
    pairs: tuple[tuple[str, bytes], ...] = ()
    by_name: Mapping[str, Leaf] = field(default_factory=dict)
    free: Mapping[str, object] = field(default_factory=dict)
    colour: Colour = Colour.RED
    path: Path = Path("/")
    share: float = 1.0


TREE = Tree(
    'é\n\x00"',
    (Leaf(b"\x00\xff", maybe=0), Leaf(b"")),
    (("k", b"\xfe"),),
    {"a": Leaf(b"x", Number.TWO, 7)},
    {"list": [1, {"deep": None}], "f": 1.5},
    Colour.RED,
    Path("/var/lib"),
    0.25,
)


def test_codec_brings_everything_back():
    assert codec.loads(Tree, codec.dumps(TREE)) == TREE
    assert codec.dumps(Tree("x")) == '{"name":"x"}'


def test_codec_brings_cri_requests_and_oci_configs_back():
    config = ContainerConfig(
        ContainerMetadata("a", 1),
        ImageSpec("i"),
        envs=(("K", b"\xff\x00"),),
        mounts=(
            Mount(
                "/x",
                "/y",
                propagation=MountPropagation.BIDIRECTIONAL,
                uid_mappings=(IdMapping(1, 2, 3),),
            ),
        ),
        resources=Resources(hugepage_limits=(HugepageLimit("2MB", 4),), unified={"a": "b"}),
    )
    assert codec.loads(ContainerConfig, codec.dumps(config)) == config
    rule = SeccompRule(("read",), "SCMP_ACT_ALLOW", None, (SeccompArg(0, 2**63, "SCMP_CMP_EQ"),))
    oci = OciConfig(Process(env=("A=\udcff",), console_size=(1, 2)))
    oci = OciConfig(oci.process, linux=type(oci.linux)(seccomp=Seccomp("x", syscalls=(rule,))))
    assert codec.loads(OciConfig, codec.dumps(oci)) == oci


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"name": 1}',
        '{"name": "x", "newer": 1}',
        "{}",
        '{"name": "x", "colour": "blue"}',
        '{"name": "x", "leaves": {}}',
        '{"name": "x", "leaves": [{"data": "%%%"}]}',
        '{"name": "x", "pairs": [["a"]]}',
    ],
)
def test_codec_refuses_what_has_another_shape(text):
    with pytest.raises(codec.CodecError):
        codec.loads(Tree, text)


def test_records_survive_and_bad_ones_are_put_aside(tmp_path):
    database = Database(tmp_path / "db", "boot")
    records = Records(database, "tree", Tree)
    records.put("good", TREE)
    records.put("bad", Tree("y"))
    database.put("tree", "bad", '{"name": "y"')
    database._connection.execute(
        "INSERT INTO record VALUES ('tree', 'newer', ?, '{}')", (RECORD + 1,)
    )
    database.close()
    database = Database(tmp_path / "db", "boot")
    records = Records(database, "tree", Tree)
    assert records.load() == {"good": TREE}
    assert set(database.quarantined()) == {"tree/bad", "tree/newer"}
    assert records.get("good") == TREE
    records.delete("good")
    records.delete("good")
    assert records.get("good") is None
    assert not database.rebooted
    database.close()


def test_database_notices_another_boot_once(tmp_path):
    for boot, rebooted in (("a", False), ("a", False), ("b", True), ("b", False)):
        database = Database(tmp_path / "db", boot)
        assert database.rebooted is rebooted
        database.close()
    assert len(boot_id()) == 36


@pytest.mark.parametrize("damage", [b"garbage" * 1000, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_damaged_database_is_moved_aside(tmp_path, damage):
    path = tmp_path / "db"
    path.write_bytes(damage)
    database = Database(path, "boot")
    database.put("tree", "x", "{}")
    assert database.rows("tree") == [Row("tree", "x", RECORD, "{}")]
    database.close()
    (aside,) = tmp_path.glob("db.damaged-*")
    assert aside.read_bytes() == damage


def test_database_of_a_newer_server_is_refused_untouched(tmp_path):
    database = Database(tmp_path / "db", "boot")
    database._connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    database.put("tree", "x", "{}")
    database.close()
    with pytest.raises(FailedPrecondition, match="schema 99"):
        Database(tmp_path / "db", "boot")
