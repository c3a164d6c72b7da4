"""
A recommender and prepared data in, an evaluation record out: the only file that knows a protocol.

Full ranking at item level, one target per user, every user in the denominator. A record is a dict that goes to JSON as
it stands; cards, tables and results pages are made from it. Beside it stands a table with one row per user.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
from accelerate import Accelerator
from numpy.typing import NDArray

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.evaluation.baselines import BASELINES
from hf_genrec.evaluation.baselines.base import sampled_users
from hf_genrec.evaluation.lists import history_matrix, is_invalid_list, item_indices, list_values, unit_columns
from hf_genrec.evaluation.metrics import (
    PER_USER,
    bootstrap_interval,
    corrected_ndcg_per_user,
    corrected_recall_per_user,
    ndcg_at_k,
    rank_ids,
    ranks_of_targets,
    recall_at_k,
    shared_id_groups,
)
from hf_genrec.evaluation.ranked_lists import RankedLists, check_search, length_for_shared_ids, rank_both_ways
from hf_genrec.evaluation.record import COLUMNS
from hf_genrec.serving.recommendations import Recommender


logger = logging.getLogger(__name__)

DEFAULT_KS = (1, 5, 10, 20)
_CHUNK_CELLS = 2**25  # exact scores at a time
_RANKS = ("rank", *(f"{column}_rank" for column in COLUMNS.values()))


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
        exclude_seen (`bool` or `"auto"`, *optional*, defaults to `False`):
            Whether the record's first column leaves items of the history out of the lists; the published protocols
            do not. `"auto"` does where the training part has (almost) no repeats, see
            [`~hf_genrec.data.prepared.PreparedDataset.has_repeats`]. The other column is measured too.
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
    exclude_seen: bool | Literal["auto"] = False
    confidence: float = 0.95
    exact_sample: int = 0
    show_progress: bool = False

    def __post_init__(self) -> None:
        if min(self.ks, default=0) < 1:
            raise ValueError(f"`ks` must hold cut-offs of at least 1, got {tuple(self.ks)}.")
        if self.max_users is not None and self.max_users < 1:
            raise ValueError(f"`max_users` must be at least 1 or None, got {self.max_users}.")
        if self.exclude_seen not in (True, False, "auto"):
            raise ValueError(f"`exclude_seen` must be True, False or 'auto', got {self.exclude_seen!r}.")
        if self.exact_sample < 0:
            raise ValueError(f"`exact_sample` must be at least 0, got {self.exact_sample}.")


class EvaluationRecord(dict[str, Any]):
    """
    What [`evaluate`] measured: a dict that goes to JSON, and in `users` a table with one row per user.

    In the order of the split: `rank` (0-based position of the target, -1 if it is not among the first `max(ks)`),
    `num_train` (how often the target occurs in the training part), `history_length`, where ids are shared `id_rank`,
    `group_start` and `group_size` (see [`IdRanks`]), `rank_NAME` of each baseline, and `seen_excluded_rank`,
    `seen_excluded_rank_NAME` of the other column (`seen_allowed_...` where the first one excludes them), all int32;
    `user_id` and `target`, strings.
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
    on_result: Callable[[EvaluationRecord], object] | None = None,
    accelerator: Accelerator | None = None,
) -> EvaluationRecord:
    """
    A model and its baselines on the users of one split, with seen items allowed and with seen items excluded.

    A list that is short, repeats an item or holds a foreign id is invalid and counted; its user stays in every
    denominator. A baseline that fails is logged and left out; the record says why.

    Args:
        recommender ([`Recommender`]): A model or a baseline.
        data ([`PreparedDataset`]): The data set.
        settings ([`EvaluationSettings`], *optional*): How; `None` for the defaults.
        baselines (`dict[str, Recommender]`, *optional*):
            Recommenders by name, `{}` for none. `None` fits those of [`hf_genrec.evaluation.baselines`], tuned on
            the validation split for each of the two columns; and of a model with two heads each head alone.
        run (`dict`, *optional*): What else the record keeps, such as the command and the minutes of training.
        on_result (`Callable`, *optional*):
            Called with the record so far after the model and after each baseline, to write it down; of several
            processes only in the main one.
        accelerator (`accelerate.Accelerator`, *optional*):
            Divides the users among its processes, which all call this function and all get the record. The figures are
            those of one process, `seconds_per_user` adds up the time of all. On CPUs `Accelerator(cpu=True)`.

    Returns:
        [`EvaluationRecord`]: `protocol`, `split`, `num_users`, `num_items`, `fingerprint` of the data, `repeat_rate`,
        `cold_items`, the settings, `baseline_settings` (with the `error` of a baseline that failed), `run`, and
        `model` and `baselines` (by name) with what the room's README explains:

        - `recall@k`, `ndcg@k`, `mrr@k` for each cut-off, and `intervals` with `[low, high]` for them;
        - of the first 10 items `coverage@10`, `gini@10`, `novelty@10`, `diversity@10`, `popularity_lift@10`, `None`
          where no user has a value; `by_popularity`: recall and ndcg by how often the target occurs in training;
        - `invalid_rate`, `num_unknown` (history entries that are no items), `seconds_per_user` (of the lists asked
          for, which may be longer than `max(ks)`); `num_visited` (items scored) and `distinct_items` (among the
          beams), the means over users, where the recommender reports them;
        - where items share an id, in the column with seen items: `corrected` and `id_level` with `recall@k` and
          `ndcg@k`, and `num_id_truncated`, users whose list had neither the target's id nor 10 distinct ids;
        - `exact_gap` if it was asked for: `num_users`, `ndcg@10` of the lists, `exact_ndcg@10` of exact scores, and
          `overlap@10`, the share of the best 10 items that the lists hold;
        - `seen_excluded` (or `seen_allowed`, where `exclude_seen` is set): all of this in the other column.

    Raises:
        ValueError: If the split has no users, the recommender searches with fewer beams than the lists have items, or
            exact scores are asked of a recommender without `score_items` or with search options that rank by
            something else.

    Example: the room's README.
    """
    settings = settings or EvaluationSettings()
    if settings.exclude_seen == "auto":
        settings = replace(settings, exclude_seen=not data.has_repeats)
    task = _Task.of(data, settings, accelerator, reads_times=getattr(recommender, "reads_times", False))
    both = (False, True)
    record = _head(task, data, settings) | ({} if run is None else {"run": dict(run)})
    record["model"], columns = _evaluate(dict.fromkeys(both, recommender), task, settings)
    names = {"user_id": task.user_ids, "target": task.target_ids}
    others = replace(settings, batch_size=4096, exact_sample=0, show_progress=False)
    given = _heads_of(recommender) if baselines is None else baselines
    for name in [None, *given, *(BASELINES if baselines is None else ())]:
        if name is not None:
            try:
                if name in given:
                    systems: Mapping[bool, Any] = dict.fromkeys(both, given[name])
                else:
                    systems = BASELINES[name].for_columns(data, seed=settings.seed)
                    record["baseline_settings"] |= _settings_of(name, systems, bool(settings.exclude_seen))
                record["baselines"][name], found = _evaluate(systems, task, others)
            except (MemoryError, RuntimeError, ValueError) as error:
                logger.warning("The baseline %s failed and is left out: %s: %s", name, type(error).__name__, error)
                record["baseline_settings"][name] = {"error": f"{type(error).__name__}: {error}"}
            else:
                columns |= {f"{key}_{name}": ranks for key, ranks in found.items() if key in _RANKS}
        arrays = {key: pa.array(column, pa.int32()) for key, column in columns.items()}
        result = EvaluationRecord(record, pa.table(arrays | names))
        if on_result is not None and (accelerator is None or accelerator.is_main_process):
            on_result(result)
    return result


