"""
Lists of item ids in, numbers out, as metrics of `evaluate`: [`RankingMetric`] with targets, [`ListMetric`] without.

Apart from `hf_genrec.evaluation.metrics` because importing `evaluate` takes seconds.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from hf_genrec.evaluation.lists import coverage, gini, item_indices, novelty_per_user
from hf_genrec.evaluation.metrics import mrr_at_k, ndcg_at_k, ranks_of_targets, recall_at_k


class RankingMetric(evaluate.Metric):
    """
    Recall, ndcg and mrr of ranked item ids at several cut-offs, all users in the denominator.

    Works offline and with everything that `evaluate` offers: `compute`, `add`, `add_batch`, `evaluate.combine`. The
    numbers are those of [`hf_genrec.evaluation.metrics.recall_at_k`], `ndcg_at_k` and `mrr_at_k`.

    Example:

    ```python
    >>> metric = RankingMetric(keep_in_memory=True)
    >>> metric.compute(predictions=[["soap", "comb"], ["brush"]], references=["soap", "comb"], ks=(2,))
    {'recall@2': 0.5, 'ndcg@2': 0.5, 'mrr@2': 0.5}

    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.List(datasets.Value("string")), "references": datasets.Value("string")}
        return evaluate.MetricInfo(
            description="Recall, ndcg and mrr of ranked lists with one target per user.",
            citation="",
            inputs_description=(
                "predictions: ranked item ids per user; references: the target per user; ks: cut-offs (1, 5, 10, 20)."
            ),
            features=datasets.Features(features),
        )

    def _compute(
        self, predictions: list[list[str]], references: list[str], ks: Sequence[int] = (1, 5, 10, 20)
    ) -> dict[str, float]:
        ranks = ranks_of_targets(predictions, references)
        metrics = {"recall": recall_at_k, "ndcg": ndcg_at_k, "mrr": mrr_at_k}
        return {f"{name}@{k}": metric(ranks, k=k) for k in ks for name, metric in metrics.items()}


class ListMetric(evaluate.Metric):
    """
    What ranked lists are like whatever the targets: coverage, Gini and, with counts, novelty at several cut-offs.

    The numbers are those of [`hf_genrec.evaluation.lists`]. The diversity and the popularity lift that stand there
    need the log and the histories; [`hf_genrec.evaluate`] reports them.

    Example:

    ```python
    >>> metric = ListMetric(keep_in_memory=True)
    >>> lists = [["soap", "comb"], ["soap", "brush"]]
    >>> metric.compute(predictions=lists, item_ids=["soap", "brush", "comb", "towel"], counts=[4, 2, 2, 0], ks=(1, 2))
    {'coverage@1': 0.25, 'gini@1': 0.75, 'novelty@1': 1.0, 'coverage@2': 0.75, 'gini@2': 0.375, 'novelty@2': 1.5}

    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Coverage, Gini coefficient and novelty of ranked lists.",
            citation="",
            inputs_description=(
                "predictions: ranked item ids per user; item_ids: the whole catalog; counts: interactions of each "
                "item in training, for novelty; ks: cut-offs (10)."
            ),
            features=datasets.Features({"predictions": datasets.List(datasets.Value("string"))}),
        )

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
