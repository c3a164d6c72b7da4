"""
Lists of item ids and targets in, numbers out, as a metric of `evaluate`.

Apart from `hf_genrec.evaluation.metrics` because importing `evaluate` takes seconds.
"""

from collections.abc import Sequence

import datasets
import evaluate

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
        return evaluate.MetricInfo(
            description="Recall, ndcg and mrr of ranked lists with one target per user.",
            citation="",
            inputs_description="predictions: ranked item ids per user; references: the target per user; ks: cut-offs.",
            features=datasets.Features(features),
        )

    def _compute(
        self, predictions: list[list[str]], references: list[str], ks: Sequence[int] = (1, 5, 10, 20)
    ) -> dict[str, float]:
        ranks = ranks_of_targets(predictions, references)
        return {f"{name}@{k}": float(metric(ranks, k=k).mean()) for k in ks for name, metric in PER_USER.items()}
