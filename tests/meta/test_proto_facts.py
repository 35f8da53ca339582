"""The generated code says what CRI v1 says: every call, message, field, number, type."""

import csv
from pathlib import Path

from google.protobuf.descriptor import FieldDescriptor

from polypod.api import image_service, runtime_service
from polypod.api.v1 import api_pb2 as pb

FACTS = Path(__file__).parent / "data" / "cri-v1.tsv"
TYPES = {
    value: name.removeprefix("TYPE_").lower()
    for name, value in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}


def facts(kind):
    with FACTS.open() as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row for row in rows if row["kind"] == kind]


def type_name(field):
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        parts = field.message_type.fields_by_name
        return f"map<{type_name(parts['key'])},{type_name(parts['value'])}>"
    if field.message_type is not None:
        return field.message_type.full_name
    if field.enum_type is not None:
        return field.enum_type.full_name
    return TYPES[field.type]


def messages(found=None):
    found = {} if found is None else found
    for message in pb.DESCRIPTOR.message_types_by_name.values():
        found[message.full_name] = message
    return found


def test_proto_has_exactly_the_calls():
    ours = {
        (
            service.full_name,
            m.name,
            m.input_type.full_name,
            m.output_type.full_name,
            m.server_streaming,
        )
        for service in pb.DESCRIPTOR.services_by_name.values()
        for m in service.methods
    }
    wanted = set()
    for row in facts("rpc"):
        given, answer = row["type"].split(" -> ")
        streams = row["reserved_or_stream"] == "server-stream"
        wanted.add((row["name"], row["field_or_method"], given, answer, streams))
    assert len(wanted) == 43
    assert ours == wanted


def test_proto_has_exactly_the_messages():
    assert set(messages()) == {row["name"] for row in facts("message")}


def test_proto_has_exactly_the_fields():
    ours = {
        (
            name,
            field.name,
            field.number,
            type_name(field).replace(" ", ""),
            field.is_repeated and "map<" not in type_name(field),
            field.GetOptions().deprecated,
        )
        for name, message in messages().items()
        for field in message.fields
    }
    wanted = {
        (
            row["name"],
            row["field_or_method"],
            int(row["number"]),
            row["type"].replace(" ", ""),
            row["label"] == "repeated",
            "deprecated" in row["reserved_or_stream"],
        )
        for row in facts("field")
    }
    assert ours == wanted


def test_proto_has_exactly_the_enum_values():
    enums = list(pb.DESCRIPTOR.enum_types_by_name.values())
    for message in messages().values():
        enums += message.enum_types
    ours = {(enum.full_name, v.name, v.number) for enum in enums for v in enum.values}
    wanted = {(r["name"], r["field_or_method"], int(r["number"])) for r in facts("enum")}
    assert ours == wanted


def test_every_call_is_implemented():
    ours = {
        name
        for service in (runtime_service.RuntimeService, image_service.ImageService)
        for name in vars(service)
        if name[0].isupper()
    }
    assert ours == {row["field_or_method"] for row in facts("rpc")}
