"""The sweep over remedies against popular prefixes on a tiny run."""

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
    record = start()

    recommender = Recommender.from_pretrained(folder, num_beams=29)
    settings = EvaluationSettings(split="validation", exclude_seen=True)
    expected = evaluate(recommender, prepared, settings, baselines={})["model"]
    again = start("--others", f"Twin={folder}")

    assert record["rows"][0]["recall@10"] == pytest.approx(expected["recall@10"])
    assert record["num_users"] == 12
    assert again["rows"][: len(record["rows"])] == record["rows"]
    assert [row["remedy"] for row in again["rows"]][-2:] == ["five groups", "Twin"]
    assert (folder.parent / "records" / "tiny.png").stat().st_size > 1000


def test_page_shows_a_line_per_setting():
    prefix = {"num_codes": 1, "in_targets": 0.5, "in_lists": 0.75, "amplification": 1.5}
    figures = {"recall@10": 0.2, "coverage@10": 0.5, "intervals": {"recall@10": [0.1, 0.3]}, "shared_codes": 0.25}
    row = {"remedy": "beams alone", "options": {"num_beams": 7}, "by_prefix": [prefix]} | figures
    record = {
        "name": "tiny",
        "dataset": "Tiny",
        "system": "PSID",
        "num_items": 29,
        "num_users": 12,
        "num_beams": 7,
        "shared_by_targets": 0.125,
        "rows": [row, row | {"remedy": "diversity", "options": {"num_beams": 7, "diversity": 0.3}}],
    }

    page = "\n".join(popularity_blocks([record]))

    assert "### Tiny, PSID: popular prefixes" in page
    assert "| beams alone |  | 0.2000 [0.1000, 0.3000] | 0.500 | 1.50 | 0.25 |" in page
    assert "| diversity | diversity 0.3 | 0.2000 [0.1000, 0.3000] | 0.500 | 1.50 | 0.25 |" in page
    assert popularity_blocks([]) == []