def _heads_of(recommender: Any) -> dict[str, Any]:
    """Each head alone of a model whose lists are by both of them."""
    config: Any = getattr(recommender, "config", None)
    if not getattr(config, "dense_weight", 0) or config.decoding == "dense":
        return {}
    options: dict[str, dict[str, Any]] = {"generator": {"dense_weight": 0.0}, "dense_head": {"decoding": "dense"}}
    return {
        name: type(recommender)(recommender.model, recommender.items, config=config.updated(**changes))
        for name, changes in options.items()
    }


def _head(task: _Task, data: PreparedDataset, settings: EvaluationSettings) -> dict[str, Any]:
    """A record before anything was measured."""
    cold = data.metadata.get("cold_items")
    kept = ("split", "max_history_length", "max_users", "seed", "exclude_seen", "confidence")
    return {
        "protocol": data.metadata["protocol"],
        "num_users": len(task.targets),
        "num_items": len(task.item_ids),
        "fingerprint": data.fingerprint,
        "repeat_rate": data.repeat_rate,
        "cold_items": cold and {name: cold[name] for name in ("share", "num_items")},
        "top_k": max(settings.ks),
        **{name: getattr(settings, name) for name in kept},
        "model": {},
        "baselines": {},
        "baseline_settings": {},
    }


