import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from hf_genrec.cli.tables import drawn, evaluation_tables
from hf_genrec.evaluation.baselines import Popularity
from hf_genrec.evaluation.evaluate import (
    EvaluationSettings,
    evaluate,
)
from hf_genrec.evaluation.record import record_table, users_path, write_users
from hf_genrec.files import write_json
from hf_genrec.serving.recommendations import Recommendations
from hf_genrec.serving.recommender import Recommender
from invariants.model import make_model, tiny_config


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


def evaluated(recommender, prepared, *, baselines=None, run=None, **settings):
    return evaluate(recommender, prepared, EvaluationSettings(**settings), baselines=baselines, run=run)


def metrics_of(recommender, prepared, **settings):
    return evaluated(recommender, prepared, baselines={}, **settings)["model"]


def timeless(values):
    """Metrics of both columns without what the clock said."""
    own = {name: value for name, value in values.items() if name != "seconds_per_user"}
    return {
        name: timeless(value) if name in ("seen_allowed", "seen_excluded") else value for name, value in own.items()
    }


@pytest.fixture(scope="module")
def prepared(make_prepared):
    return make_prepared(SEQUENCES)


# The targets of the test split are d (after c), e (after d) and a (after b).
ANSWERS = {"c": ["d", "a"], "d": ["a", "e"], "b": ["b", "b"]}


def test_all_users_count_whether_hit_missed_or_invalid(prepared):
    metrics = metrics_of(Scripted(ANSWERS), prepared, ks=(1, 2))

    assert metrics["recall@1"] == pytest.approx(1 / 3)
    assert metrics["recall@2"] == pytest.approx(2 / 3)
    assert metrics["ndcg@2"] == pytest.approx((1 + 1 / np.log2(3)) / 3)
    assert metrics["invalid_rate"] == pytest.approx(1 / 3)
    assert metrics["mrr@2"] == pytest.approx((1 + 1 / 2) / 3)
    assert set(metrics["intervals"]) == {f"{name}@{k}" for name in ("recall", "ndcg", "mrr") for k in (1, 2)}
    assert metrics["intervals"]["recall@1"] == [0.0, 1.0]


def test_test_histories_hold_the_validation_item(prepared):
    recommender = Scripted(ANSWERS)

    metrics_of(recommender, prepared, ks=(2,), batch_size=2)

    histories = [history for batch, _, exclude_seen in recommender.calls for history in batch if not exclude_seen]
    assert histories == [["a", "b", "c"], ["b", "c", "d"], ["a", "e", "b"]]
    assert [call[1:] for call in recommender.calls] == [(2, False), (2, True)] * 2


def test_validation_split_and_history_length_are_passed_on(prepared):
    recommender = Scripted({"b": ["c"], "c": ["a"], "e": ["b"]})

    metrics = metrics_of(recommender, prepared, split="validation", ks=(1,), max_history_length=1)

    assert recommender.calls[0][0] == [["b"], ["c"], ["e"]]
    assert metrics["recall@1"] == pytest.approx(2 / 3)


def test_unknown_history_entries_are_summed_over_batches(prepared):
    assert metrics_of(Scripted(ANSWERS), prepared, ks=(2,), batch_size=1)["num_unknown"] == 3


def test_sample_of_users_depends_on_the_seed(prepared):
    samples = set()
    for seed in range(9):
        recommender = Scripted(ANSWERS)
        metrics_of(recommender, prepared, ks=(2,), max_users=2, seed=seed)
        samples.add(str(recommender.calls[0][0]))

    assert 1 < len(samples) <= 3


def test_short_lists_are_valid_where_seen_items_leave_no_more(prepared):
    popularity = Popularity.fit(prepared)

    metrics = metrics_of(popularity, prepared, ks=(4,), exclude_seen=True)

    assert metrics["invalid_rate"] == 0
    assert metrics["recall@4"] == pytest.approx(2 / 3)  # the third user takes `a` again, which is excluded


