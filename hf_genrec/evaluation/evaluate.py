"""
A recommender and prepared data in, an evaluation record out: the only file that knows a protocol.

Full ranking at item level, one target per user, every user in the denominator. A record is a dict that goes to JSON as
it stands; cards, tables and results pages are made from it. Beside it stands a table with one row per user.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.evaluation.baselines import ItemKNN, Popularity
from hf_genrec.evaluation.lists import history_matrix, is_invalid_list, item_cosines, item_indices, list_values
from hf_genrec.evaluation.metrics import (
    bootstrap_interval,
    mrr_per_user,
    ndcg_at_k,
    ndcg_per_user,
    ranks_of_targets,
    recall_at_k,
    recall_per_user,
)
from hf_genrec.evaluation.shared_ids import (
    IdRanks,
    corrected_ndcg_per_user,
    corrected_recall_per_user,
    rank_ids,
    shared_id_groups,
)
from hf_genrec.serving.recommendations import Recommendations, Recommender


DEFAULT_KS = (1, 5, 10, 20)
_PER_USER = {"recall": recall_per_user, "ndcg": ndcg_per_user, "mrr": mrr_per_user}
_CHUNK_CELLS = 2**25  # exact scores at a time
# Options of `recommend()` that rank by something else than `score_items()`, with the values that turn them off.
_OTHER_ORDERS: dict[str, Any] = {
    "prior_correction": 0, "item_prior": None, "diversity": 0, "num_groups": 1, "sample_seed": None
}  # fmt: skip
# Options under which the first items of a longer list need not be those of a shorter one.
_BY_LENGTH: dict[str, Any] = {"diversity": 0, "num_rescored": 0, "num_groups": 1, "sample_seed": None}


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """
    How a recommender is evaluated.

    Args:
        split (`str`, *optional*, defaults to `"test"`):
            `"test"` or `"validation"`. At test time the history holds the validation item.
        ks (`tuple[int, ...]`, *optional*, defaults to `(1, 5, 10, 20)`):
            Cut-offs, each at least 1; lists of `max(ks)` items are asked for. Properties of whole lists are those of
            the first 10 items, or of `max(ks)` if that is smaller.
        max_history_length (`int`, *optional*):
            Hand over only the latest items of each history; `None` leaves cutting to the recommender.
        batch_size (`int`, *optional*, defaults to 256): Users per call of the recommender.
        max_users (`int`, *optional*): Size of a sample of users, the same for all systems; `None` for all.
        seed (`int`, *optional*, defaults to 0): Seed of the samples and of the bootstrap.
        exclude_seen (`bool`, *optional*, defaults to `False`):
            Whether items of the history may not be recommended; the published protocols do not exclude them.
        confidence (`float`, *optional*, defaults to 0.95): Confidence of the bootstrap intervals over users.
        exact_sample (`int`, *optional*, defaults to 0):
            Score the whole catalog exactly for a sample of this many users and report how far the search is from it.
        show_progress (`bool`, *optional*, defaults to `False`): Whether a progress bar is shown.

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


class EvaluationRecord(dict[str, Any]):
    """
    What [`evaluate`] measured: a dict that goes to JSON, and in `users` a table with one row per user.

    Args:
        content (`dict`): The record.
        users (`pa.Table`):
            In the order of the split: `rank` (0-based position of the target, -1 if it is not among the first
            `max(ks)`), `num_train` (how often the target occurs in the training part), `history_length`, where ids are
            shared `id_rank`, `group_start` and `group_size` (see [`IdRanks`]), and `rank_NAME` of each baseline, all
            int32; `user_id` and `target`, strings.
    """

    def __init__(self, content: Mapping[str, Any], users: pa.Table) -> None:
        super().__init__(content)
        self.users = users