def _settings_of(name: str, systems: Mapping[bool, Any], exclude_seen: bool) -> dict[str, Any]:
    """What was chosen on the validation split, for the first column and for the other one."""
    chosen = {column: system.settings for column, system in systems.items()}
    if not chosen[exclude_seen]:
        return {}
    others = {COLUMNS[not exclude_seen]: chosen[not exclude_seen]}
    return {name: {**chosen[exclude_seen], "tuned_on": "validation", **others}}


@dataclass(frozen=True)
class _Task:
    """The users and what the metrics need of the training part: computed once for all systems, items as indices."""

    user_ids: list[str]
    histories: list[list[str]]
    times: list[list[int] | None] | None  # of the histories, where there are any and the model reads them
    target_ids: list[str]
    item_ids: pd.Index
    targets: NDArray[np.int64]  # (num_users,)
    num_train: NDArray[np.int64]  # (num_users,), of each target
    taken: sp.csr_array  # (num_users, num_items), of the histories
    counts: NDArray[np.int64]  # (num_items,), in the training part
    items: sp.csc_array  # (num_train_users, num_items), vectors of length 1, of the training part
    accelerator: Accelerator | None  # of the processes that share the users

    @classmethod
    def of(
        cls, data: PreparedDataset, settings: EvaluationSettings, accelerator: Accelerator | None, *, reads_times: bool
    ) -> _Task:
        rows = data.split(settings.split)
        if len(rows) == 0:
            raise ValueError(f"The {settings.split!r} split has no users: there is nothing to evaluate.")
        rows = sampled_users(rows, max_users=settings.max_users, seed=settings.seed)
        table = rows.with_format("arrow")[:]  # row by row it takes ten times as long
        histories, target_ids = table["history"].to_pylist(), table["target"].to_pylist()
        times = table["timestamps"].to_pylist() if reads_times and "timestamps" in table.column_names else None
        item_ids = pd.Index(data.item_ids)
        if settings.max_history_length is not None:
            histories = [history[-settings.max_history_length :] for history in histories]
            times = times and [row and row[-settings.max_history_length :] for row in times]
        targets, counts = item_indices([target_ids], item_ids=item_ids)[0], data.train_item_counts()
        return cls(
            user_ids=table["user_id"].to_pylist(),
            histories=histories,
            times=times,
            target_ids=target_ids,
            item_ids=item_ids,
            targets=targets,
            num_train=np.where(targets >= 0, counts[targets], 0),
            taken=history_matrix(histories, item_ids=item_ids),
            counts=counts,
            items=unit_columns(data.interaction_matrix()),
            accelerator=accelerator,
        )


