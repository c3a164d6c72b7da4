"""Columns of any Arrow type: ids, numbers and times, or null."""

import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from hf_genrec.data.columns import (
    TimeSurvey,
    bad_ids,
    id_column,
    id_string,
    is_bad_id,
    number_column,
    text_of,
    time_column,
)


WORDS = ["b", None, "a", "b"]


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int8(), pa.string()),
    ],
)
def test_ids_of_every_type_of_string_are_the_same(kind):
    column = pa.chunked_array([pa.array(WORDS).cast(kind), pa.array(["c"]).cast(kind)])

    assert id_column(column).to_pylist() == [*WORDS, "c"]


def test_ids_of_a_categorical_of_polars_are_read():
    column = pa.DictionaryArray.from_arrays(
        pa.array([1, None, 0], pa.uint32()), pa.array(["a", "b"], pa.string_view())
    )

    assert id_column(column).to_pylist() == ["b", None, "a"]
    assert id_column(pa.chunked_array([], column.type)).to_pylist() == []


@pytest.mark.parametrize(
    "column",
    [
        pa.array([10001, None, 7]),
        pa.array([10001.0, 1.5, 7.0]),
        pa.array([10001.0, float("nan"), 7.0]),
        pa.array([Decimal("10001.00"), Decimal("1.50"), Decimal("7.00")]),
        pa.array([10001, None, 7], pa.uint64()),
        pa.array(pd.Categorical([10001, None, 7])),
    ],
)
def test_ids_that_are_whole_numbers_have_no_fraction_whatever_their_type(column):
    assert id_column(column).to_pylist() == ["10001", None, "7"]


@pytest.mark.parametrize("kind", [pa.list_(pa.int8()), pa.bool_(), pa.struct([("a", pa.int8())])])
def test_ids_of_other_types_are_refused(kind):
    with pytest.raises(ValueError, match="holds (list|true|struct)"):
        id_column(pa.nulls(2, kind))


@pytest.mark.slow
def test_ids_are_read_from_more_than_two_gibibytes_of_characters():
    column = pa.chunked_array([pa.array(["x" * 2**20]).take(pa.array([0] * 1025))] * 2)

    assert id_column(column).null_count == 0


@pytest.mark.parametrize(
    "value",
    [
        "",
        "a b",
        " a",
        "a\u00a0",
        "\u2003",
        "a\x85b",
        "a\ufffd",
        "a\x00b",
        "\x7f",
        "a\x9b",
        "<pad>",
        "<unk>",
        "<eos>",
        "<user>",
        "<latent_3>",
        "<code_0_12>",
    ],
)
def test_an_id_that_cannot_be_a_token_is_bad_alone_and_in_a_column(value):
    assert is_bad_id(value)
    assert bad_ids(id_column(pa.array(["a", value, None]))).tolist() == [False, True, True]


@pytest.mark.parametrize("value", ["a", "--7zmm", "<code_0>", "<code_0_0>x", "caf\u00e9", "=1+1", "[b]"])
def test_any_other_word_is_an_id(value):
    assert not is_bad_id(value)
    assert bad_ids(id_column(pa.array([value]))).tolist() == [False]


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "a"), (7, "7"), (7.0, "7"), (np.float32(7), "7"), (np.int64(7), "7"), (Decimal("7.0"), "7"), (None, None)],
)
def test_values_of_records_are_texts_and_ids(value, text):
    assert (text_of(value), id_string(value)) == (text, text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.5, "1.5"),
        (True, "True"),
        (float("inf"), "inf"),
        (float("nan"), None),
        ([1], None),
        (pd.NaT, None),
    ],
)
def test_other_values_are_no_ids(value, text):
    assert (text_of(value), id_string(value)) == (text, None)


def test_an_integer_too_long_to_be_written_is_no_id():
    assert id_string(10**5000) is None


def test_numbers_are_read_from_texts_and_what_is_none_is_missing():
    texts = ["4", " +1.5e1 ", "-.5", "", "4 stars", "inf", "nan", "0x10", "1_000", "9" * 5000, None]

    numbers = number_column(pa.array(texts))

    np.testing.assert_array_equal(numbers, [4, 15, -0.5, *[np.nan] * 8])
    np.testing.assert_array_equal(number_column(pa.array([1, None], pa.int8())), [1, np.nan])
    np.testing.assert_array_equal(number_column(pa.array([Decimal("1.25"), None])), [1.25, np.nan])


SECOND = 1_569_888_000
ISO = "2019-10-01 00:00:00"


