"""Plans as data: what goes over the wire comes back, and nothing else does."""

import json

import pytest

from polypod.plan import operations as op
from polypod.plan.operations import OPERATIONS, Execute, Operation, Plan

SAMPLES = {"str": "a", "int": 7, "bool": True, "list": [], "dict": {}}


def sample(kind):
    """One operation of each kind, with a value of the right type in every field."""
    return kind(
        **{slot: SAMPLES[kind.__annotations__[slot].partition("[")[0]] for slot in kind.__slots__}
    )


@pytest.mark.parametrize("kind", OPERATIONS.values(), ids=list(OPERATIONS))
def test_operation_survives_the_wire(kind):
    made = sample(kind)
    name, fields = json.loads(json.dumps(made.to_wire()))
    assert OPERATIONS[name].from_wire(fields) == made
    assert kind.__doc__


@pytest.mark.parametrize("kind", OPERATIONS.values(), ids=list(OPERATIONS))
def test_operation_refuses_fields_that_are_missing_unknown_or_of_another_type(kind):
    _name, fields = sample(kind).to_wire()
    with pytest.raises(ValueError, match="has fields"):
        kind.from_wire({**fields, "other": 1})
    for slot in kind.__slots__:
        without = {name: value for name, value in fields.items() if name != slot}
        with pytest.raises(ValueError, match=kind.name):
            kind.from_wire(without)
        for wrong in (None, 1.5, b"x", ()):
            with pytest.raises(ValueError, match=f"{slot} must be"):
                kind.from_wire({**fields, slot: wrong})


@pytest.mark.parametrize("kind", OPERATIONS.values(), ids=list(OPERATIONS))
def test_operation_says_what_it_does(kind):
    made = sample(kind)
    assert made.describe().startswith(kind.name)
    assert made.summary()


def test_true_is_no_integer():
    with pytest.raises(ValueError, match="umask must be int"):
        op.SetUser.from_wire({"uid": 0, "gid": 0, "groups": [], "umask": True})


def test_summary_tells_no_secret():
    made = Execute(args=["program", "--password=x"], env=["TOKEN=x"], search=True)
    assert "x" not in made.summary().replace("execute", "")


def test_description_is_short_whatever_the_fields_hold():
    made = op.LoadSeccomp(program="A" * 100_000, flags=0)
    assert len(made.describe()) < 200


def test_plan_survives_the_wire_with_any_bytes():
    odd = b"\xff\xfe\x80".decode("utf-8", "surrogateescape")
    plan = Plan(5, [op.StartSession(), Execute(args=[odd], env=[f"A={odd}"], search=False)], "fd:3")
    again = Plan.from_wire(json.loads(json.dumps(plan.to_wire())))
    assert again == plan
    assert again.execute.args == [odd]
    assert "in pid namespace fd:3" in plan.describe()


@pytest.mark.parametrize(
    "operations",
    [[], [op.StartSession()], [Execute(args=[], env=[], search=True), op.StartSession()]],
)
def test_plan_ends_with_execute(operations):
    with pytest.raises(ValueError, match="the last operation must be execute"):
        Plan(0, operations)


@pytest.mark.parametrize(
    "wire",
    [
        None,
        [],
        {},
        {"flags": 0},
        {"flags": None, "pid_namespace": "", "operations": []},
        {"flags": 0, "pid_namespace": "", "operations": None},
        {"flags": 0, "pid_namespace": "", "operations": [[]]},
        {"flags": 0, "pid_namespace": "", "operations": [["no", {}]]},
        {"flags": 0, "pid_namespace": "", "operations": [["execute", None]]},
        {"flags": 0, "pid_namespace": "", "operations": [["execute", []]]},
    ],
)
def test_what_is_no_plan_is_a_value_error(wire):
    with pytest.raises(ValueError, match=r"launch plan|operation"):
        Plan.from_wire(wire)


def test_operations_without_fields_are_equal_by_kind():
    assert op.StartSession() == op.StartSession()
    assert op.StartSession() != op.ChangeRoot()
    assert op.StartSession() != "start-session"
    assert issubclass(op.StartSession, Operation)
