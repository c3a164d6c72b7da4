"""The metrics of `evaluate`: the same numbers as the functions, in batches and combined."""

import evaluate
import pytest

from hf_genrec.evaluation.hf_metrics import RankingMetric
from hf_genrec.evaluation.metrics import ndcg_at_k, recall_at_k


PREDICTIONS = [["a", "b", "c"], ["c", "d"], ["d"], ["b", "a"], []]


def test_evaluate_metric_gives_the_same_numbers_in_batches():
    metric = RankingMetric()
    references = ["b", "d", "d", "c", "a"]

    metric.add_batch(predictions=PREDICTIONS[:2], references=references[:2])
    metric.add_batch(predictions=PREDICTIONS[2:], references=references[2:])
    result = metric.compute()

    ranks = [1, 1, 0, -1, -1]
    assert list(result) == [f"{name}@{k}" for k in (1, 5, 10, 20) for name in ("recall", "ndcg", "mrr")]
    assert result["recall@1"] == recall_at_k(ranks, k=1) == 0.2
    assert result["ndcg@10"] == ndcg_at_k(ranks, k=10)
    assert result["mrr@5"] == pytest.approx(2 / 5)


def test_metrics_can_be_combined():
    both = evaluate.combine({"first": RankingMetric(), "second": RankingMetric(experiment_id="second")})

    result = both.compute(predictions=[["b", "a"]], references=["a"], ks=(2,))

    assert {value for name, value in result.items() if "mrr@2" in name} == {0.5}