def _evaluate(
    systems: Mapping[bool, Any], task: _Task, settings: EvaluationSettings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    The metrics of one system with its columns of the table of users.

    `systems` has the recommender by whether seen items are excluded, which is the same for both unless it was tuned.
    """
    first, top_k = bool(settings.exclude_seen), max(settings.ks)
    for system in systems.values():
        check_search(system, min(top_k, len(task.item_ids)), is_exact=settings.exact_sample > 0)
    table: Any = getattr(systems[False], "items", None)  # a model's table; baselines have none
    groups = shared_id_groups(table) if isinstance(table, pa.Table) else None
    lengths = {False: top_k if groups is None else length_for_shared_ids(systems[False], top_k), True: top_k}
    found = rank_both_ways(
        systems,
        task.histories,
        lengths,
        times=task.times if getattr(systems[False], "reads_times", False) else None,
        batch_size=settings.batch_size,
        show_progress=settings.show_progress,
        accelerator=task.accelerator,
    )
    measured = {column: _measure(found[column], task, settings, exclude_seen=column) for column in lengths}
    if groups is not None:
        shared = _shared_ids(found[False], lengths[False], table["item_id"].to_pylist(), groups, task, settings)
        for own, added in zip(measured[False], shared, strict=True):
            own |= added
    if settings.exact_sample:
        lists = item_indices(found[first].item_ids, item_ids=task.item_ids, k=min(10, top_k))
        measured[first][0]["exact_gap"] = _exact_gap(systems[first], task, lists, settings)
    (metrics, columns), (of_other, other_columns) = measured[first], measured[not first]
    other = COLUMNS[not first]
    columns |= {"num_train": task.num_train, "history_length": list(map(len, task.histories))}
    return metrics | {other: of_other}, columns | {f"{other}_{name}": ranks for name, ranks in other_columns.items()}


def _measure(
    found: RankedLists, task: _Task, settings: EvaluationSettings, *, exclude_seen: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    top_k = max(settings.ks)
    list_k = min(10, top_k)
    lists = item_indices(found.item_ids, item_ids=task.item_ids, k=top_k)  # (B, top_k), -1 where there is no item
    ranks = np.where(task.targets >= 0, ranks_of_targets(lists, task.targets), -1)
    lengths = np.minimum([len(row) for row in found.item_ids], top_k)
    num_allowed = len(task.item_ids) - ((task.taken > 0).sum(axis=1) if exclude_seen else 0)
    values = {f"{name}@{k}": metric(ranks, k=k) for name, metric in PER_USER.items() for k in settings.ks}
    metrics = _means(values) | {
        "intervals": _intervals(values, settings),
        "invalid_rate": float(is_invalid_list(lists, lengths, expected=np.minimum(top_k, num_allowed)).mean()),
        "num_unknown": found.num_unknown,
        "seconds_per_user": found.seconds / len(ranks),
        **list_values(lists[:, :list_k], task.taken, counts=task.counts, items=task.items, k=list_k),
        "by_popularity": _by_popularity(ranks, task.num_train, k=list_k),
    }
    return metrics | found.means(), {"rank": ranks}


def _shared_ids(
    found: RankedLists,
    length: int,
    own_ids: list[str],
    groups: NDArray[np.int64],
    task: _Task,
    settings: EvaluationSettings,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What [`_measure`] gives, of a model whose items share ids; `groups` are in the order of its own table."""
    asked = item_indices(found.item_ids, item_ids=own_ids, k=length)
    ids = rank_ids(asked, item_indices([task.target_ids], item_ids=own_ids)[0], groups=groups)
    spans, ks = (ids.group_start, ids.group_size), settings.ks
    corrected = {f"recall@{k}": corrected_recall_per_user(*spans, k=k) for k in ks}
    corrected |= {f"ndcg@{k}": corrected_ndcg_per_user(*spans, k=k) for k in ks}
    id_level = {f"{name}@{k}": PER_USER[name](ids.id_rank, k=k) for name in ("recall", "ndcg") for k in ks}
    metrics = {
        "corrected": _means(corrected) | {"intervals": _intervals(corrected, settings)},
        "id_level": _means(id_level),
        "num_id_truncated": int(((ids.id_rank < 0) & (ids.num_ids < min(10, max(ks)))).sum()),
    }
    return metrics, {"id_rank": ids.id_rank, "group_start": ids.group_start, "group_size": ids.group_size}


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
        some = users[start : start + num_chunk_users]
        more = {} if task.times is None else {"times": [task.times[user] for user in some]}
        scores = np.array(recommender.score_items(histories, **more))  # (B, num_items)
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


def _means(values: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    return {name: float(value.mean()) for name, value in values.items()}


def _intervals(values: Mapping[str, NDArray[np.float64]], settings: EvaluationSettings) -> dict[str, list[float]]:
    options: dict[str, Any] = {"confidence": settings.confidence, "seed": settings.seed}
    return {name: list(bootstrap_interval(value, **options)) for name, value in values.items()}
