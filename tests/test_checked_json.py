"""JSON that carries its own checksum."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unseen_ray.storage.checked_json import from_checked_json, to_checked_json, write_checked_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text().filter(lambda name: name != "sha256"), JSON, max_size=4))
def test_what_is_written_is_read_back(values: dict[str, object]) -> None:
    assert from_checked_json(to_checked_json(values)) == values


def test_numbers_as_names_and_tuples_are_what_json_makes_of_them() -> None:
    assert from_checked_json(to_checked_json({"counts": {10: 1, 9: 2}, "pair": (1, 2)})) == {
        "counts": {"10": 1, "9": 2},
        "pair": [1, 2],
    }  # type: ignore[dict-item]


def test_a_changed_entry_is_found() -> None:
    with pytest.raises(ValueError, match="do not match its checksum"):
        from_checked_json(to_checked_json({"accuracy": 0.71}).replace(b"0.71", b"0.77"))
    with pytest.raises(ValueError, match="not a JSON object"):
        from_checked_json(b"[1]")


def test_a_file_without_a_digest_is_taken_as_it_is() -> None:
    assert from_checked_json(json.dumps({"a": 1}).encode()) == {"a": 1}


@given(st.dictionaries(st.text(max_size=3).filter(lambda name: name != "sha256"), JSON, max_size=3), st.data())
def test_lists_that_are_written_in_pieces_are_read_back(values: dict[str, object], data: st.DataObject) -> None:
    lists = {name: data.draw(st.lists(st.lists(st.integers(-9, 9)))) for name in ("a", "z", "\n")}
    stream = io.BytesIO()
    values = {name: value for name, value in values.items() if name not in lists}
    pieces = {name: map(np.array, its) for name, its in lists.items()}
    write_checked_json(stream, values, pieces)
    joined = {name: [number for piece in its for number in piece] for name, its in lists.items()}
    assert from_checked_json(stream.getvalue()) == values | joined