def evaluate(
    recommender: Recommender,
    data: PreparedDataset,
    settings: EvaluationSettings | None = None,
    *,
    baselines: Mapping[str, Recommender] | None = None,
    run: Mapping[str, Any] | None = None,
) -> EvaluationRecord:
    """
    A model and its baselines on the users of one split.

    A list that is short, repeats an item or holds a foreign id is invalid and counted; its user stays in every
    denominator.

    Args:
        recommender ([`Recommender`]): A model or a baseline.
        data ([`PreparedDataset`]): The data set.
        settings ([`EvaluationSettings`], *optional*): How; `None` for the defaults.
        baselines (`dict[str, Recommender]`, *optional*):
            Recommenders by name, `{}` for none. `None` fits popularity and item-kNN, the latter tuned on the
            validation split.
        run (`dict`, *optional*): What else the record keeps, such as the command and the minutes of training.

    Returns:
        [`EvaluationRecord`]: `protocol`, `split`, `num_users`, `num_items`, `fingerprint` of the data, `cold_items`
        (`share` and `num_items` of those held out of training, or `None`), the settings, `baseline_settings`, `run`
        where it was given, and `model` and `baselines` (by name) with

        - `recall@k`, `ndcg@k` and `mrr@k` for each cut-off, and `intervals` with `[low, high]` for them;
        - `invalid_rate`, `num_unknown` (history entries that are no items), `seconds_per_user` (of the lists asked
          for, which may be longer than `max(ks)`, see below);
        - of the lists' first 10 items `coverage@10`, `gini@10`, `novelty@10`, `diversity@10`, `popularity_lift@10`,
          see [`hf_genrec.evaluation.lists`]; `None` where no user has a value;
        - `by_popularity`: recall and ndcg by how often the target occurs in the training part;
        - `num_visited`, the mean number of items that were scored, and `distinct_items`, that of distinct items
          among the beams, where the recommender reports them;
        - where several items share an id and seen items are not excluded: `corrected` and `id_level`, each with
          `recall@k` and `ndcg@k` and the former with `intervals`, see [`hf_genrec.evaluation.shared_ids`], and
          `num_id_truncated`, users whose list had neither the target's id nor 10 distinct ids. Longer lists are asked
          for then, where that does not change the search;
        - `exact_gap` if it was asked for: `num_users`, `ndcg@10` of the lists and `exact_ndcg@10` of exact scores for
          them, and `overlap@10`, the share of the best 10 items that the lists hold.

    Raises:
        ValueError: If the split has no users, the recommender searches with fewer beams than the lists have items, or
            exact scores are asked of a recommender without `score_items` or with search options that rank by
            something else.

    Example: the room's README.
    """
    settings = settings or EvaluationSettings()
    task = _Task.of(data, settings)
    model, columns = _evaluate(recommender, task, settings)
    systems, baseline_settings = _fit_baselines(data, seed=settings.seed) if baselines is None else (baselines, {})
    others = replace(settings, batch_size=4096, exact_sample=0, show_progress=False)
    values = {}
    for name, system in systems.items():
        values[name], found = _evaluate(system, task, others)
        columns[f"rank_{name}"] = found["rank"]
    table = {name: pa.array(column, pa.int32()) for name, column in columns.items()}
    cold = data.metadata.get("cold_items")
    kept = ("split", "max_history_length", "max_users", "seed", "exclude_seen", "confidence")
    record = {
        "protocol": data.metadata["protocol"],
        "num_users": len(task.targets),
        "num_items": len(task.item_ids),
        "fingerprint": data.fingerprint,
        "cold_items": cold and {name: cold[name] for name in ("share", "num_items")},
        "top_k": max(settings.ks),
        **{name: getattr(settings, name) for name in kept},
        "model": model,
        "baselines": values,
        "baseline_settings": baseline_settings,
    }
    return EvaluationRecord(
        record if run is None else record | {"run": dict(run)},
        pa.table(table | {"user_id": task.user_ids, "target": task.target_ids}),
    )


