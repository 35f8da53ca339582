"""The generated code says what NRI says: every call, message, field, number, type."""

import csv
from pathlib import Path

from google.protobuf.descriptor import FieldDescriptor

from polypod_nri.peer import ALL_EVENTS, EVENTS
from polypod_nri.wire import api

FACTS = Path(__file__).parent / "data" / "nri-v1alpha1.tsv"
TYPES = {
    value: name.removeprefix("TYPE_").lower()
    for name, value in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}


def facts(kind):
    with FACTS.open() as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row for row in rows if row["kind"] == kind]


def is_map(field):
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def type_name(field):
    if is_map(field):
        parts = field.message_type.fields_by_name
        return f"map<{type_name(parts['key'])},{type_name(parts['value'])}>"
    for kind in (field.message_type, field.enum_type):
        if kind is not None:
            return kind.full_name
    return TYPES[field.type]


def messages():
    return {each.full_name: each for each in api.DESCRIPTOR.message_types_by_name.values()}


def test_proto_has_exactly_the_calls():
    ours = {
        (service.full_name, m.name, m.input_type.full_name, m.output_type.full_name)
        for service in api.DESCRIPTOR.services_by_name.values()
        for m in service.methods
    }
    wanted = {
        (row["name"], row["field_or_method"], *row["type"].split(" -> ")) for row in facts("rpc")
    }
    assert ours == wanted


def test_proto_has_exactly_the_messages():
    assert set(messages()) == {row["name"] for row in facts("message")}


def test_proto_has_exactly_the_fields():
    ours = {
        (name, f.name, f.number, type_name(f), f.is_repeated and not is_map(f))
        for name, message in messages().items()
        for f in message.fields
    }
    wanted = {
        (
            row["name"],
            row["field_or_method"],
            int(row["number"]),
            row["type"],
            row["label"] == "repeated",
        )
        for row in facts("field")
    }
    assert ours == wanted


def test_proto_has_exactly_the_enum_values():
    enums = list(api.DESCRIPTOR.enum_types_by_name.values())
    for message in messages().values():
        enums += message.enum_types
    ours = {(enum.full_name, v.name, v.number) for enum in enums for v in enum.values}
    wanted = {(r["name"], r["field_or_method"], int(r["number"])) for r in facts("enum")}
    assert ours == wanted


def test_every_event_is_told():
    last = api.LAST
    assert sorted(EVENTS.values()) == list(range(1, last))
    assert (1 << (last - 1)) - 1 == ALL_EVENTS
    calls = {row["field_or_method"] for row in facts("rpc")}
    assert set(EVENTS) <= calls
