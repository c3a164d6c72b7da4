"""The sweep over corrections of popularity on a tiny run."""

import json
import sys

import numpy as np
import pytest

from decoding_results import popularity_blocks
from hf_genrec import Recommender, SemanticIds, save_recommender
from hf_genrec.evaluation.evaluate import EvaluationSettings, evaluate
from invariants.model import make_model, random_codes, tiny_config


ITEM_IDS = [f"item-{number:02}" for number in range(29)]


@pytest.fixture
def run(make_prepared, tmp_path, load_script, monkeypatch):
    """A saved run, its data, and a function that runs the script and returns the record."""
    generator = np.random.default_rng(0)
    sequences = {f"user-{user}": [ITEM_IDS[item] for item in generator.permutation(29)[:7]] for user in range(11)}
    prepared = make_prepared(sequences | {"user-of-all": ITEM_IDS})
    model = make_model(tiny_config(max_history_length=5))
    save_recommender(tmp_path / "run", model, SemanticIds(ITEM_IDS, random_codes().numpy(), 5, "keep"), prepared.items)

    def start(*words):
        fixed = ["--name", "tiny", "--dataset", "Tiny", "--records", tmp_path / "records", "--beams", 29]
        words = [tmp_path / "run", prepared.folder, *fixed, *words]
        monkeypatch.setattr(sys, "argv", ["sweep_popularity.py", *map(str, words)])
        load_script("sweep_popularity").main()
        return json.loads((tmp_path / "records" / "tiny.json").read_text(encoding="utf-8"))

    return tmp_path / "run", prepared, start


def test_rows_are_those_of_the_recommender_and_finished_ones_are_kept(run):
    folder, prepared, start = run
    record = start("--corrections", 0.5)
    (tuple_of_settings, corrected) = [(row["temperature"], row["correction"]) for row in record["rows"]]

    recommender = Recommender.from_pretrained(folder, num_beams=29)
    expected = evaluate(recommender, prepared, EvaluationSettings(split="validation"), baselines={})["model"]
    again = start("--corrections", 0.5, 0.2)

    assert (tuple_of_settings, corrected) == ((1.0, 0.0), (1.0, 0.5))
    assert record["rows"][0]["ndcg@10"] == pytest.approx(expected["ndcg@10"])
    assert record["num_users"] == 12
    assert again["rows"][:2] == record["rows"]
    assert again["rows"][2]["correction"] == 0.2


def test_page_shows_a_line_per_correction():
    intervals = {"ndcg@10": [0.0, 0.2], "recall@10": [0.1, 0.3]}
    figures = {"ndcg@10": 0.1, "recall@10": 0.2, "coverage@10": 0.5, "intervals": intervals}
    record = {
        "name": "tiny",
        "dataset": "Tiny",
        "system": "PSID",
        "num_items": 29,
        "num_users": 12,
        "num_beams": 7,
        "rows": [{"temperature": 1.0, "correction": 0.25} | figures],
    }

    page = "\n".join(popularity_blocks([record]))

    assert "### Tiny, PSID: popular prefixes" in page
    assert "| 1 | 0.25 | 0.1000 [0.0000, 0.2000] | 0.2000 [0.1000, 0.3000] | 0.500 |" in page
    assert popularity_blocks([]) == []
