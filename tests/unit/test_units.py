from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htcebridge.units import format_duration, format_megabytes, parse_duration, parse_megabytes


@given(st.integers(min_value=0, max_value=10**9))
def test_a_duration_written_out_reads_back(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == timedelta(seconds=seconds)


@given(st.integers(min_value=0, max_value=10**12))
def test_a_size_written_out_reads_back(megabytes: int) -> None:
    assert parse_megabytes(format_megabytes(megabytes)) == megabytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("12h", 43200), ("2d", 172800), ("1h30m", 5400), ("1h 30m", 5400), ("0s", 0)],
)
def test_durations_as_people_write_them(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "megabytes"),
    [("494000M", 494000), ("494G", 494 * 1024), ("3t", 3 * 1024**2), ("1.5 GiB", 1536), ("2GB", 2048), (4096, 4096)],
)
def test_sizes_as_people_write_them(text: object, megabytes: int) -> None:
    assert parse_megabytes(text) == megabytes


@pytest.mark.parametrize("bad", ["", "12", "h", "12 hours", "-3h", "1.5h", "h12", "12h!", "12H", 3600, None, True, []])
def test_what_is_no_duration_is_named_with_good_examples(bad: object) -> None:
    with pytest.raises(ValueError, match="is not a duration") as error:
        parse_duration(bad)
    assert repr(bad) in str(error.value)
    assert '"12h"' in str(error.value)


@pytest.mark.parametrize("bad", ["", "lots", "12", "M", "-3G", "3K", "3G!", "1.2.3G", 1.5, None, True, []])
def test_what_is_no_size_is_named_with_good_examples(bad: object) -> None:
    with pytest.raises(ValueError, match="is not a size") as error:
        parse_megabytes(bad)
    assert repr(bad) in str(error.value)
    assert '"494G"' in str(error.value)


@given(st.text())
def test_any_text_is_read_or_refused_with_a_value_error(text: str) -> None:
    for parse in (parse_duration, parse_megabytes):
        try:
            parse(text)
        except ValueError:
            continue


@pytest.mark.parametrize("unit", ["M", "T"])
def test_a_size_too_long_for_a_float_is_a_value_error(unit: str) -> None:
    with pytest.raises(ValueError, match="9999"):
        parse_megabytes("9" * 400 + unit)


def test_a_duration_longer_than_any_job_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="longer than any job"):
        parse_duration("999999999999999d")


def test_negative_durations_keep_their_sign() -> None:
    assert format_duration(-5400) == "-1h30m"
