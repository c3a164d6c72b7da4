"""
A recommender and a split in, an evaluation record out: the only file that knows a protocol.

Full ranking at item level, one target per user, every user in the denominator. A record is a plain dict that goes to
JSON as it stands; cards, tables and results pages are made from it. Beside it stands a table with one row per user.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_genrec.data.prepare import PreparedDataset
from hf_genrec.evaluation.baselines import ItemKNN, Popularity
from hf_genrec.evaluation.metrics import is_invalid_list, ranks_of_targets
from hf_genrec.evaluation.record import record_table, write_record
from hf_genrec.evaluation.searches import check_beams, check_exact_order, length_to_ask_for
from hf_genrec.evaluation.shared_ids import shared_id_groups
from hf_genrec.evaluation.system_metrics import (
    Asked,
    TrainingPart,
    by_popularity,
    exact_gap,
    list_values,
    rank_shared_ids,
    rank_values,
    shared_id_values,
)
from hf_genrec.serving.recommendations import Recommendations, Recommender


__all__ = [
    "DEFAULT_KS",
    "EvaluatedRecord",
    "Evaluation",
    "EvaluationSettings",
    "evaluate_recommender",
    "evaluate_systems",
    "evaluate_users",
    "evaluation_record",
    "record_table",
    "write_record",
]

DEFAULT_KS = (1, 5, 10, 20)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """
    How a recommender is evaluated.

    Args:
        split (`str`, *optional*, defaults to `"test"`):
            `"test"` or `"validation"`.
        ks (`tuple[int, ...]`, *optional*, defaults to `(1, 5, 10, 20)`):
            Cut-offs, each at least 1. Properties of whole lists are those of the first 10 items, or of `max(ks)` if
            that is smaller.
        max_history_length (`int`, *optional*):
            Hand over only the latest items of each history. `None` hands over all of them and leaves cutting to the
            recommender.
        batch_size (`int`, *optional*, defaults to 256):
            Users per call of the recommender.
        max_users (`int`, *optional*):
            Evaluate a sample of this many users. `None` means all.
        seed (`int`, *optional*, defaults to 0):
            Seed of the samples and of the bootstrap.
        exclude_seen (`bool`, *optional*, defaults to `False`):
            Whether items of the history may not be recommended; the published protocols do not exclude them.
        confidence (`float`, *optional*, defaults to 0.95):
            Confidence of the bootstrap intervals over users.
        exact_sample (`int`, *optional*, defaults to 0):
            Score the whole catalog exactly for a sample of this many users and report how far the search is from it.
        show_progress (`bool`, *optional*, defaults to `False`):
            Whether a progress bar is shown.

    Raises:
        ValueError: If `ks` is empty or a number is out of range.
    """

    split: str = "test"
    ks: Sequence[int] = DEFAULT_KS
    max_history_length: int | None = None
    batch_size: int = 256
    max_users: int | None = None
    seed: int = 0
    exclude_seen: bool = False
    confidence: float = 0.95
    exact_sample: int = 0
    show_progress: bool = False

    def __post_init__(self) -> None:
        if min(self.ks, default=0) < 1:
            raise ValueError(f"`ks` must hold cut-offs of at least 1, got {tuple(self.ks)}.")
        if self.max_users is not None and self.max_users < 1:
            raise ValueError(f"`max_users` must be at least 1 or None, got {self.max_users}.")
        if self.exact_sample < 0:
            raise ValueError(f"`exact_sample` must be at least 0, got {self.exact_sample}.")


@dataclass(frozen=True)
class Evaluation:
    """
    One recommender, evaluated.

    Args:
        metrics (`dict`):
            What [`evaluate_recommender`] describes.
        users (`pa.Table`):
            One row per user, in the order of the split: `rank` (0-based position of the target, -1 if it is not among
            the first `max(ks)`), `num_train` (how often the target occurs in the training part), `history_length`,
            where ids are shared `id_rank`, `group_start` and `group_size` (see [`~id_metrics.IdRanks`]), all int32;
            then `user_id` and `target`, strings.
    """

    metrics: dict[str, Any]
    users: pa.Table


@dataclass(frozen=True)
class EvaluatedRecord:
    """
    A model beside its baselines, evaluated.

    Args:
        record (`dict`):
            What [`evaluation_record`] describes.
        users (`pa.Table`):
            The model's rows as in [`Evaluation`], and for each baseline a column `rank_NAME`.
    """

    record: dict[str, Any]
    users: pa.Table


def evaluate_recommender(
    recommender: Recommender,
    prepared: PreparedDataset,
    *,
    split: str = "test",
    ks: Sequence[int] = DEFAULT_KS,
    max_history_length: int | None = None,
    batch_size: int = 256,
    max_users: int | None = None,
    seed: int = 0,
    exclude_seen: bool = False,
    confidence: float = 0.95,
    exact_sample: int = 0,
    show_progress: bool = False,
) -> dict[str, Any]:
    """
    Metrics of one recommender on one split.

    The recommender is asked for `max(ks)` items per user. A list that is short, repeats an item or holds a foreign id
    is invalid and counted; its user stays in every denominator. At test time the history holds the validation item.

    Args:
        recommender ([`Recommender`]): A model or a baseline.
        prepared ([`PreparedDataset`]): The data set.
        split (`str`, *optional*, defaults to `"test"`): See [`EvaluationSettings`], and so for all that follow.
        ks (`tuple[int, ...]`, *optional*, defaults to `(1, 5, 10, 20)`): Cut-offs.
        max_history_length (`int`, *optional*): Latest items of each history that are handed over; `None` for all.
        batch_size (`int`, *optional*, defaults to 256): Users per call of the recommender.
        max_users (`int`, *optional*): Size of a sample of users; `None` for all.
        seed (`int`, *optional*, defaults to 0): Seed of the samples and of the bootstrap.
        exclude_seen (`bool`, *optional*, defaults to `False`): Whether items of the history may not be recommended.
        confidence (`float`, *optional*, defaults to 0.95): Confidence of the intervals.
        exact_sample (`int`, *optional*, defaults to 0): Users for the gap to exact scores.
        show_progress (`bool`, *optional*, defaults to `False`): Whether a progress bar is shown.

    Returns:
        `dict`: with one value each

        - `recall@k`, `ndcg@k` and `mrr@k` for each cut-off, and `intervals` with `[low, high]` for them;
        - `invalid_rate`, `num_unknown` (history entries that are no items), `seconds_per_user` (of the lists asked
          for, which may be longer than `max(ks)`, see below);
        - of the lists' first 10 items `coverage@10`, `gini@10`, `novelty@10`, `diversity@10`, `popularity_lift@10`,
          see [`hf_genrec.evaluation.lists`]; `None` where no user has a value;
        - `by_popularity`: recall and ndcg by how often the target occurs in the training part;
        - `num_visited`, the mean number of items that were scored, and `distinct_items`, that of distinct items
          among the beams, where the recommender tells it;
        - where several items share an id and seen items are not excluded: `corrected` and `id_level`, each with
          `recall@k` and `ndcg@k` and the former with `intervals`, see [`hf_genrec.evaluation.shared_ids`], and
          `num_id_truncated`, users whose list had neither the target's id nor 10 distinct ids. Longer lists are asked
          for then, where that does not change the search (see [`~searches.length_to_ask_for`]);
        - `exact_gap` if it was asked for: `num_users`, `ndcg@10` of the lists and `exact_ndcg@10` of exact scores for
          them, and `overlap@10`, the share of the best 10 items that the lists hold.

    Raises:
        ValueError: If `ks` is empty, the split has no users, the recommender searches with fewer beams than the lists
            shall have items, or exact scores are asked of a recommender without `score_items` or with search options
            that rank by something else.
    """
    settings = EvaluationSettings(
        split=split,
        ks=ks,
        max_history_length=max_history_length,
        batch_size=batch_size,
        max_users=max_users,
        seed=seed,
        exclude_seen=exclude_seen,
        confidence=confidence,
        exact_sample=exact_sample,
        show_progress=show_progress,
    )
    return evaluate_users(recommender, prepared, settings=settings).metrics


def evaluation_record(
    recommender: Recommender,
    prepared: PreparedDataset,
    *,
    baselines: Mapping[str, Recommender] | None = None,
    run: Mapping[str, Any] | None = None,
    split: str = "test",
    ks: Sequence[int] = DEFAULT_KS,
    max_history_length: int | None = None,
    batch_size: int = 256,
    max_users: int | None = None,
    seed: int = 0,
    exclude_seen: bool = False,
    confidence: float = 0.95,
    exact_sample: int = 0,
    show_progress: bool = False,
) -> dict[str, Any]:
    """
    One model beside its baselines on the same users, as one JSON-ready object.

    Args:
        recommender ([`Recommender`]): The model.
        prepared ([`PreparedDataset`]): The data set.
        baselines (`dict[str, Recommender]`, *optional*):
            Recommenders by name. `None` fits popularity and item-kNN, the latter tuned on the validation split.
        run (`dict`, *optional*):
            What else the record shall keep, such as the command, the seed and the minutes of training.
        split (`str`, *optional*, defaults to `"test"`): See [`EvaluationSettings`], and so for all that follow.
        ks (`tuple[int, ...]`, *optional*, defaults to `(1, 5, 10, 20)`): Cut-offs.
        max_history_length (`int`, *optional*): Latest items of each history that are handed over; `None` for all.
        batch_size (`int`, *optional*, defaults to 256): Users per call of the model.
        max_users (`int`, *optional*): Size of a sample of users, the same for all systems; `None` for all.
        seed (`int`, *optional*, defaults to 0): Seed of the samples and of the bootstrap.
        exclude_seen (`bool`, *optional*, defaults to `False`): Whether items of the history may not be recommended.
        confidence (`float`, *optional*, defaults to 0.95): Confidence of the intervals.
        exact_sample (`int`, *optional*, defaults to 0): Users for the model's gap to exact scores.
        show_progress (`bool`, *optional*, defaults to `False`): Whether a progress bar is shown for the model.

    Returns:
        `dict`: `protocol`, `split`, `num_users`, `num_items`, `fingerprint` of the data, `cold_items` (`share` and
        `num_items` of those held out of training, or `None`), the settings, `model` and `baselines` (name to metrics,
        see [`evaluate_recommender`]), `baseline_settings`, and `run` where it was given.

    Raises:
        ValueError: As [`evaluate_recommender`].
    """
    settings = EvaluationSettings(
        split=split,
        ks=ks,
        max_history_length=max_history_length,
        batch_size=batch_size,
        max_users=max_users,
        seed=seed,
        exclude_seen=exclude_seen,
        confidence=confidence,
        exact_sample=exact_sample,
        show_progress=show_progress,
    )
    return evaluate_systems(recommender, prepared, settings=settings, baselines=baselines, run=run).record


def evaluate_users(
    recommender: Recommender, prepared: PreparedDataset, *, settings: EvaluationSettings | None = None
) -> Evaluation:
    """
    Like [`evaluate_recommender`], and what became of each user.

    Args:
        recommender ([`Recommender`]): A model or a baseline.
        prepared ([`PreparedDataset`]): The data set.
        settings ([`EvaluationSettings`], *optional*): How; `None` for the defaults.

    Returns:
        [`Evaluation`]

    Raises:
        ValueError: As [`evaluate_recommender`].
    """
    settings = settings or EvaluationSettings()
    return _evaluate(recommender, _asked(prepared, settings), TrainingPart.of(prepared), settings)


def evaluate_systems(
    recommender: Recommender,
    prepared: PreparedDataset,
    *,
    settings: EvaluationSettings | None = None,
    baselines: Mapping[str, Recommender] | None = None,
    run: Mapping[str, Any] | None = None,
) -> EvaluatedRecord:
    """
    Like [`evaluation_record`], and what became of each user.

    Args:
        recommender ([`Recommender`]): The model.
        prepared ([`PreparedDataset`]): The data set.
        settings ([`EvaluationSettings`], *optional*): How; `None` for the defaults.
        baselines (`dict[str, Recommender]`, *optional*): Recommenders by name; `None` fits popularity and item-kNN.
        run (`dict`, *optional*): What else the record shall keep.

    Returns:
        [`EvaluatedRecord`]

    Raises:
        ValueError: As [`evaluate_recommender`].
    """
    settings = settings or EvaluationSettings()
    asked, training = _asked(prepared, settings), TrainingPart.of(prepared)
    model = _evaluate(recommender, asked, training, settings)
    users = model.users
    systems, baseline_settings = _fit_baselines(prepared, seed=settings.seed) if baselines is None else (baselines, {})
    others = replace(settings, batch_size=4096, exact_sample=0, show_progress=False)
    metrics = {}
    for name, system in systems.items():
        evaluation = _evaluate(system, asked, training, others)
        metrics[name] = evaluation.metrics
        users = users.append_column(f"rank_{name}", evaluation.users["rank"])
    cold = prepared.metadata.get("cold_items")
    kept = ("split", "max_history_length", "max_users", "seed", "exclude_seen", "confidence")
    record = {
        "protocol": prepared.metadata["protocol"],
        "num_users": len(asked.targets),
        "num_items": len(prepared.item_ids),
        "fingerprint": prepared.fingerprint,
        "cold_items": cold and {name: cold[name] for name in ("share", "num_items")},
        "top_k": max(settings.ks),
        **{name: getattr(settings, name) for name in kept},
        "model": model.metrics,
        "baselines": metrics,
        "baseline_settings": baseline_settings,
    }
    return EvaluatedRecord(record if run is None else record | {"run": dict(run)}, users)


def _asked(prepared: PreparedDataset, settings: EvaluationSettings) -> Asked:
    rows = _sample(prepared.split(settings.split), settings)
    histories = list(rows["history"])
    if settings.max_history_length is not None:
        histories = [history[-settings.max_history_length :] for history in histories]
    return Asked(user_ids=list(rows["user_id"]), histories=histories, targets=list(rows["target"]))


def _sample(rows: datasets.Dataset, settings: EvaluationSettings) -> datasets.Dataset:
    size = settings.max_users
    if len(rows) == 0:
        raise ValueError(f"The {settings.split!r} split has no users: there is nothing to evaluate.")
    if size is None or size >= len(rows):
        return rows
    return rows.select(np.sort(np.random.default_rng(settings.seed).choice(len(rows), size=size, replace=False)))


def _evaluate(
    recommender: Recommender, asked: Asked, training: TrainingPart, settings: EvaluationSettings
) -> Evaluation:
    top_k = max(settings.ks)
    check_beams(recommender, min(top_k, len(training.item_ids)))
    if settings.exact_sample:
        check_exact_order(recommender)
    items: Any = getattr(recommender, "items", None)  # a model's table; baselines have none
    groups = shared_id_groups(items) if isinstance(items, pa.Table) and not settings.exclude_seen else None
    length = top_k if groups is None else length_to_ask_for(recommender, top_k)
    start = time.perf_counter()
    found = _recommend_in_batches(recommender, asked.histories, length, settings)
    seconds = time.perf_counter() - start
    lists = [items[:top_k] for items in found.item_ids]
    ranks = ranks_of_targets(lists, asked.targets)
    num_excluded = _num_distinct_items(asked.histories, training.item_ids) if settings.exclude_seen else None
    is_invalid = is_invalid_list(lists, catalog=training.item_ids, top_k=top_k, num_excluded=num_excluded)
    list_k = min(10, top_k)
    num_train = training.num_train(asked.targets)
    bootstrap: dict[str, Any] = {"ks": settings.ks, "confidence": settings.confidence, "seed": settings.seed}
    metrics = rank_values(ranks, **bootstrap) | {
        "invalid_rate": float(is_invalid.mean()),
        "num_unknown": found.num_unknown,
        "seconds_per_user": seconds / len(asked.targets),
        **list_values(lists, asked.histories, training, k=list_k),
        "by_popularity": by_popularity(ranks, num_train, k=list_k),
    }
    told = {"num_visited": found.num_visited, "distinct_items": found.num_distinct}
    metrics |= {name: float(np.mean(values)) for name, values in told.items() if values is not None}
    columns = {"rank": ranks, "num_train": num_train, "history_length": list(map(len, asked.histories))}
    if groups is not None:
        item_ids = items["item_id"].to_pylist()
        ids = rank_shared_ids(found.item_ids, asked.targets, item_ids=item_ids, groups=groups)
        metrics |= shared_id_values(ids, **bootstrap, k=list_k)
        columns |= {"id_rank": ids.id_rank, "group_start": ids.group_start, "group_size": ids.group_size}
    if settings.exact_sample:
        metrics["exact_gap"] = exact_gap(
            recommender,
            asked,
            lists,
            num_users=settings.exact_sample,
            k=list_k,
            exclude_seen=settings.exclude_seen,
            seed=settings.seed,
        )
    table = {name: pa.array(values, pa.int32()) for name, values in columns.items()}
    return Evaluation(metrics, pa.table(table | {"user_id": asked.user_ids, "target": asked.targets}))


def _recommend_in_batches(
    recommender: Recommender, histories: list[list[str]], top_k: int, settings: EvaluationSettings
) -> Recommendations:
    item_ids: list[list[str]] = []
    scores: list[list[float]] = []
    num_unknown = 0
    visited: list[int] = []
    distinct: list[int] = []
    starts = range(0, len(histories), settings.batch_size)
    for start in tqdm(starts, desc="Evaluating", disable=not settings.show_progress):
        batch = histories[start : start + settings.batch_size]
        recommendations = recommender.recommend(batch, top_k=top_k, exclude_seen=settings.exclude_seen)
        item_ids += recommendations.item_ids
        scores += recommendations.scores
        num_unknown += recommendations.num_unknown
        visited += recommendations.num_visited or []
        distinct += recommendations.num_distinct or []
    return Recommendations(
        item_ids=item_ids,
        scores=scores,
        num_unknown=num_unknown,
        num_visited=visited or None,
        num_distinct=distinct or None,
    )


def _num_distinct_items(histories: list[list[str]], catalog: list[str]) -> NDArray[np.int64]:
    lengths = np.fromiter(map(len, histories), dtype=np.int64, count=len(histories))
    items = pd.Index(catalog).get_indexer(np.array([item for history in histories for item in history], dtype=object))
    pairs = pd.DataFrame({"user": np.repeat(np.arange(len(histories)), lengths), "item": items})
    users = pairs[pairs["item"] >= 0].drop_duplicates()["user"].to_numpy()
    return np.bincount(users, minlength=len(histories))


def _fit_baselines(prepared: PreparedDataset, *, seed: int) -> tuple[dict[str, Recommender], dict[str, Any]]:
    knn = ItemKNN.tune(prepared, seed=seed)
    systems: dict[str, Recommender] = {"popularity": Popularity.fit(prepared), "item_knn": knn}
    return systems, {"item_knn": {"alpha": knn.alpha, "decay": knn.decay, "tuned_on": "validation"}}