@pytest.mark.parametrize(
    "column",
    [
        pa.array([SECOND]),
        pa.array([float(SECOND)]),
        pa.array([SECOND * 1000]),
        pa.array([SECOND * 1_000_000]),
        pa.array([SECOND * 1_000_000_000], pa.uint64()),
        pa.array([Decimal(SECOND)]),
        *(pa.array([pd.Timestamp(ISO)]).cast(pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
        pa.array([pd.Timestamp("2019-10-01 02:00", tz="Europe/Berlin")]),
        pa.array([pd.Timestamp(ISO).date()]),
        pa.array([SECOND * 1000], pa.date64()),
        *(pa.array([ISO]).cast(kind) for kind in (pa.large_string(), pa.string_view(), pa.binary())),
        *(
            pa.array([text])
            for text in (
                str(SECOND), f" {SECOND}.0 ", "1.569888e9", "2019-10-01", "2019-10-01 00:00:00 UTC",
                "2019-10-01T00:00Z", "2019-10-01 00:00:00.000000 UTC", "2019-10-01 02:00:00+02:00",
                "2019-10-01T02:00:00.000+0200", "2019/10/01", "2019/10/01 00:00:00 GMT",
                "2019-10-01 00:00:00 +0000 UTC", "2019-10-01T00:00:00.000000000Z",
            )
        ),
    ],
)  # fmt: skip
def test_a_time_is_the_same_in_every_form(column):
    times = time_column(pa.chunked_array([column, column]))

    assert times.values.to_pylist() == [SECOND * 1000] * 2


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.large_string()])
@pytest.mark.parametrize(
    ("numbers", "texts"),
    [
        ([20191001, 20200229, 19991231], ["2019-10-01", "2020-02-29", "1999-12-31"]),
        ([201910011830, 202002290000], ["2019-10-01 18:30:00", "2020-02-29 00:00:00"]),
        ([20191001183059], ["2019-10-01 18:30:59"]),
    ],
)
def test_numbers_that_spell_dates_are_these_dates_and_it_is_said(numbers, texts, kind, caplog):
    found, wanted = time_column(pa.array(numbers).cast(kind)), time_column(pa.array(texts))

    assert found.values == wanted.values
    assert not any(mask.any() for mask, _ in found.problems)
    assert f"Times such as {max(numbers)} are read as dates (yyyymmdd" in caplog.text


def test_one_number_that_is_no_date_among_dates_is_malformed():
    found = time_column(pa.array([20191001] * 19 + [20191301, None]))

    assert found.values[18].as_py() == 1_569_888_000_000
    masks = {reason: np.flatnonzero(mask).tolist() for mask, reason in found.problems if mask.any()}
    assert masks.pop("is no date in the form yyyymmdd, as the others of the column are") == [19]


@pytest.mark.parametrize("numbers", [[20191301, 20190230], [19791231], [21010101], [20191001.5], [20191001, 7]])
def test_numbers_of_which_many_are_no_dates_are_seconds(numbers):
    found = time_column(pa.array(numbers, pa.float64()))

    assert found.values.to_pylist() == [round(1000 * number) for number in numbers]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (2**63, "lies beyond the year 5138"),
        (150_000_000_000, "lies beyond the year 5138"),
        (SECOND * 1000, "looks like milliseconds where the column holds seconds"),
        (SECOND * 1_000_000, "looks like microseconds"),
        ("soon", "is neither a number nor an ISO 8601 time"),
        ("Infinity", "is neither a number nor an ISO 8601 time"),
        ("2019-10-01", "is neither a number nor an ISO 8601 time"),
    ],
)
def test_a_number_that_is_no_time_is_found_and_changes_no_other(value, reason):
    times = time_column(pa.array([str(SECOND), str(value), str(SECOND)]))

    assert times.values.to_pylist()[::2] == [SECOND * 1000] * 2
    assert [found for bad, found in times.problems if bad[1]][0].startswith(reason)
    assert not any(bad[::2].any() for bad, _ in times.problems)


@pytest.mark.parametrize("texts", [["now", "today", ISO], ["99999-01-01", "2019-13-01", ISO]])
def test_words_and_dates_that_do_not_exist_are_no_times(texts):
    assert time_column(pa.array([*texts, ISO])).values.to_pylist() == [None, None, SECOND * 1000, SECOND * 1000]


def test_parquet_times_beyond_all_dates_do_not_wrap_around():
    times = pa.array([2**62, SECOND], pa.int64()).cast(pa.timestamp("s"))

    assert time_column(times).values.to_pylist() == [None, SECOND * 1000]


@pytest.mark.parametrize("column", [pa.array([1], pa.time32("s")), pa.array([1], pa.duration("s")), pa.array([True])])
def test_what_is_no_point_in_time_is_refused(column):
    with pytest.raises(ValueError, match="which is no point in time"):
        time_column(column)


@pytest.mark.parametrize(
    "column",
    [[1_500_000_000, 7, 1_500_000_000_123], ["24.12.2020 18:30", "7", "03.01.2021 09:00"], [20191001, 20191231, 5]],
)
def test_surveys_of_parts_that_travel_as_json_have_the_form_of_the_whole(column):
    parts = [TimeSurvey(), TimeSurvey()]
    parts[0].add(pa.array(column[:1]))
    parts[1].add(pa.array(column[1:]))
    merged, whole = TimeSurvey(), TimeSurvey()
    for part in parts:
        merged.merge(json.loads(json.dumps(part.found)))
    whole.add(pa.array(column))

    assert merged.form() == whole.form()
