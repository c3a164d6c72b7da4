"""
What the first version of this library made of logs, generated and real: every later one makes the same of them.

Each line holds the fingerprint, users/items/interactions after every step, and counts, after `golden_cases.py`. A line
that changes means that runs trained on a folder no longer match the same log prepared anew.
"""

import golden_cases
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_genrec.data.prepare import prepare


GOLDEN = {
    "plain, plain": "2ea34006082010bb, 9/13/150, repeats 0.4797, textless 2",
    "plain, core": "cc52f6e127f28837, 9/13/150 9/11/123 9/11/123 9/11/123, repeats 0.4583, textless 2, of 27",
    "plain, cold": "05bd925d7fbbb7c7, 9/13/150, repeats 0.4713, textless 2, cold 3 36 9 0 0 1",
    "ties, pairs": "e28ab620eec13cb8, 9/13/150 9/13/84, repeats 0, textless 2",
    "ties, all": "35db152c526313a4, 9/13/150 9/13/117 9/13/74 9/13/74, repeats 0, textless 2",
    "ties, core": "a4b5d3551470a1e0, 9/13/150 9/11/122 9/11/122 9/11/122, repeats 0.4105, textless 2, of 28",
    "copies, plain": "85c996a347eee91f, 9/13/128, repeats 0.6535, textless 2",
    "copies, core": "fad07e320972723a, 9/13/128 9/11/100 8/10/96 8/10/96, repeats 0.6667, textless 2, of 28",
    "copies, cold": "b5553550b4a7761c, 9/13/128, repeats 0.6593, textless 2, cold 3 10 3 0 3 1",
    "no times, pairs": "55f1cf78a7ed7ae4, 9/13/150 9/13/85, repeats 0, textless 2",
    "no times, all": "0f91f45590821eb5, 9/13/150 9/13/123 9/13/79 9/13/79, repeats 0, textless 2",
    "no times, core": "af9acfc3e4158729, 9/13/150 9/11/125 9/11/125 9/11/125, repeats 0.3878, textless 2, of 25",
    "old, plain": "8561db9006dec1c8, 9/13/150, repeats 0.4146, textless 2",
    "old, core": "3e4204e0f4aa18cd, 9/13/150 9/11/118 9/11/118 9/11/118, repeats 0.3956, textless 2, of 32",
    "old, cold": "ceac911e11d11e95, 9/13/150, repeats 0.4457, textless 2, cold 3 31 9 0 2 4",
    "one user, plain": "edb806c2323e9a3e, 1/13/150, repeats 0.9184, textless 2",
    "one user, pairs": "f0ec92d543c15568, 1/13/150 1/13/13, repeats 0, textless 2",
    "one user, cold": "572d874dfa8d70a7, 1/13/150, repeats 0.9231, textless 2, cold 3 30 1 0 0 0",
    "short users, plain": "43fe86071022e169, 65/13/150, repeats 0.09091, textless 2, short 39",
    "short users, core": "f7fa58ed336b7ec1, 65/13/150 61/11/127 20/11/68 20/11/68, repeats 0.125, textless 2, of 23",
    "short users, cold": "f5f694c969252895, 65/13/150, repeats 0.09524, textless 2, short 39, cold 3 18 17 6 6 4",
    "numbers, pairs": "054605fe15870952, 6/12/150 6/12/64, repeats 0, textless 2",
    "numbers, all": "04db5cef9d52ab40, 6/12/150 6/12/124 6/12/59 6/12/59, repeats 0, textless 2",
    "numbers, core": "66fffdf6e2ba54c4, 6/12/150 6/10/124 6/10/124 6/10/124, repeats 0.5943, textless 2, of 26",
    "unicode, plain": "808cbd10d3e4ea40, 16/16/150, repeats 0.1961, textless 2",
    "unicode, core": "a2a2e69993afe666, 16/16/150 16/14/129 16/14/129 16/14/129, repeats 0.1852, textless 2, of 21",
    "unicode, cold": "f4a20f82d09bb1cf, 16/16/150, repeats 0.2025, textless 2, cold 4 23 12 0 5 7",
    "power law, pairs": "2cff2e041fe60aa5, 19/23/150 19/23/68, repeats 0, textless 2, short 12",
    "power law, all": "1ff407c0962fa346, 19/23/150 19/22/124 19/22/59 12/14/45, repeats 0, textless 2, short 7",
    "power law, core": "fe4040ccf25eaf0e, 19/23/150 19/21/146 9/9/116 9/9/116, repeats 0.7753, textless 2, of 4",
}
BAD = {
    "csv": "2c5dafc4bbd587d7, 10/13/153, repeats 0.4797, log 21, textless 2, first line 33",
    "tsv": "2a840670506f5e08, 10/13/153, repeats 0.4797, log 20, textless 2, first line 43",
    "jsonl": "18cd471c408645c2, 10/13/153, repeats 0.4797, log 25, textless 2, first line 9",
    "records": "06c1e575158b7a5e, 10/13/153, repeats 0.4797, log 22, textless 2, first row 51",
    "table": "080e06f256db3c99, 10/13/153, repeats 0.4797, log 19, textless 2, first row 1",
}
REAL = {
    "Beauty, protocol": "596b9616cbbd338b, 22363/12101/198502 22363/12101/198502, repeats 0",
    "Beauty, cold": "7d8376b1d504116f, 22363/12101/198502, repeats 0, cold 605 2849 1660 0 988 1792",
    "Beauty, all": "b88f51530d804329, 22363/12101/198502 22363/12101/198502 1766/803/32963 1370/803/29619, repeats 0",
    "Scientific, protocol": "672eb0a1d6618446, 8317/4344/58492 8317/4344/58492, repeats 0",
    "Scientific, cold": "a7270717f1aac4d9, 8317/4344/58492 465/231/3502, repeats 0, cold 23 161 138 0 115 113",
    "All_Beauty, protocol": "a974ce1f62aa211a, 253/356/2535 253/356/2535 253/356/2535, repeats 0",
    "All_Beauty, rated": "4f363d8acacbee2a, 253/356/2535 253/355/2122 244/345/2093, repeats 0",
    "All_Beauty, cold": "fb82b8aba3935a4a, 253/356/2535 194/356/2240, repeats 0, cold 18 9 9 0 24 59",
    "Retail, plain": "94b825610ae3c47e, 4074/3145/264514, repeats 0",
    "Retail, pairs": "94b825610ae3c47e, 4074/3145/264514 4074/3145/264514, repeats 0",
    "Retail, core": "747961cf4a70b34a, 4074/3145/264514 2967/2365/243117 2322/2365/227114, repeats 0",
    "Retail, cold": "e5f3ea0177e4b26d, 4074/3145/264514 4074/3145/264514, repeats 0, cold 314 22211 2486 1 637 638",
    "Retail, file order": "8ff4fb83faa89666, 4074/3145/264514 4074/3145/264514, repeats 0",
    "All_Beauty, published part": "5a317f3fbf490517, 253/341/2029, repeats 0",
    "samples of 2014": "fe15abed6e71a100, 2/1/2, repeats 0, textless 1, short 2",
    "samples of 2023": "26f106a64bc62a8a, 1/2/2, repeats 0, textless 2, short 1",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_log_gives_what_it_always_gave_in_every_form(tmp_path, name):
    at = list(GOLDEN).index(name)
    for form in golden_cases.FORMS[at % 5 :: 5]:  # two forms a case; the slow test below has all of them
        (tmp_path / form).mkdir()
        assert golden_cases.summary_of(golden_cases.prepare_case(name, form, tmp_path / form)) == GOLDEN[name], form


@pytest.mark.slow
@pytest.mark.parametrize("form", golden_cases.FORMS)
def test_every_log_gives_what_it_always_gave_in(tmp_path, form):
    for name, golden in GOLDEN.items():
        (tmp_path / name).mkdir()
        assert golden_cases.summary_of(golden_cases.prepare_case(name, form, tmp_path / name)) == golden, name


@pytest.mark.parametrize("form", BAD)
def test_bad_lines_are_counted_as_always(tmp_path, form):
    assert golden_cases.summary_of(golden_cases.prepare_bad(form, tmp_path)) == BAD[form]


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_a_real_log_gives_what_it_always_gave(shared_data, tmp_path, name):
    assert golden_cases.summary_of(golden_cases.prepare_real(name, shared_data, tmp_path / "data")) == REAL[name]


ROW = st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(0, 3), st.integers(1, 3))
OPTIONS = st.fixed_dictionaries(
    {"min_rating": st.sampled_from([None, 2]), "deduplicate": st.booleans()},
    optional={"k_core": st.integers(0, 3), "min_history": st.integers(0, 3)},
)


