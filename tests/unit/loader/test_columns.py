"""Column types as text, schemas, and what each type takes, refuses, and says about it."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from loader.columns import Schema, check_array, check_value, infer_column_type, parse_column_type
from loader.errors import ColumnError, InvalidOption, LoaderError, StateMismatch


@pytest.mark.parametrize(
    "text",
    [
        *("bool", "int8", "uint64", "float16", "complex128", "uint16[2048]", "float32[3,224,224]"),
        *("int32[*]", "float32[*,4]", "bytes", "str", "json", "jpeg", "png"),
    ],
)
def test_type_text_round_trips(text: str) -> None:
    assert str(parse_column_type(text)) == text
    assert parse_column_type(str(parse_column_type(text))) == parse_column_type(text)


def test_type_text_may_have_spaces_and_dtypes_are_little_endian() -> None:
    parsed = parse_column_type(" float32[3, 4] ")
    assert str(parsed) == "float32[3,4]"
    assert parsed.item_bytes == 48
    assert parsed.dtype is not None
    assert parsed.dtype.newbyteorder("<") == parsed.dtype
    assert parse_column_type("int32[*,4]").item_bytes == 16


@pytest.mark.parametrize(
    "text",
    [
        *("", "float", "int", "object", "float128", "str[3]", "bytes[*]", "uint16[]", "uint16[0]", "uint16[-1]", "uint16[3"),
        *(
            "uint16[*,*]",
            "uint16[3,*]",
            "uint16[01]",
            "uint16[1,]",
            "datetime64",
            "uint8[600000000]",
            "uint8[1" + ",1" * 16 + "]",
        ),
        *("uint16[٣]", "uint8[99999999999999999]"),
    ],
)
def test_unknown_type_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="column type"):
        parse_column_type(text)


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("uint16", 5, np.uint16(5)),
        ("uint64", 2**64 - 1, np.uint64(2**64 - 1)),
        ("bool", True, np.bool_(True)),
        ("float32", 2**24, np.float32(2**24)),
        ("float32", 0.1, np.float32(0.1)),
        ("float32", float("inf"), np.float32("inf")),
        ("complex64", 2, np.complex64(2)),
        ("complex64", 1 - 2j, np.complex64(1 - 2j)),
        ("uint16[2]", [1, 65535], np.array([1, 65535], np.uint16)),
        ("float64[2,2]", ((1, 2), (3.5, 4)), np.array([[1, 2], [3.5, 4]])),
        ("int32[2]", np.array([1, -2], ">i4"), np.array([1, -2], "<i4")),
        ("int32[2,2]", np.arange(4, dtype=np.int32).reshape(2, 2).T, np.array([[0, 2], [1, 3]], "<i4")),
        ("int32[*]", [], np.empty(0, np.int32)),
        ("int32[*,2]", [], np.empty((0, 2), np.int32)),
        ("int32[*,2]", [[1, 2]], np.array([[1, 2]], np.int32)),
    ],
)
def test_number_becomes_the_bytes_of_its_dtype(text: str, value: object, expected: Any) -> None:
    assert check_value("x", parse_column_type(text), value) == expected.tobytes()


@pytest.mark.parametrize(
    ("text", "value", "found"),
    [
        ("uint16", 70000, "int 70000"),
        ("uint16", -1, "int -1"),
        ("uint16", 1.0, "float 1.0"),
        ("uint16", True, "bool True"),
        ("uint16", "5", "str of length 1"),
        ("uint16", None, "None"),
        ("uint64", 2**64, f"int {2**64}"),
        ("bool", 1, "int 1"),
        ("float32", 2**24 + 1, "int 16777217"),
        ("float32", 1e39, "float 1e\\+39"),
        ("float64", 2**63 - 1, "int 9223372036854775807"),
        ("float32", np.float64(1), "float64 1.0"),
        ("float32", 1j, "complex 1j"),
        ("uint16[2]", 1, "int 1"),
        ("uint16[2]", [1, 70000], r"list like int64\[2\] from 1 to 70000"),
        ("uint16[2]", [[1], [2, 3]], "list of 2 values of unequal shapes"),
        ("uint16[2]", np.zeros(2, np.int32), r"int32\[2\]"),
        ("uint16[2]", np.zeros(3, np.uint16), r"uint16\[3\]"),
        ("uint16[2]", np.zeros((1, 2), np.uint16), r"uint16\[1,2\]"),
        ("int32[*]", np.zeros(2, np.int64), r"int64\[2\]"),
        ("int32[*,2]", np.zeros((2, 3), np.int32), r"int32\[2,3\]"),
        ("int32[*,2]", [1], r"list like int64\[1\]"),
        ("uint8[2]", [np.int64(1), np.int64(2)], r"list like int64\[2\]"),
        ("bytes", "text", "str of length 4"),
        ("jpeg", np.zeros(3, np.uint8), r"uint8\[3\]"),
        ("str", b"abc", "bytes of length 3"),
        ("str", "\ud800", "surrogates"),
        ("json", {1: 2}, "the key 1 is no text"),
        ("json", [{"a": float("nan")}], "not JSON compliant"),
        ("json", np.zeros(2), "not JSON serializable"),
    ],
)
def test_wrong_value_names_column_expected_and_found(text: str, value: object, found: str) -> None:
    with pytest.raises(ColumnError, match=found) as caught:
        check_value("weight", parse_column_type(text), value)
    assert caught.value.column == "weight"
    assert caught.value.expected
    assert caught.value.found
    assert str(caught.value) == f"column 'weight': expected {caught.value.expected}, found {caught.value.found}"
    if text not in ("str", "json"):
        assert text in caught.value.expected


def test_deeply_nested_json_is_refused_without_a_crash() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ColumnError, match="JSON"):
        check_value("x", parse_column_type("json"), value)
    while value:
        value = value.pop()


def test_json_is_canonical_and_bytes_are_taken_as_given() -> None:
    assert check_value("x", parse_column_type("json"), {"b": (1, None), "a": "é"}) == '{"a":"é","b":[1,null]}'.encode()
    for value in (b"ab", bytearray(b"ab"), memoryview(b"ab")):
        assert check_value("x", parse_column_type("png"), value) == b"ab"


def test_batch_column_is_checked_at_once_and_not_copied() -> None:
    batch = np.arange(6, dtype=np.int32).reshape(3, 2)
    assert check_array("x", parse_column_type("int32[2]"), batch) is batch
    as_lists = check_array("x", parse_column_type("int32[2]"), batch.tolist())
    assert isinstance(as_lists, np.ndarray)
    assert as_lists.tobytes() == batch.tobytes()
    assert len(check_array("x", parse_column_type("int32[2]"), [])) == 0
    assert check_array("x", parse_column_type("str"), ["a", "é"]) == [b"a", "é".encode()]
    assert check_array("x", parse_column_type("uint8[*]"), [[1], [], [2, 3]]) == [b"\1", b"", b"\2\3"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("int32[2]", np.zeros((3, 3), np.int32)),
        ("int32", np.zeros(3)),
        ("int32", 5),
        ("str", "abc"),
        ("bytes", b"ab"),
        ("str", 3),
    ],
)
def test_wrong_batch_column_is_refused(text: str, values: object) -> None:
    with pytest.raises(ColumnError, match="column 'x'"):
        check_array("x", parse_column_type(text), values)


def test_schema_keeps_order_through_json() -> None:
    schema = Schema.of({"b": "uint16[4]", "a": "str"})
    assert schema.to_json() == [{"name": "b", "type": "uint16[4]"}, {"name": "a", "type": "str"}]
    assert Schema.from_json(schema.to_json()) == schema
    assert schema.select(["a", "b"]).names == ("b", "a")
    assert schema.select(["a"]).types == (parse_column_type("str"),)
    assert str(schema["b"]) == "uint16[4]"


@pytest.mark.parametrize("name", ["", "_pad", "_index", "a\nb", "x" * 256, "\ud800", 5])
def test_schema_refuses_names_that_cannot_be_columns(name: Any) -> None:
    with pytest.raises(ColumnError):
        Schema.of({name: "str"})


@pytest.mark.parametrize(
    "value", [None, {}, [], [1], [{"name": "a"}], [{"name": "a", "type": 1}], [{"name": "a", "type": "str"}] * 2]
)
def test_schema_refuses_json_that_is_none(value: object) -> None:
    with pytest.raises(InvalidOption):
        Schema.from_json(value)


def test_schema_names_the_column_of_an_unknown_type() -> None:
    with pytest.raises(ColumnError, match=r"column 'tokens'.*'uint17'"):
        Schema.of({"tokens": "uint17"})


def test_sample_needs_each_column_and_no_other() -> None:
    schema = Schema.of({"a": "uint8", "b": "str"})
    assert schema.check_sample({"b": "x", "a": 1}) == (b"\1", b"x")
    with pytest.raises(ColumnError, match="column 'b': expected str, found no value"):
        schema.check_sample({"a": 1})
    with pytest.raises(ColumnError, match="column 'b': expected str, found no value"):
        schema.check_sample({"a": 1, "c": 2})
    with pytest.raises(ColumnError, match="column 'c': expected only the columns a, b"):
        schema.check_sample({"a": 1, "b": "x", "c": 2})
    with pytest.raises(ColumnError, match="column 'c': expected one of the columns a, b"):
        schema.select(["c"])


def test_batch_columns_have_equal_lengths() -> None:
    schema = Schema.of({"a": "uint8", "b": "str"})
    with pytest.raises(ColumnError, match="column 'b': expected 2 rows like column 'a', found 1 rows"):
        schema.check_batch({"a": [1, 2], "b": ["x"]})


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1, -2], "int64"),
        ([1, 2.5], "float64"),
        ([2**63, 1], "uint64"),
        ([1j, 2], "complex128"),
        ([True, False], "bool"),
        ([1, True], "json"),
        ([2**63, -1], "json"),
        (["a", "b"], "str"),
        (["a", None], "json"),
        ([None], "json"),
        ([{"a": 1}], "json"),
        ([["a"], []], "json"),
        ([[]], "json"),
        ([[1, 2], [3, 4]], "int64[2]"),
        ([[1, 2], [3]], "int64[*]"),
        ([[], [1.5]], "float64[*]"),
        ([[[1, 2]], [], [[3, 4], [5, 6]]], "int64[*,2]"),
        ([[[1, 2], [3]]], "json"),
        ([[1], 2], "json"),
        ([b"a", bytearray(b"b")], "bytes"),
        ([b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1"], "jpeg"),
        ([b"\x89PNG\r\n\x1a\n..."], "png"),
        ([b"\x89PNG\r\n\x1a\n...", b"GIF"], "bytes"),
        ([np.float32(1), np.float32(2)], "float32"),
        ([np.zeros((2, 3), np.uint16)], "uint16[2,3]"),
        ([np.zeros((2, 3)), np.zeros((0, 3))], "float64[*,3]"),
        ([np.zeros(0, np.int8), np.zeros(3, np.int8)], "int8[*]"),
    ],
)
def test_infers_the_narrowest_type_that_holds_all(values: list[object], text: str) -> None:
    inferred = infer_column_type(values)
    assert str(inferred) == text
    for value in values:
        check_value("x", inferred, value)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [object()],
        [b"a", None],
        [np.zeros(2), None],
        [np.zeros(2), np.zeros(2, np.int8)],
        [np.zeros((2, 3)), np.zeros((2, 4))],
        [np.array(["a"], object)],
        [np.datetime64("2020-01-01")],
    ],
)
def test_inference_names_the_column_that_no_type_holds(values: list[object]) -> None:
    with pytest.raises(ColumnError, match="column 'when'"):
        infer_column_type(values, name="when")


def test_errors_survive_pickling_and_being_rebuilt_from_their_message() -> None:
    error = ColumnError.mismatch("x", expected="a", found="b")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.column, copy.expected, copy.found) == (str(error), "x", "a", "b")
    mismatch = pickle.loads(pickle.dumps(StateMismatch("m", field="seed", saved=1, current=2)))
    assert (mismatch.field, mismatch.saved, mismatch.current) == ("seed", 1, 2)
    for kind in LoaderError.__subclasses__():
        assert str(kind("message")) == "message"
