import json

import pytest

from serving.local_server import json_document
from serving.local_server.errors import ServingError


def problem(body):
    with pytest.raises(ServingError) as error:
        json_document.parse(body)
    return str(error.value)


def test_a_document():
    document = json_document.parse(b'{"a": [1, 2.5, NaN, -Infinity, true, null], "b": {"c": "\\u20ac"}}')
    assert set(document) == {"a", "b"}
    assert document["a"][:2] == [1, 2.5]
    assert [type(value) for value in document["a"][:2]] == [int, float]
    assert document["a"][4:] == [True, None]
    assert dict(document["b"]) == {"c": "€"}


def test_the_first_of_two_equal_keys_counts():
    document = json_document.parse(b'{"a": 1, "b": 2, "a": 3}')
    assert (document["a"], document["b"], len(document)) == (1, 2, 2)
    assert [key for key, _ in document.pairs] == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The document is empty"),
        (b'{"a": [1, 2', "Missing a comma or ']' after an array element. at offset: 11"),
        (b'{"a" 1}', "Missing a colon after a name of object member. at offset: 5"),
        (b'{"a": 1', "Missing a comma or '}' after an object member. at offset: 7"),
        (b"{a: 1}", "Missing a name for object member. at offset: 1"),
        (b'{"a": 1e400}', "Number too big to be stored in double. at offset: 6"),
        (b'{"a": tru}', "Invalid value. at offset: 9"),
        (b'{"\\x": 1}', "Invalid escape character in string. at offset: 2"),
        (b'{"a": 1} x', "The document root must not be followed by other values. at offset: 9"),
        (b"\xff\xfe{}", "Invalid value. at offset: 0"),
        (b'{"\xff": }', "Invalid value. at offset: 6"),
        (b"\xef\xbb\xbf{]", "Missing a name for object member. at offset: 4"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_parse_errors_are_rapidjsons_with_their_offset_in_bytes(body, message):
    assert problem(body) == f"JSON Parse error: {message}"


def test_a_byte_order_mark_is_skipped():
    assert json_document.parse(b'\xef\xbb\xbf{"a": 1}')["a"] == 1


@pytest.mark.parametrize(("body", "shown"), [(b"[1, 2]", "[1, 2]"), (b"3", "3"), (b'"x"', '"x"'), (b"null", "null")])
def test_only_an_object_is_a_document(body, shown):
    assert problem(body) == f"JSON Value: {shown} Is not object"


def test_values_are_shown_as_tf_serving_shows_them():
    document = json_document.parse(b'{"a":[[1,2.0],{"b":"\xe2\x82\xac"}],"c":NaN}')
    assert json_document.show(document) == (
        '{\n    "a": [[1, 2.0], {\n            "b": "€"\n        }],\n    "c": NaN\n}'
    )


def test_a_long_value_is_cut():
    shown = json_document.show(json.dumps("x" * 100_000))
    assert len(shown) < 11_000
    assert shown.endswith("...")


def test_a_deep_value_is_not_shown():
    value = []
    for _ in range(100_000):
        value = [value]
    assert json_document.show(value) == "(nested too deeply to show)"


@pytest.mark.parametrize(
    ("value", "kind"), [(None, "Null"), (True, "True"), (False, "False"), (1, "Number"), ("", "String"), ([], "Array")]
)
def test_kinds(value, kind):
    assert json_document.kind(value) == kind
