"""
Recall and ndcg as one `evaluate.Metric`: lists of item ids and targets in, `{"recall@10": ..., "ndcg@10": ...}` out.

Apart from `hf_genrec.metrics` because importing `evaluate` takes seconds.
"""

from collections.abc import Sequence

import datasets
import evaluate

from hf_genrec.metrics import ndcg_at_k, ranks_of_targets, recall_at_k


class RankingMetric(evaluate.Metric):
    """
    Recall and ndcg of ranked item ids at several cut-offs, all users in the denominator.

    Works offline and with everything that `evaluate` offers: `compute`, `add`, `add_batch`, `evaluate.combine`. The
    numbers are those of [`hf_genrec.metrics.recall_at_k`] and [`hf_genrec.metrics.ndcg_at_k`].

    Example:

    ```python
    >>> metric = RankingMetric(keep_in_memory=True)
    >>> metric.compute(predictions=[["soap", "comb"], ["brush"]], references=["soap", "comb"], ks=(1, 2))
    {'recall@1': 0.5, 'ndcg@1': 0.5, 'recall@2': 0.5, 'ndcg@2': 0.5}

    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.List(datasets.Value("string")), "references": datasets.Value("string")}
        return evaluate.MetricInfo(
            description="Recall and ndcg of ranked lists with one target per user.",
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
        return {
            f"{name}@{k}": metric(ranks, k=k)
            for k in ks
            for name, metric in (("recall", recall_at_k), ("ndcg", ndcg_at_k))
        }