def test_bad_arguments_are_named(prepared, make_prepared):
    with pytest.raises(ValueError, match="`ks` must hold cut-offs"):
        metrics_of(Scripted(ANSWERS), prepared, ks=())
    with pytest.raises(ValueError, match="`max_users` must be at least 1"):
        metrics_of(Scripted(ANSWERS), prepared, max_users=0)


def test_record_holds_the_protocol_the_model_and_the_baselines(prepared):
    record = evaluated(Scripted(ANSWERS), prepared, ks=(1, 2), run={"minutes": 3})

    assert (record["protocol"], record["split"], record["num_users"], record["num_items"]) == ("custom", "test", 3, 5)
    assert record["fingerprint"] == prepared.fingerprint
    assert record["top_k"] == 2
    assert list(record["baselines"]) == ["popularity", "item_knn", "ridge"]
    assert set(record["baselines"]["item_knn"]) == set(record["model"])
    assert set(record["baseline_settings"]["item_knn"]) == {"alpha", "decay", "tuned_on", "seen_excluded"}
    assert record["baseline_settings"]["item_knn"]["tuned_on"] == "validation"
    assert record["cold_items"] is None
    assert record["run"] == {"minutes": 3}
    popularity = metrics_of(Popularity.fit(prepared), prepared, ks=(1, 2))
    assert timeless(record["baselines"]["popularity"]) == timeless(popularity)


def test_default_cut_offs_are_those_of_the_published_tables(prepared):
    record = evaluated(Popularity.fit(prepared), prepared, baselines={})

    names = [f"{name}@{k}" for name in ("recall", "ndcg", "mrr") for k in (1, 5, 10, 20)]
    assert list(record["model"])[:12] == names
    assert list(record["model"]["intervals"]) == names
    assert record["model"]["invalid_rate"] == 0  # the whole catalog of 5 is as much as there is


def test_written_record_reads_back_and_leaves_nothing_else(prepared, tmp_path):
    record = evaluated(Scripted(ANSWERS), prepared, ks=(1,), baselines={})
    path = tmp_path / "results" / "toy.json"

    write_json({"old": True}, path)
    write_json(record, path)

    assert json.loads(path.read_text(encoding="utf-8")) == record
    assert [entry.name for entry in path.parent.iterdir()] == ["toy.json"]


def test_record_with_a_nan_is_refused_and_the_old_one_kept(tmp_path):
    path = tmp_path / "toy.json"
    write_json({"old": True}, path)

    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"ndcg@10": float("nan")}, path)

    assert json.loads(path.read_text(encoding="utf-8")) == {"old": True}


def test_table_lists_the_model_last_with_chosen_columns(prepared):
    record = evaluated(Scripted(ANSWERS), prepared, ks=(1, 2))

    del record["baselines"]["popularity"]["seen_excluded"]

    table = record_table(record, metrics=["recall@1", "invalid_rate"])

    assert table[0] == ["system", "recall@1", "invalid_rate", "recall@1, seen excluded"]
    assert [row[0] for row in table[1:]] == ["popularity", "item_knn", "ridge", "model"]
    assert table[1][-1] == "–"
    assert table[-1] == ["model", "0.3333 [0.0000, 1.0000]", "0.3333", "0.3333 [0.0000, 1.0000]"]


def test_terminal_shows_both_columns_and_intervals_with_leading_zeros(prepared):
    page = shown(evaluated(Popularity.fit(prepared), prepared, baselines={"same": Popularity.fit(prepared)}))

    lines = [line.split() for line in page.splitlines()]
    assert ["recall@5", "recall@10", "ndcg@10", "mrr@10", "recall@10", "ndcg@10"] in lines
    assert ["system", "allowed", "allowed", "allowed", "allowed", "excluded", "excluded"] in lines
    assert "[0.0000," in page
    assert "[." not in page


