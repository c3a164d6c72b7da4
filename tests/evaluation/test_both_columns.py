"""Lists with seen items allowed and with seen items excluded, and results that are written as they come."""

import pytest
import torch
from test_evaluation import ANSWERS, Scripted, evaluated, metrics_of, timeless

from hf_genrec import SASRecConfig, SASRecForItemGeneration
from hf_genrec.evaluation.baselines import CatalogRanker, ItemKNN, Popularity
from hf_genrec.evaluation.evaluate import EvaluationSettings, evaluate
from hf_genrec.serving.recommender import Recommender
from invariants.model import make_model, tiny_config


@pytest.fixture(scope="module")
def prepared(make_prepared):
    return make_prepared({"u": ["a", "b", "c", "d"], "v": ["b", "c", "d", "e"], "w": ["a", "e", "b", "a"]})


@pytest.fixture(scope="module")
def long_log(make_prepared):
    items = [f"i{number:02d}" for number in range(29)]
    histories = {f"u{user}": [items[(5 * user + step * step) % 29] for step in range(7)] for user in range(11)}
    return make_prepared(histories)


def test_column_without_seen_items_is_that_of_a_run_that_excludes_them(long_log):
    torch.manual_seed(0)
    exact = SASRecForItemGeneration(SASRecConfig(num_items=29, d_model=8, num_heads=1))
    beams = Recommender(make_model(tiny_config()), long_log.items, num_beams=29)

    for system in (beams, Recommender(exact, long_log.items), ItemKNN.fit(long_log), Popularity.fit(long_log)):
        allowed, excluded = (evaluated(system, long_log, baselines={}, exclude_seen=value) for value in (False, True))

        first, other = timeless(allowed["model"]), timeless(excluded["model"])
        assert first.pop("seen_excluded") | {"seen_allowed": first} == other
        columns = [record.users.to_pydict() for record in (allowed, excluded)]
        assert columns[0]["seen_excluded_rank"] == columns[1]["rank"]
        assert columns[0]["rank"] == columns[1]["seen_allowed_rank"]


def test_exact_rankings_give_both_columns_in_one_pass_unless_histories_are_long(long_log, monkeypatch):
    asked = []
    knn = ItemKNN.fit(long_log)
    monkeypatch.setattr(
        ItemKNN, "recommend", lambda *own, **options: asked.append(options) or CatalogRanker.recommend(*own, **options)
    )

    metrics_of(knn, long_log, ks=(3,))
    monkeypatch.setattr("hf_genrec.evaluation.ranked_lists._LONGEST", 5)
    metrics_of(knn, long_log, ks=(3,))

    assert asked == [
        {"top_k": 3 + 6, "exclude_seen": False},
        {"top_k": 3, "exclude_seen": False},
        {"top_k": 3, "exclude_seen": True},
    ]


def test_baseline_that_fails_is_left_out_and_the_record_says_why(prepared, caplog):
    class Failing(Scripted):
        def recommend(self, histories, **options):
            raise MemoryError("64 GB")

    record = evaluated(Scripted(ANSWERS), prepared, baselines={"big": Failing({}), "same": Scripted(ANSWERS)}, ks=(2,))

    assert list(record["baselines"]) == ["same"]
    assert record["baseline_settings"] == {"big": {"error": "MemoryError: 64 GB"}}
    assert "The baseline big failed and is left out: MemoryError: 64 GB" in caplog.text


def test_results_are_handed_over_as_they_come(prepared):
    seen = []
    baselines = {"a": Scripted(ANSWERS), "b": Scripted(ANSWERS)}

    record = evaluate(
        Scripted(ANSWERS),
        prepared,
        EvaluationSettings(ks=(2,)),
        baselines=baselines,
        on_result=lambda result: seen.append((list(result["baselines"]), "rank_b" in result.users.column_names)),
    )

    assert seen == [([], False), (["a"], False), (["a", "b"], True)]
    assert list(record["baselines"]) == ["a", "b"]


def test_auto_excludes_seen_items_where_the_training_part_has_no_repeats(make_prepared):
    once = make_prepared({"u": ["a", "b", "c", "d"], "v": ["b", "c", "d", "e"]})
    again = make_prepared({"u": ["a", "b", "a", "b", "c", "d"], "v": ["b", "c", "d", "e"]})

    found = [evaluated(Popularity.fit(data), data, baselines={}, exclude_seen="auto") for data in (once, again)]

    assert [record["exclude_seen"] for record in found] == [True, False]
    assert [record["repeat_rate"] for record in found] == [0, 2 / 4]
    with pytest.raises(ValueError, match="`exclude_seen` must be True, False or 'auto', got 'yes'"):
        EvaluationSettings(exclude_seen="yes")


def test_each_head_of_a_model_with_two_has_a_row_beside_their_sum(long_log):
    heads = {"history_attention": "causal", "history_unit": "item", "dense_head": True}
    model = make_model(tiny_config(**heads))
    both = Recommender(model, long_log.items, num_beams=29, dense_weight=2.0)

    record = evaluated(both, long_log)

    for name, options in {"generator": {"dense_weight": 0.0}, "dense_head": {"decoding": "dense"}}.items():
        alone = evaluated(Recommender(model, long_log.items, num_beams=29, **options), long_log)
        assert timeless(record["baselines"][name]) == timeless(alone["model"])
        assert name not in alone["baselines"]
    assert "rank_dense_head" in record.users.column_names