def splits_by_definition(rows, options):
    """The splits in plain Python: rows of user, history, target and time of the target."""
    users = list(dict.fromkeys(user for user, *_ in rows))  # also of a user whose first row is left out below
    rows = [row for row in rows if row[3] >= (options["min_rating"] or 0)]
    rows.sort(key=lambda row: (users.index(row[0]), row[2]))
    if options["deduplicate"]:
        rows = [row for at, row in enumerate(rows) if row[:2] not in [other[:2] for other in rows[:at]]]
    while True:
        counts = [[other[side] for other in rows] for side in (0, 1)]
        kept = [
            row for row in rows if all(counts[side].count(row[side]) >= options.get("k_core", 0) for side in (0, 1))
        ]
        if len(kept) == len(rows):
            break
        rows = kept
    splits = {"train": [], "validation": [], "test": []}
    for user in dict.fromkeys(user for user, *_ in rows):
        own = [row for row in rows if row[0] == user]
        if len(own) <= options.get("min_history", 0):
            continue
        ends = {"train": len(own) - 2, "validation": len(own) - 1, "test": len(own)}
        for split, end in ends.items() if len(own) > 2 else [("train", len(own))]:
            *history, target = own[:end]
            splits[split].append((user, [row[1] for row in history], target[1], target[2]))
    return splits


def check_by_definition(folder, rows, options, **engine):
    """The splits of a log are those of the definition, or nothing is left of it."""
    rows = [(f"u{user}", f"i{item}", golden_cases.START + time, rating) for user, item, time, rating in rows]
    expected = splits_by_definition(rows, options)
    arguments = {"interactions": golden_cases.records_of(rows), "items": golden_cases.items_of(rows)}
    arguments |= {"rating": "rating", "missing_text": "keep", "overwrite": True} | options | engine
    if not expected["train"]:
        with pytest.raises(ValueError, match="No interaction is left"):
            prepare(folder, **arguments)
        return
    prepared = prepare(folder, **arguments)
    for split, found in expected.items():
        rows = [
            (row["user_id"], row["history"], row["target"], row["timestamp"])
            for row in prepared.split(split).to_list()
        ]
        assert rows == found, split


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, min_size=1, max_size=40), options=OPTIONS)
def test_the_splits_are_those_of_the_definition(tmp_path, rows, options):
    check_by_definition(tmp_path / "data", rows, options)
