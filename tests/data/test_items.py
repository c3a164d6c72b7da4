"""Item texts: template and cleaning."""

import time

import numpy as np
import pandas as pd
import pytest

from hf_genrec.data.items import DEFAULT_FIELDS, clean_text, item_text


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("Nail &amp; Polish", "Nail & Polish"),
        ("<p>Soft<br/>brush</p>", "Soft brush"),
        ("a<!-- note\n-->b", "a b"),
        ("a<!-- note <b> -->b<!--->c", "a b c"),
        ("a<!-- open <b>bold</b>", "a<!-- open bold"),
        (f"&#{'9' * 5000}; &#x{'f' * 5000}; &#65;", "\ufffd \ufffd A"),
        ("two\nlines\tand\r\n tabs", "two lines and tabs"),
        ("caf\u00e9\u00a0cr\u00e8me \u2122", "caf\u00e9 cr\u00e8me \u2122"),
        ("I <3 you, 2 < 3 > 1", "I <3 you, 2 < 3 > 1"),
        ("", ""),
    ],
)
def test_text_is_unescaped_stripped_and_collapsed(raw, cleaned):
    assert clean_text(raw) == cleaned


@pytest.mark.parametrize("part", ["<!--", "<a ", "&#9", "&a", "<", "&", "<!-- --", "]]>", "</"])
def test_cleaning_takes_no_longer_than_the_text(part):
    start = time.process_time()
    clean_text(part * 250_000)

    assert time.process_time() - start < 2


def test_the_papers_cleaning_keeps_ascii_only():
    assert clean_text("caf\u00e9\u00a0cr\u00e8me \u2122", ascii_only=True) == "caf cr me"
    assert item_text({"title": "\u82b1 tea"}) == "\u82b1 tea"
    assert item_text({"title": "\u82b1 tea"}, ascii_only=True) == "tea"


def test_fields_follow_the_template_order_and_lists_end_with_a_period():
    record = {
        "description": ["Long lasting.", "Dries fast"],
        "price": 4.99,
        "title": "Red Polish",
        "categories": ["Beauty", "Nails"],
        "features": ["Glossy"],
    }

    assert DEFAULT_FIELDS == ("title", "features", "categories", "description")
    assert item_text(record) == "Red Polish Glossy. Beauty, Nails. Long lasting., Dries fast."


def test_nested_category_paths_are_flattened():
    record = {"title": "Comb", "categories": [["Beauty", "Hair"], ["Gifts"]]}

    assert item_text(record) == "Comb Beauty, Hair, Gifts."
    assert item_text({"categories": np.array(["Beauty", "Hair"], dtype=object)}) == "Beauty, Hair."


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, "", "  \n", [], [None, ""]])
def test_missing_values_leave_no_trace(missing):
    assert item_text({"title": "Comb", "features": missing, "description": "Soft"}) == "Comb Soft"


def test_numbers_and_mappings_are_written_out():
    record = {"title": "Comb", "price": 3.5, "details": {"Brand": "Ace", "Sizes": [1, 2], "Colour": None}}

    assert item_text(record, fields=("price", "title", "details")) == "3.5 Comb Brand: Ace, Sizes: 1, 2."


def test_item_without_content_gives_the_empty_string():
    assert item_text({"item_id": "a", "title": None}) == ""


def test_one_string_as_fields_is_refused():
    with pytest.raises(TypeError, match="`fields` must be a sequence"):
        item_text({"title": "Comb"}, fields="title")