# The training part is a, b; b, c; and a, e: two times a and b, once c and e, never d.
LISTS = {"c": ["d", "a"], "d": ["a", "b"], "b": ["c", "x"]}


def test_properties_of_the_lists_are_those_of_the_training_part(prepared):
    metrics = metrics_of(Scripted(LISTS), prepared, ks=(1, 2))

    surprise = np.log2(6) - np.log2([[1, 2], [2, 2]])  # an item never seen counts as seen once
    assert metrics["coverage@2"] == 4 / 5
    assert metrics["gini@2"] == pytest.approx((-2 + 2 + 4 * 2) / (5 * 5))  # 0, 1, 1, 1 and 2 times
    assert metrics["novelty@2"] == pytest.approx((surprise[0].mean() + surprise[1].mean() + np.log2(6)) / 3)
    assert metrics["diversity@2"] == pytest.approx((1 + (1 - 1 / 2)) / 2)  # the third user got one item
    lifts = [1 / (5 / 3) - 1, 2 / (3 / 3) - 1, 1 / (5 / 3) - 1]  # histories a b c; b c d; a e b
    assert metrics["popularity_lift@2"] == pytest.approx(np.mean(lifts))


def test_users_are_grouped_by_how_often_the_target_was_seen(prepared):
    buckets = metrics_of(Scripted(ANSWERS), prepared, ks=(2,))["by_popularity"]

    rare = {"bucket": "0", "num_users": 1, "recall@2": 1.0, "ndcg@2": 1.0}
    seen = {"bucket": "1-5", "num_users": 2, "recall@2": 0.5, "ndcg@2": pytest.approx(0.5 / np.log2(3))}
    assert buckets == [rare, seen]


def test_nothing_recommended_is_told_as_none_and_shown_as_a_dash(prepared):
    record = evaluated(Scripted(dict.fromkeys("bcd", [])), prepared, baselines={})

    assert [record["model"][f"{name}@10"] for name in ("coverage", "gini", "diversity")] == [0, None, None]
    assert " – " in shown(record)


@pytest.mark.parametrize(("exclude_seen", "lists"), [(False, "allowed"), (True, "excluded")])
def test_tables_of_lists_say_whether_seen_items_may_be_in_them(prepared, exclude_seen, lists):
    record = evaluated(Scripted(ANSWERS), prepared, baselines={}, exclude_seen=exclude_seen)

    titles = [table.title for table in evaluation_tables(record)[1:] if not isinstance(table, str)]
    assert titles == [
        f"What the lists are like; seen items {lists}",
        f"recall@10 by how often the target was taken in training (users); seen items {lists}",
    ]


def shown(record):
    console = Console(width=100, highlight=False, markup=False)
    with console.capture() as capture:
        for table in evaluation_tables(record):
            console.print(table if isinstance(table, str) else drawn(table))
    return capture.get()


def test_users_are_told_one_by_one_in_the_order_of_the_split(prepared):
    users = evaluated(Scripted(ANSWERS), prepared, baselines={}, ks=(2,)).users

    assert users.to_pydict() == {
        "rank": [0, 1, -1],
        "num_train": [0, 1, 2],
        "history_length": [3, 3, 3],
        "seen_excluded_rank": [0, 1, -1],
        "user_id": ["u", "v", "w"],
        "target": ["d", "e", "a"],
    }
    assert set(users.schema.types[:3]) == {pa.int32()}


def test_ranks_of_the_baselines_stand_beside_those_of_the_model(prepared):
    baselines = {"other": Scripted({"c": ["a"], "d": ["e"], "b": ["a"]})}

    found = evaluated(Scripted(ANSWERS), prepared, baselines=baselines, ks=(2,))

    assert found.users["rank"].to_pylist() == [0, 1, -1]
    assert found.users["rank_other"].to_pylist() == [-1, 0, 0]
    assert found["baselines"]["other"]["recall@2"] == pytest.approx(2 / 3)


