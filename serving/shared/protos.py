"""Message classes from a table of their fields, where the official ones import all of TensorFlow, or do not exist."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# {message: {field: (number, type)}}. "[]" before a type is repeated, "{}" a map from string; what is no scalar type is
# a message of the same table. Enums are written as int32, which is the same on the wire.
Table = Mapping[str, Mapping[str, tuple[int, str]]]

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    name: getattr(_Field, f"TYPE_{name.upper()}")
    for name in ("bool", "bytes", "double", "float", "int32", "int64", "string", "uint32", "uint64")
}


def message_classes(table: Table) -> dict[str, Any]:
    """A class for each message, by name; in a descriptor pool of their own, so that official ones do not collide."""
    file = descriptor_pb2.FileDescriptorProto(name="ntk.proto", package="ntk", syntax="proto3")
    for name, fields in table.items():
        message = file.message_type.add(name=_flat(name))
        for field, (number, kind) in fields.items():
            added = message.field.add(name=field, number=number)
            added.label = _Field.LABEL_REPEATED if kind[:2] in ("[]", "{}") else _Field.LABEL_OPTIONAL
            if kind.startswith("{}"):
                entry = message.nested_type.add(name=f"{field.title().replace('_', '')}Entry")
                entry.options.map_entry = True
                for key, (k, entry_kind) in {"key": (1, "string"), "value": (2, kind[2:])}.items():
                    _set_type(entry.field.add(name=key, number=k, label=_Field.LABEL_OPTIONAL), entry_kind)
                added.type, added.type_name = _Field.TYPE_MESSAGE, f".ntk.{_flat(name)}.{entry.name}"
            else:
                _set_type(added, kind.removeprefix("[]"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"ntk.{_flat(name)}")) for name in table}


def _flat(name: str) -> str:
    """One name without dots for each message: a pool of our own needs no nesting."""
    return name.replace(".", "_")


def _set_type(field: descriptor_pb2.FieldDescriptorProto, kind: str) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".ntk.{_flat(kind)}"
