"""Tables of what systems do beyond the usual metrics."""

import json

import pytest
from test_comparison import compared, make_evaluation, table_of

from hf_genrec.evaluation.compare import comparison_page
from hf_genrec.evaluation.systems import System, model_systems
from hf_genrec.evaluation.tables import evidence_tables


RICH = {
    "recall@10": 0.5,
    "ndcg@10": 0.25,
    "corrected": {"recall@10": 0.4, "ndcg@10": 0.2},
    "id_level": {"recall@10": 0.5, "ndcg@10": 0.3},
    "num_id_truncated": 3,
    "coverage@10": 0.125,
    "gini@10": 0.75,
    "novelty@10": 9.5,
    "diversity@10": None,
    "popularity_lift@10": 0.5,
    "invalid_rate": 0.0,
    "seconds_per_user": 0.002,
    "distinct_items": 41.5,
    "exact_gap": {"num_users": 500, "ndcg@10": 0.25, "exact_ndcg@10": 0.26, "overlap@10": 0.9},
    "by_popularity": [
        {"bucket": "0", "num_users": 2, "recall@10": 0.0, "ndcg@10": 0.0},
        {"bucket": "1-5", "num_users": 3, "recall@10": 0.5, "ndcg@10": 0.25},
    ],
}


def test_tables_show_what_records_hold_and_old_records_are_left_out_of_them():
    tables = {
        table.title: table.rows for table in evidence_tables([System("old", {"ndcg@10": 0.1}), System("A", RICH)])
    }

    assert list(tables.values()) == [
        [
            ["system", "metric", "items counted", "expected", "ids counted", "overestimate", "short"],
            ["A", "recall@10", "0.5000", "0.4000", "0.5000", "+25.0 %", "3"],
            ["A", "ndcg@10", "0.2500", "0.2000", "0.3000", "+50.0 %", "3"],
        ],
        [
            ["system", "coverage", "Gini", "novelty", "diversity", "popularity lift", "invalid", "seconds per user"],
            ["A", "0.1250", "0.7500", "9.50", "–", "+0.500", "0.0000", "0.00200"],
        ],
        [["system", "0 (2)", "1-5 (3)"], ["A", "0.0000", "0.5000"]],
        [
            ["system", "items", "users", "ndcg@10", "exact ndcg@10", "overlap@10"],
            ["A", "41.5", "500", "0.2500", "0.2600", "0.900"],
        ],
    ]


def test_sheets_show_the_cut_offs_that_records_have():
    small = {name.replace("@10", "@5"): value for name, value in RICH.items()}
    for name in ("corrected", "id_level", "exact_gap"):
        small[name] = {key.replace("@10", "@5"): value for key, value in RICH[name].items()}
    small["by_popularity"] = [
        {name.replace("@10", "@5"): value for name, value in entry.items()} for entry in RICH["by_popularity"]
    ]

    tables, of_ten = (evidence_tables([System("A", values)]) for values in (small | {"recall@1": 0.25}, RICH))

    def replaced(text):
        return text.replace("@10", "@5").replace("first 10 ", "first 5 ")

    assert [table.rows for table in tables] == [[[*map(replaced, row)] for row in table.rows] for table in of_ten]
    assert [table.title for table in tables] == [replaced(table.title) for table in of_ten]
    assert tables[1].note == replaced(of_ten[1].note) != of_ten[1].note


def test_comparison_shows_the_cut_offs_that_records_have():
    evaluation = make_evaluation("psid", users=False)
    for values in (evaluation.record["model"], *evaluation.record["baselines"].values()):
        for name in [name for name in values if name.endswith("@10")]:
            values[name.replace("10", "5")] = values.pop(name)

    comparison = compared(evaluation, metric="ndcg@5")

    header = table_of(comparison, "amazon2018").rows[0]
    assert header == ["system", "recall@5", "ndcg@5", "mrr@5", "ndcg@5, difference", "p"]


def test_note_says_what_p_takes_as_given():
    page = comparison_page([compared(make_evaluation("psid"))])

    assert "It takes the trained models as given" in page
    assert "Intervals and `p over seeds` are not corrected." in page


def test_number_of_scored_items_stands_beside_the_gap_to_exact_scores():
    (table,) = evidence_tables([System("A", {"num_visited": 1234.25, "exact_gap": RICH["exact_gap"]})])

    assert table.rows == [
        ["system", "scored", "users", "ndcg@10", "exact ndcg@10", "overlap@10"],
        ["A", "1,234", "500", "0.2500", "0.2600", "0.900"],
    ]


def test_old_records_alone_make_no_further_tables():
    assert evidence_tables([System("old", {"ndcg@10": 0.1, "invalid_rate": 0.0, "seconds_per_user": 1.0})]) == []


def test_seeds_are_averaged_inside_the_objects_of_a_record():
    twin = json.loads(json.dumps(RICH))
    twin["corrected"]["ndcg@10"], twin["by_popularity"][1]["recall@10"] = 0.4, 0.75

    (system,) = model_systems([make_evaluation(name="A", seed=seed, model=RICH) for seed in range(2)])
    assert system.values["by_popularity"] == RICH["by_popularity"]
    runs = [make_evaluation(name="A", seed=seed, model=model) for seed, model in enumerate([RICH, twin])]
    (system,) = model_systems(runs)

    assert system.values["corrected"]["ndcg@10"] == pytest.approx(0.3)
    assert system.values["by_popularity"][1] == {"bucket": "1-5", "num_users": 3, "recall@10": 0.625, "ndcg@10": 0.25}
    assert system.values["diversity@10"] is None
