"""Sizes, tables and counts as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dedupfs.cli import output
from dedupfs.errors import UsageError


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (1 << 20, "1.0 MiB"),
        (5 << 30, "5.0 GiB"),
        (1 << 70, "1024.0 EiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_a_size_has_the_unit_that_fits(count: int, text: str) -> None:
    assert output.size(count) == text


@given(st.integers(0, 10**6), st.sampled_from(["", "B", "K", "KiB", "M", "MiB", "G", "GiB"]))
def test_sizes_are_read_with_and_without_unit(number: int, unit: str) -> None:
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(unit[:1], 1)
    assert output.parse_size(f"{number}{unit}") == number * factor


@pytest.mark.parametrize("text", ["", "KiB", "1.5K", "-1", "1 2", "1kb", "1KB", "x"])
def test_no_size(text: str) -> None:
    with pytest.raises(UsageError):
        output.parse_size(text)


def test_a_table_stays_aligned_whatever_is_in_its_cells(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("NAME", "B"), [("a\n\x1b", "1"), ("x" * 9, "2")])
    assert capsys.readouterr().out.splitlines() == [
        "NAME       B",
        "a\\n\\x1b    1",
        "xxxxxxxxx  2",
    ]


def test_tables_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("NAME", "SIZE"), [("a", "1"), ("long name", "100")], right=(1,))
    assert capsys.readouterr().out == "NAME       SIZE\na             1\nlong name   100\n"
    output.print_table(("NAME",), [])
    assert capsys.readouterr().out == ""


def test_an_array_is_json_while_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    for values in ([], [1], [{"a": 1}, None]):
        output.print_json_array(values)
        assert json.loads(capsys.readouterr().out) == values


def test_counts() -> None:
    assert output.count_text(1, "file") == "1 file"
    assert output.count_text(12_345, "file") == "12,345 files"


def test_a_time_beyond_any_calendar_is_shown_in_seconds() -> None:
    for seconds in (10**14, -(10**14), 253_402_300_799 + 86_400):
        assert output.time_text(seconds * 10**9) == f"@{seconds}"
