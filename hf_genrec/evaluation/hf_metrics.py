"""
Lists of item ids in, numbers out, as metrics of `evaluate`: [`RankingMetric`] with targets, [`ListMetric`] without.

Apart from `hf_genrec.evaluation.metrics` because importing `evaluate` takes seconds.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from hf_genrec.evaluation.lists import coverage, gini, item_indices, novelty_per_user
from hf_genrec.evaluation.metrics import PER_USER, ranks_of_targets


class RankingMetric(evaluate.Metric):
    """
    Recall, ndcg and mrr of ranked item ids at several cut-offs, all users in the denominator.

    Works offline and with `compute`, `add`, `add_batch` and `evaluate.combine`; see [`hf_genrec.evaluation.metrics`].

    Example:

    ```python
    >>> metric = RankingMetric(keep_in_memory=True)
    >>> metric.compute(predictions=[["soap", "comb"], ["brush"]], references=["soap", "comb"], ks=(2,))
    {'recall@2': 0.5, 'ndcg@2': 0.5, 'mrr@2': 0.5}

    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.List(datasets.Value("string")), "references": datasets.Value("string")}
        inputs = "predictions: ranked item ids per user; references: the target per user; ks: cut-offs (1, 5, 10, 20)."
        return _information("Recall, ndcg and mrr of ranked lists with one target per user.", inputs, features)

    def _compute(
        self, predictions: list[list[str]], references: list[str], ks: Sequence[int] = (1, 5, 10, 20)
    ) -> dict[str, float]:
        ranks = ranks_of_targets(predictions, references)
        return {f"{name}@{k}": float(metric(ranks, k=k).mean()) for k in ks for name, metric in PER_USER.items()}


class ListMetric(evaluate.Metric):
    """
    What ranked lists are like whatever the targets: coverage, Gini and, with counts, novelty at several cut-offs.

    Diversity and popularity lift need the log and the histories; [`hf_genrec.evaluate`] reports them.

    Example:

    ```python
    >>> metric = ListMetric(keep_in_memory=True)
    >>> lists = [["soap", "comb"], ["soap", "brush"]]
    >>> metric.compute(predictions=lists, item_ids=["soap", "brush", "comb", "towel"], counts=[4, 2, 2, 0], ks=(1, 2))
    {'coverage@1': 0.25, 'gini@1': 0.75, 'novelty@1': 1.0, 'coverage@2': 0.75, 'gini@2': 0.375, 'novelty@2': 1.5}

    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        inputs = (
            "predictions: ranked item ids per user; item_ids: the whole catalog; counts: interactions of each item in "
            "training, for novelty; ks: cut-offs (10)."
        )
        features = {"predictions": datasets.List(datasets.Value("string"))}
        return _information("Coverage, Gini coefficient and novelty of ranked lists.", inputs, features)

    def _compute(
        self,
        predictions: list[list[str]],
        item_ids: Sequence[str],
        counts: Sequence[int] | None = None,
        ks: Sequence[int] = (10,),
    ) -> dict[str, float]:
        values = {}
        for k in ks:
            lists = item_indices(predictions, item_ids=item_ids, k=k)
            values[f"coverage@{k}"] = coverage(lists, num_items=len(item_ids))
            values[f"gini@{k}"] = gini(lists, num_items=len(item_ids))
            if counts is not None:
                values[f"novelty@{k}"] = float(np.nanmean(novelty_per_user(lists, counts=counts)))
        return values


def _information(description: str, inputs: str, features: dict) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description, citation="", inputs_description=inputs, features=datasets.Features(features)
    )