def _deprecated(name: str, take: Callable[[EvaluationRecord], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """An entry point of earlier versions, with the settings as keyword arguments."""

    def call(recommender: Recommender, prepared: PreparedDataset, **options: Any) -> dict[str, Any]:
        warnings.warn(f"`{name}` will be removed: call `evaluate(recommender, data)`.", FutureWarning, stacklevel=2)
        others = {key: options.pop(key) for key in ("baselines", "run") if key in options}
        others |= {"baselines": {}} if name == "evaluate_recommender" else {}
        return take(evaluate(recommender, prepared, EvaluationSettings(**options), **others))

    call.__name__, call.__doc__ = name, f"Use [`evaluate`]; `{name}` is the earlier name and warns."
    return call


evaluate_recommender = _deprecated("evaluate_recommender", lambda record: record["model"])
evaluation_record = _deprecated("evaluation_record", dict)


@dataclass(frozen=True)
class _Task:
    """The users and what the metrics need of the training part: computed once for all systems, items as indices."""

    user_ids: list[str]
    histories: list[list[str]]
    target_ids: list[str]
    item_ids: list[str]
    targets: NDArray[np.int64]  # (num_users,)
    num_train: NDArray[np.int64]  # (num_users,), of each target
    taken: sp.csr_array  # (num_users, num_items), of the histories
    counts: NDArray[np.int64]  # (num_items,), in the training part
    cosines: sp.csr_array  # (num_items, num_items), in the training part

    @classmethod
    def of(cls, data: PreparedDataset, settings: EvaluationSettings) -> _Task:
        rows = data.split(settings.split)
        if len(rows) == 0:
            raise ValueError(f"The {settings.split!r} split has no users: there is nothing to evaluate.")
        if settings.max_users is not None and settings.max_users < len(rows):
            generator = np.random.default_rng(settings.seed)
            rows = rows.select(np.sort(generator.choice(len(rows), size=settings.max_users, replace=False)))
        histories, target_ids, item_ids = list(rows["history"]), list(rows["target"]), data.item_ids
        if settings.max_history_length is not None:
            histories = [history[-settings.max_history_length :] for history in histories]
        targets, counts = item_indices([target_ids], item_ids=item_ids)[0], data.train_item_counts()
        return cls(
            user_ids=list(rows["user_id"]),
            histories=histories,
            target_ids=target_ids,
            item_ids=item_ids,
            targets=targets,
            num_train=np.where(targets >= 0, counts[targets], 0),
            taken=history_matrix(histories, item_ids=item_ids),
            counts=counts,
            cosines=item_cosines(data.interaction_matrix(item_ids)),
        )


def _evaluate(
    recommender: Recommender, task: _Task, settings: EvaluationSettings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics of one system, and its columns of the table of users."""
    top_k = max(settings.ks)
    list_k = min(10, top_k)
    _check_search(recommender, min(top_k, len(task.item_ids)), is_exact=settings.exact_sample > 0)
    table: Any = getattr(recommender, "items", None)  # a model's table; baselines have none
    groups = shared_id_groups(table) if isinstance(table, pa.Table) and not settings.exclude_seen else None
    length = top_k if groups is None else _length_to_ask_for(recommender, top_k)
    start = time.perf_counter()
    found = _recommend_in_batches(recommender, task.histories, length, settings)
    seconds = time.perf_counter() - start
    asked = item_indices(found.item_ids, item_ids=task.item_ids, k=length)  # (B, length), -1 where there is no item
    lists = asked[:, :top_k]
    ranks = np.where(task.targets >= 0, ranks_of_targets(lists, task.targets), -1)
    lengths = np.minimum([len(row) for row in found.item_ids], top_k)
    num_allowed = len(task.item_ids) - ((task.taken > 0).sum(axis=1) if settings.exclude_seen else 0)
    values = {f"{name}@{k}": metric(ranks, k=k) for name, metric in _PER_USER.items() for k in settings.ks}
    metrics = _means(values) | {
        "intervals": _intervals(values, settings),
        "invalid_rate": float(is_invalid_list(lists, lengths, expected=np.minimum(top_k, num_allowed)).mean()),
        "num_unknown": found.num_unknown,
        "seconds_per_user": seconds / len(ranks),
        **list_values(lists[:, :list_k], task.taken, counts=task.counts, cosines=task.cosines, k=list_k),
        "by_popularity": _by_popularity(ranks, task.num_train, k=list_k),
    }
    reported = {"num_visited": found.num_visited, "distinct_items": found.num_distinct}
    metrics |= {name: float(np.mean(counts)) for name, counts in reported.items() if counts is not None}
    columns = {"rank": ranks, "num_train": task.num_train, "history_length": list(map(len, task.histories))}
    if groups is not None:
        own, targets = table["item_id"].to_pylist(), task.targets
        if own != task.item_ids:  # `groups` are in the order of the model's table
            asked = item_indices(found.item_ids, item_ids=own, k=length)
            targets = item_indices([task.target_ids], item_ids=own)[0]
        ids = rank_ids(asked, targets, groups=groups)
        metrics |= _shared_id_values(ids, settings, k=list_k)
        columns |= {"id_rank": ids.id_rank, "group_start": ids.group_start, "group_size": ids.group_size}
    if settings.exact_sample:
        metrics["exact_gap"] = _exact_gap(recommender, task, lists[:, :list_k], settings)
    return metrics, columns


def _recommend_in_batches(
    recommender: Recommender, histories: list[list[str]], top_k: int, settings: EvaluationSettings
) -> Recommendations:
    parts = []
    starts = range(0, len(histories), settings.batch_size)
    for start in tqdm(starts, desc="Evaluating", disable=not settings.show_progress):
        batch = histories[start : start + settings.batch_size]
        parts.append(recommender.recommend(batch, top_k=top_k, exclude_seen=settings.exclude_seen))
    return Recommendations(
        item_ids=[row for part in parts for row in part.item_ids],
        scores=[row for part in parts for row in part.scores],
        num_unknown=sum(part.num_unknown for part in parts),
        num_visited=[count for part in parts for count in part.num_visited or []] or None,
        num_distinct=[count for part in parts for count in part.num_distinct or []] or None,
    )


def _shared_id_values(ids: IdRanks, settings: EvaluationSettings, *, k: int) -> dict[str, Any]:
    spans = (ids.group_start, ids.group_size)
    corrected = {f"recall@{cut}": corrected_recall_per_user(*spans, k=cut) for cut in settings.ks}
    corrected |= {f"ndcg@{cut}": corrected_ndcg_per_user(*spans, k=cut) for cut in settings.ks}
    id_level = {f"recall@{cut}": recall_per_user(ids.id_rank, k=cut) for cut in settings.ks}
    id_level |= {f"ndcg@{cut}": ndcg_per_user(ids.id_rank, k=cut) for cut in settings.ks}
    return {
        "corrected": _means(corrected) | {"intervals": _intervals(corrected, settings)},
        "id_level": _means(id_level),
        "num_id_truncated": int(((ids.id_rank < 0) & (ids.num_ids < k)).sum()),
    }


def _exact_gap(
    recommender: Any, task: _Task, lists: NDArray[np.int64], settings: EvaluationSettings
) -> dict[str, float | int]:
    """The first `k` of `lists` against those of exact scores; equal scores stand in the order of the model's items."""
    if not hasattr(recommender, "score_items"):
        raise ValueError(
            f"`exact_sample` needs a recommender with `score_items`, a loaded model; {type(recommender).__name__} has "
            "none."
        )
    k, size = lists.shape[1], min(settings.exact_sample, len(task.targets))
    users = np.sort(np.random.default_rng(settings.seed).choice(len(task.targets), size=size, replace=False))
    own = list(recommender.item_ids)
    index_of_column = item_indices([own], item_ids=task.item_ids)[0]
    best = np.empty((size, min(k, len(own))), dtype=np.int64)
    num_chunk_users = max(1, _CHUNK_CELLS // len(own))
    for start in range(0, size, num_chunk_users):
        histories = [task.histories[user] for user in users[start : start + num_chunk_users]]
        scores = np.array(recommender.score_items(histories))  # (B, num_items)
        if settings.exclude_seen:
            scores[history_matrix(histories, item_ids=own).nonzero()] = -np.inf
        columns = np.argsort(-scores, axis=1, kind="stable")[:, : best.shape[1]]
        best[start : start + num_chunk_users] = index_of_column[columns]
    found, targets = lists[users], task.targets[users]
    is_shared = ((best[:, :, None] == found[:, None, :]) & (best >= 0)[:, :, None]).any(axis=2)
    return {
        "num_users": size,
        f"ndcg@{k}": ndcg_at_k(ranks_of_targets(found, targets), k=k),
        f"exact_ndcg@{k}": ndcg_at_k(ranks_of_targets(best, targets), k=k),
        f"overlap@{k}": float(is_shared.mean()),
    }


_BUCKETS = {"0": 0, "1-5": 1, "6-10": 6, "11-15": 11, "16-20": 16, "21+": 21}  # and the least count in each


def _by_popularity(ranks: NDArray[np.int64], num_train: NDArray[np.int64], *, k: int) -> list[dict[str, Any]]:
    bucket_of = np.searchsorted(list(_BUCKETS.values()), num_train, side="right") - 1
    rows: list[dict[str, Any]] = []
    for number, bucket in enumerate(_BUCKETS):
        inside = ranks[bucket_of == number]
        if len(inside):
            values = {f"recall@{k}": recall_at_k(inside, k=k), f"ndcg@{k}": ndcg_at_k(inside, k=k)}
            rows.append({"bucket": bucket, "num_users": len(inside), **values})
    return rows


def _fit_baselines(data: PreparedDataset, *, seed: int) -> tuple[dict[str, Recommender], dict[str, Any]]:
    knn = ItemKNN.tune(data, seed=seed)
    systems: dict[str, Recommender] = {"popularity": Popularity.fit(data), "item_knn": knn}
    return systems, {"item_knn": {"alpha": knn.alpha, "decay": knn.decay, "tuned_on": "validation"}}


def _means(values: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    return {name: float(value.mean()) for name, value in values.items()}


def _intervals(values: Mapping[str, NDArray[np.float64]], settings: EvaluationSettings) -> dict[str, list[float]]:
    options: dict[str, Any] = {"confidence": settings.confidence, "seed": settings.seed}
    return {name: list(bootstrap_interval(value, **options)) for name, value in values.items()}


def _check_search(recommender: Any, top_k: int, *, is_exact: bool) -> None:
    num_beams = _num_beams(recommender)
    if num_beams is not None and num_beams < top_k:
        # the search would be widened for some users, and its numbers would belong to no width
        raise ValueError(
            f"The recommender searches with {num_beams} beams, fewer than the {top_k} items that `ks` asks for: "
            f"`recommend` would widen the search, and the numbers would not be those of {num_beams} beams. Give it at "
            f"least {top_k} (`num_beams`, `--beams`), or smaller `ks`."
        )
    others = _set_of(_OTHER_ORDERS, recommender) if is_exact else []
    if others:
        raise ValueError(
            f"`exact_sample` compares the lists with exact scores, and {', '.join(f'`{name}`' for name in others)} of "
            "the search options rank by something else: the gap would not be the search's. Leave out one or the other."
        )


def _length_to_ask_for(recommender: Any, top_k: int) -> int:
    """
    Lists as long as they may be without another search: the first `top_k` distinct ids need more items than `top_k`.

    Beams without latents are as many ids; with latents several may be one id, and longer lists would widen the search.
    Diverse lists, groups, samples and re-scored items depend on the length, so with these no more than `top_k` items
    are asked for, and more users have fewer distinct ids than that.
    """
    if _set_of(_BY_LENGTH, recommender):
        return top_k
    num_beams = _num_beams(recommender)
    if num_beams is not None:
        length = top_k if getattr(recommender.model.config, "num_latent_tokens", 0) else num_beams
    else:
        length = 5 * top_k if getattr(recommender, "decoding", None) == "exact" else top_k
    return max(top_k, min(length, recommender.items.num_rows))


def _num_beams(recommender: Any) -> int | None:
    """Width of a model's beam search; `None` for other recommenders."""
    if getattr(recommender, "decoding", None) != "beam":
        return None
    return recommender.num_beams


def _set_of(neutral: Mapping[str, Any], recommender: Any) -> list[str]:
    """Which of these options differ from the values that turn them off."""
    options = getattr(recommender, "search_options", None) or {}
    given = {name: options[name] for name in neutral if options.get(name) is not None}
    return [name for name, value in given.items() if neutral[name] is None or value != neutral[name]]
