import json

import numpy as np
import pytest

from hf_genrec.baselines import Popularity
from hf_genrec.evaluation import evaluate_recommender, evaluation_record, record_table, write_record
from hf_genrec.recommendations import Recommendations


SEQUENCES = {
    "u": ["a", "b", "c", "d"],
    "v": ["b", "c", "d", "e"],
    "w": ["a", "e", "b", "a"],
}


class Scripted:
    """Answers from a table keyed by the last item of the history, and remembers what it was asked."""

    def __init__(self, answers):
        self.answers = answers
        self.calls = []

    def recommend(self, histories, *, top_k=10, exclude_seen=False):
        self.calls.append((histories, top_k, exclude_seen))
        lists = [self.answers[history[-1]] for history in histories]
        return Recommendations(item_ids=lists, scores=[[0.0] * len(items) for items in lists], num_unknown=1)


@pytest.fixture
def prepared(make_prepared):
    return make_prepared(SEQUENCES)


# The targets of the test split are d (after c), e (after d) and a (after b).
ANSWERS = {"c": ["d", "a"], "d": ["a", "e"], "b": ["b", "b"]}


def test_all_users_count_whether_hit_missed_or_invalid(prepared):
    metrics = evaluate_recommender(Scripted(ANSWERS), prepared, ks=(1, 2))

    assert metrics["recall@1"] == pytest.approx(1 / 3)
    assert metrics["recall@2"] == pytest.approx(2 / 3)
    assert metrics["ndcg@2"] == pytest.approx((1 + 1 / np.log2(3)) / 3)
    assert metrics["invalid_rate"] == pytest.approx(1 / 3)
    assert set(metrics["intervals"]) == {"recall@1", "recall@2", "ndcg@1", "ndcg@2"}
    assert metrics["intervals"]["recall@1"] == [0.0, 1.0]


def test_test_histories_hold_the_validation_item(prepared):
    recommender = Scripted(ANSWERS)

    evaluate_recommender(recommender, prepared, ks=(2,), batch_size=2)

    histories = [history for batch, _, _ in recommender.calls for history in batch]
    assert histories == [["a", "b", "c"], ["b", "c", "d"], ["a", "e", "b"]]
    assert [(top_k, exclude_seen) for _, top_k, exclude_seen in recommender.calls] == [(2, False), (2, False)]


def test_validation_split_and_history_length_are_passed_on(prepared):
    recommender = Scripted({"b": ["c"], "c": ["a"], "e": ["b"]})

    metrics = evaluate_recommender(recommender, prepared, split="validation", ks=(1,), max_history_length=1)

    assert recommender.calls[0][0] == [["b"], ["c"], ["e"]]
    assert metrics["recall@1"] == pytest.approx(2 / 3)


def test_unknown_history_entries_are_summed_over_batches(prepared):
    assert evaluate_recommender(Scripted(ANSWERS), prepared, ks=(2,), batch_size=1)["num_unknown"] == 3


def test_sample_of_users_depends_on_the_seed(prepared):
    samples = set()
    for seed in range(9):
        recommender = Scripted(ANSWERS)
        evaluate_recommender(recommender, prepared, ks=(2,), max_users=2, seed=seed)
        samples.add(str(recommender.calls[0][0]))

    assert 1 < len(samples) <= 3


def test_short_lists_are_valid_where_seen_items_leave_no_more(prepared):
    popularity = Popularity.fit(prepared)

    metrics = evaluate_recommender(popularity, prepared, ks=(4,), exclude_seen=True)

    assert metrics["invalid_rate"] == 0
    assert metrics["recall@4"] == pytest.approx(2 / 3)  # the third user takes `a` again, which is excluded


def test_bad_arguments_are_named(prepared, make_prepared):
    with pytest.raises(ValueError, match="`ks` must hold cut-offs"):
        evaluate_recommender(Scripted(ANSWERS), prepared, ks=())
    with pytest.raises(ValueError, match="`max_users` must be at least 1"):
        evaluate_recommender(Scripted(ANSWERS), prepared, max_users=0)


def test_record_holds_the_protocol_the_model_and_the_baselines(prepared):
    record = evaluation_record(Scripted(ANSWERS), prepared, ks=(1, 2), run={"minutes": 3})

    assert (record["protocol"], record["split"], record["num_users"], record["num_items"]) == ("custom", "test", 3, 5)
    assert record["fingerprint"] == prepared.fingerprint
    assert record["top_k"] == 2
    assert list(record["baselines"]) == ["popularity", "item_knn"]
    assert set(record["baselines"]["item_knn"]) == set(record["model"])
    assert set(record["baseline_settings"]["item_knn"]) == {"alpha", "decay"}
    assert record["run"] == {"minutes": 3}
    assert record["baselines"]["popularity"] | {"seconds_per_user": 0} == evaluate_recommender(
        Popularity.fit(prepared), prepared, ks=(1, 2)
    ) | {"seconds_per_user": 0}


def test_default_cut_offs_are_those_of_the_published_tables(prepared):
    record = evaluation_record(Popularity.fit(prepared), prepared, baselines={})

    names = [f"{name}@{k}" for name in ("recall", "ndcg") for k in (1, 5, 10, 20)]
    assert list(record["model"])[:8] == names
    assert list(record["model"]["intervals"]) == names
    assert record["model"]["invalid_rate"] == 0  # the whole catalog of 5 is as much as there is


def test_written_record_reads_back_and_leaves_nothing_else(prepared, tmp_path):
    record = evaluation_record(Scripted(ANSWERS), prepared, ks=(1,), baselines={})
    path = tmp_path / "results" / "toy.json"

    write_record({"old": True}, path)
    write_record(record, path)

    assert json.loads(path.read_text(encoding="utf-8")) == record
    assert [entry.name for entry in path.parent.iterdir()] == ["toy.json"]


def test_record_with_a_nan_is_refused_and_the_old_one_kept(tmp_path):
    path = tmp_path / "toy.json"
    write_record({"old": True}, path)

    with pytest.raises(ValueError, match="not JSON compliant"):
        write_record({"ndcg@10": float("nan")}, path)

    assert json.loads(path.read_text(encoding="utf-8")) == {"old": True}


def test_table_lists_the_model_last_with_chosen_columns(prepared):
    record = evaluation_record(Scripted(ANSWERS), prepared, ks=(1, 2))

    table = record_table(record, metrics=["recall@1", "invalid_rate"])

    assert [row[0] for row in table] == ["system", "popularity", "item_knn", "model"]
    assert table[-1] == ["model", "0.3333 [0.0000, 1.0000]", "0.3333"]