def test_users_are_written_without_their_names_unless_asked_for(prepared, tmp_path):
    users = evaluated(Scripted(ANSWERS), prepared, baselines={}).users
    path = users_path(tmp_path / "toy.json")

    write_users(users, path)
    public = pq.read_table(path)
    write_users(users, path, keep_names=True)

    assert path == tmp_path / "toy_users.parquet"
    assert public.column_names == ["rank", "num_train", "history_length", "seen_excluded_rank"]
    assert pq.read_table(path) == users
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"


class SharedIds(Scripted):
    """A model whose items a and b share an id, and d and e."""

    decoding = "beam"
    search_options = {}

    def __init__(self, answers, *, num_beams, num_latents=0):
        super().__init__(answers)
        self.num_beams = num_beams
        self.model = SimpleNamespace(config=SimpleNamespace(num_latent_tokens=num_latents))
        self.items = pa.table({"item_id": list("abcde"), "codes": [[0, 1], [0, 1], [2, 0], [3, 3], [3, 3]]})


def test_shared_ids_are_counted_in_three_ways(prepared):
    lists = {"c": ["c", "d", "e", "a"], "d": ["a", "b", "d", "e"], "b": ["d", "e", "c"]}
    recommender = SharedIds(lists, num_beams=4)

    found = evaluated(recommender, prepared, baselines={}, ks=(1, 3))

    assert recommender.calls[0][1] == 4  # a longer list, to know three distinct ids
    metrics = found["model"]  # the targets are d, e and a
    assert metrics["recall@3"] == pytest.approx(1 / 3)
    assert metrics["corrected"]["recall@3"] == pytest.approx((1 + 1 / 2) / 3)
    assert metrics["corrected"]["ndcg@3"] == pytest.approx(((1 / np.log2(3) + 1 / 2) / 2 + 1 / 2 / 2) / 3)
    assert set(metrics["corrected"]["intervals"]) == {"recall@1", "recall@3", "ndcg@1", "ndcg@3"}
    assert metrics["id_level"]["recall@3"] == pytest.approx(2 / 3)
    assert metrics["id_level"]["ndcg@3"] == pytest.approx(2 / np.log2(3) / 3)
    assert metrics["num_id_truncated"] == 1
    assert found.users["group_start"].to_pylist() == [1, 2, -1]
    assert found.users["id_rank"].to_pylist() == [1, 1, -1]
    assert found.users["group_size"].to_pylist() == [2, 2, 2]
    assert found.users["rank"].to_pylist() == [1, -1, -1]  # e stands behind the cut-off
    assert "Where several items share an id" in shown(evaluated(recommender, prepared, baselines={}, ks=(3,)))


def test_lists_of_a_model_with_latents_are_not_lengthened(prepared):
    recommender = SharedIds(LISTS, num_beams=4, num_latents=8)

    metrics_of(recommender, prepared, ks=(2,))

    assert recommender.calls[0][1] == 2


@pytest.mark.parametrize("options", [{"diversity": 0.5}, {"num_rescored": 4}, {"num_groups": 2}, {"sample_seed": 0}])
def test_lists_that_depend_on_their_length_are_not_lengthened(prepared, options):
    recommender = SharedIds(LISTS, num_beams=4)
    recommender.search_options = options

    metrics_of(recommender, prepared, ks=(2,))

    assert recommender.calls[0][1] == 2


def test_lists_are_lengthened_where_such_options_are_off(prepared):
    recommender = SharedIds(LISTS, num_beams=4)
    recommender.search_options = {"diversity": 0.0, "num_rescored": 0, "num_groups": 1, "sample_seed": None}

    metrics_of(recommender, prepared, ks=(2,))

    assert recommender.calls[0][1] == 4


def test_where_seen_items_are_excluded_shared_ids_are_not_corrected_for(prepared):
    assert "corrected" not in metrics_of(SharedIds(LISTS, num_beams=5), prepared, ks=(2,), exclude_seen=True)


