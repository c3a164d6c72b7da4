"""Sections on long ids: which runs are rows, and what the groups of targets hold."""

import math

import pandas as pd
from test_results import make_record

from long_id_results import length_blocks, rare_blocks, rare_values


def test_runs_of_other_lengths_stand_in_the_order_of_their_codes():
    records = [
        make_record(name=f"beauty_rpg_length{number}_seed1", run={"best_validation_ndcg@10": 0.5})
        for number in (16, 4)
    ]

    rows = length_blocks([*records, make_record(name="beauty_rpg_seed1")])[-1].splitlines()[2:]

    assert [row.split(" | ")[:1] + row.split(" | ")[4:6] for row in rows] == [
        ["| 4", "0.0290", "0.0266"],
        ["| 16", "0.0453", "0.0463"],
    ]
    assert length_blocks([]) == []


def test_targets_are_grouped_by_their_training_occurrences():
    users = pd.DataFrame({"num_train": [0, 5, 6, 21, 99], "rank": [0, -1, 2, 1, 1], "rank_item_knn": [3] * 5})
    users["rank_ridge"] = -1

    found = rare_values({"beauty_sasrec_seed1": users, "beauty_vqrec_seed1": None})

    assert found["SASRec"] == {"0-5": 0.5, "6-10": 0.5, "21+": 1 / math.log2(3)}
    assert (found["item-kNN"]["6-10"], found["ridge"]["0-5"]) == (1 / math.log2(5), 0)
    assert "| SASRec | 0.5000 | 0.5000 | 0.0000 | 0.0000 | 0.6309 |" in rare_blocks({"beauty_sasrec_seed1": users})[-1]
    assert rare_blocks({}) == []
