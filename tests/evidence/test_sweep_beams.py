"""The sweep over beams on a tiny run: its figures are those of `recommend()` and of exact scores, and it resumes."""

import json
import sys

import numpy as np
import pytest
import torch

from hf_genrec import PreparedDataset, Recommender, SemanticIds, save_recommender
from hf_genrec.evaluation.evaluate import EvaluationSettings, evaluate
from invariants.model import make_model, random_codes, tiny_config


NUM_ITEMS, NUM_USERS = 29, 17
ITEM_IDS = [f"item-{number:02}" for number in range(NUM_ITEMS)]


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("sweep_beams")


@pytest.fixture(scope="module")
def prepared(make_prepared):
    generator = np.random.default_rng(0)
    sequences = {
        f"user-{user}": [ITEM_IDS[item] for item in generator.permutation(NUM_ITEMS)[: generator.integers(4, 9)]]
        for user in range(NUM_USERS)
    }
    sequences["user-of-all"] = ITEM_IDS  # so that the catalog is whole
    return make_prepared(sequences)


def save_run(folder, prepared, *, latents, seed=0):
    model = make_model(tiny_config(num_latent_tokens=latents, max_history_length=3), seed=seed)
    semantic_ids = SemanticIds(prepared.item_ids, random_codes(seed=seed).numpy(), 5, "keep")
    return save_recommender(folder, model, semantic_ids, prepared.items)


@pytest.fixture
def sweep(script, prepared, tmp_path, monkeypatch):
    """Runs the script on a tiny run and returns the record."""

    def run(*words, latents=0, seed=0):
        pytest.importorskip("matplotlib")
        folder = tmp_path / f"run-{latents}-{seed}"
        if not folder.exists():
            save_run(folder, prepared, latents=latents, seed=seed)
        fixed = ["--name", "tiny", "--dataset", "Tiny", "--records", tmp_path / "beams", "--exact-users", 5]
        words = [folder, prepared.folder, *fixed, "--batch-size", 4, *words]
        monkeypatch.setattr(sys, "argv", ["sweep_beams.py", *map(str, words)])
        script.main()
        return json.loads((tmp_path / "beams" / "tiny.json").read_text(encoding="utf-8"))

    return run


def settings_of(row):
    return row["split"], row["num_beams"], row["latent_aggregation"], row["num_rescored"]


def test_rows_are_what_the_evaluation_of_the_run_gives(sweep, prepared, tmp_path):
    record = sweep("--beams", 11, 12)

    assert [settings_of(row) for row in record["rows"]] == [
        ("test", 11, "max", 0),
        ("test", 12, "max", 0),
        ("test", None, "max", 0),
    ]
    for row in record["rows"][:2]:
        recommender = Recommender.from_pretrained(tmp_path / "run-0-0", device="cpu", num_beams=row["num_beams"])
        data, settings = PreparedDataset.load(prepared.folder), EvaluationSettings(ks=(10,))
        values = evaluate(recommender, data, settings, baselines={})["model"]
        for name in ("ndcg@10", "recall@10"):
            assert row[name] == pytest.approx(values[name])
            assert row["intervals"][name] == pytest.approx(values["intervals"][name])
    assert [row["num_distinct_items"] for row in record["rows"]] == [11.0, 12.0, None]
    assert [row["num_users"] for row in record["rows"]] == [NUM_USERS + 1, NUM_USERS + 1, 5]
    assert (tmp_path / "beams" / "tiny.png").read_bytes().startswith(b"\x89PNG")


def test_as_many_beams_as_paths_have_the_hits_of_exact_scores(sweep):
    record = sweep("--beams", 3 * NUM_ITEMS, "--num-rescored", 0, latents=3)

    hits = {settings_of(row)[1:3]: row["sample"] for row in record["rows"]}
    assert len(hits) == 4
    for name in ("max", "sum"):
        assert hits[3 * NUM_ITEMS, name] == hits[None, name]
        assert hits[None, name]["num_users"] == 5


def test_finished_rows_are_kept_and_timed_again_but_not_continued_with_another_run(sweep, script, monkeypatch):
    first = sweep("--beams", 4)

    again = sweep("--beams", 4, "--retime", 3)
    for old, new in zip(first["rows"], again["rows"], strict=True):
        assert old | {"milliseconds_per_user": 0} == new | {"milliseconds_per_user": 0}
    assert first["rows"][0]["milliseconds_per_user"] != again["rows"][0]["milliseconds_per_user"]

    with pytest.raises(SystemExit, match="begun with another weights"):
        sweep("--beams", 4, seed=1)

    def search(users, who, beams, *rest, old=script.search):
        return old(users, who, beams, *rest) if beams == 6 else pytest.fail("measured twice")

    monkeypatch.setattr(script, "search", search)
    more = sweep("--beams", 4, 6)
    assert more["rows"][:2] == again["rows"]
    assert [settings_of(row)[:2] for row in more["rows"]] == [("test", 4), ("test", None), ("test", 6)]


def test_default_is_noted_only_if_the_validation_split_has_it(sweep):
    with pytest.raises(SystemExit, match="no such row of the validation split"):
        sweep("--beams", 4, "--chosen", 4, "max")

    record = sweep("--beams", 4, "--split", "validation", "--chosen", 4, "max")

    assert record["chosen"] == {"num_beams": 4, "latent_aggregation": "max", "num_rescored": 0}
    assert {settings_of(row)[:2] for row in record["rows"]} >= {("test", 4), ("validation", 4)}


def test_distinct_items_are_counted_per_user_without_dead_beams(script):
    assert script.count_distinct(torch.tensor([[5, 2, 5, -1], [2, 2, 2, 2], [-1, -1, -1, -1]])) == 3