def test_a_search_narrower_than_its_lists_is_refused(prepared):
    with pytest.raises(ValueError, match="3 beams, fewer than the 4 items.*at least 4"):
        metrics_of(SharedIds(LISTS, num_beams=3), prepared, ks=(1, 4))
    metrics_of(SharedIds(LISTS, num_beams=5), prepared, ks=(1, 20))  # there are no more than 5 items


class Scored(Scripted):
    """Recommends from a table, and has exact scores that say otherwise."""

    item_ids = list("abcde")

    def score_items(self, histories):
        assert all(len(history) == 3 for history in histories)
        return np.tile(np.array([0.5, 0.25, 0.25, 0.125, 0], dtype=np.float32), (len(histories), 1))


def test_lists_are_held_against_exact_scores_of_all_items(prepared):
    recommender = Scored({"c": ["d", "a"], "d": ["c", "a"], "b": ["a", "b"]})  # the exact best two are a and b

    gap = metrics_of(recommender, prepared, ks=(2,), exact_sample=100)["exact_gap"]

    expected = {"ndcg@2": 2 / 3, "exact_ndcg@2": 1 / 3, "overlap@2": (1 + 1 + 2) / 6}
    assert gap == {"num_users": 3} | {name: pytest.approx(value) for name, value in expected.items()}


def test_exact_scores_leave_out_seen_items_as_the_lists_do(prepared):
    recommender = Scored({"c": ["d", "e"], "d": ["a", "e"], "b": ["c", "d"]})

    gap = metrics_of(recommender, prepared, ks=(2,), exact_sample=3, exclude_seen=True)["exact_gap"]

    assert gap["overlap@2"] == 1.0  # unseen are d e, a e and c d


def test_all_beams_of_a_model_find_what_exact_scores_find(make_prepared):
    items = [f"i{number:02d}" for number in range(29)]
    prepared = make_prepared({f"u{user}": [items[(5 * user + step) % 29] for step in range(6)] for user in range(11)})
    recommender = Recommender(make_model(tiny_config(num_latent_tokens=3)), prepared.items, num_beams=3 * 29)

    metrics = metrics_of(recommender, prepared, ks=(10,), exact_sample=7, exclude_seen=True)

    assert metrics["exact_gap"]["num_users"] == 7
    assert metrics["exact_gap"]["overlap@10"] == 1.0
    assert metrics["exact_gap"]["ndcg@10"] == pytest.approx(metrics["exact_gap"]["exact_ndcg@10"])
    assert metrics["distinct_items"] == 29 - 5


def test_exact_scores_need_a_model(prepared):
    with pytest.raises(ValueError, match="`exact_sample` needs a recommender with `score_items`.*Popularity"):
        metrics_of(Popularity.fit(prepared), prepared, exact_sample=2)


@pytest.mark.parametrize(
    "options",
    [{"diversity": 0.5}, {"num_groups": 2}, {"sample_seed": 0}, {"prior_correction": 0.4, "item_prior": np.ones(5)}],
)
def test_lists_ranked_by_something_else_are_not_held_against_exact_scores(prepared, options):
    recommender = Scored(LISTS)
    recommender.search_options = options

    with pytest.raises(ValueError, match=", ".join(f"`{name}`" for name in options)):
        metrics_of(recommender, prepared, ks=(2,), exact_sample=3)

    assert recommender.calls == []
    assert "exact_gap" not in metrics_of(recommender, prepared, ks=(2,))


def test_options_of_the_search_alone_go_with_exact_scores(prepared):
    recommender = Scored(LISTS)
    recommender.search_options = {"diversity": 0, "num_groups": 1, "sample_seed": None, "num_rescored": 20}

    assert metrics_of(recommender, prepared, ks=(2,), exact_sample=3)["exact_gap"]["num_users"] == 3
