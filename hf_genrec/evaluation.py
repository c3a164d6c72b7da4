"""
A recommender and a split in, an evaluation record out: the only file that knows a protocol.

Full ranking at item level, one target per user, every user in the denominator. A record is a plain dict that goes to
JSON as it stands; cards, tables and results pages are made from it.
"""

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_genrec.baselines import ItemKNN, Popularity
from hf_genrec.interactions import PreparedDataset
from hf_genrec.metrics import bootstrap_interval, is_invalid_list, ndcg_per_user, ranks_of_targets, recall_per_user
from hf_genrec.recommendations import Recommendations, Recommender


DEFAULT_KS = (1, 5, 10, 20)


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
    show_progress: bool = False,
) -> dict[str, Any]:
    """
    Metrics of one recommender on one split.

    The recommender is asked for `max(ks)` items per user. A list that is short, repeats an item or holds a foreign id
    is invalid and counted; its user stays in every denominator. At test time the history holds the validation item.

    Args:
        recommender ([`Recommender`]):
            A model or a baseline.
        prepared ([`PreparedDataset`]):
            The data set.
        split (`str`, *optional*, defaults to `"test"`):
            `"test"` or `"validation"`.
        ks (`tuple[int, ...]`, *optional*, defaults to `(1, 5, 10, 20)`):
            Cut-offs, each at least 1.
        max_history_length (`int`, *optional*):
            Hand over only the latest items of each history. `None` hands over all of them and leaves cutting to the
            recommender.
        batch_size (`int`, *optional*, defaults to 256):
            Users per call of the recommender.
        max_users (`int`, *optional*):
            Evaluate a sample of this many users. `None` means all.
        seed (`int`, *optional*, defaults to 0):
            Seed of the sample and of the bootstrap.
        exclude_seen (`bool`, *optional*, defaults to `False`):
            Whether items of the history may not be recommended; the published protocols do not exclude them.
        confidence (`float`, *optional*, defaults to 0.95):
            Confidence of the bootstrap intervals over users.
        show_progress (`bool`, *optional*, defaults to `False`):
            Whether a progress bar is shown.

    Returns:
        `dict`: `recall@k` and `ndcg@k` for each cut-off, `invalid_rate`, `num_unknown` (history entries that are no
        items), `seconds_per_user`, `intervals` with `[low, high]` for each recall and ndcg, and `num_visited`, the
            mean number of items that were scored, where the recommender tells it.

    Raises:
        ValueError: If `ks` is empty or the split has no users.
    """
    top_k = max(ks, default=0)
    if top_k < 1:
        raise ValueError(f"`ks` must hold cut-offs of at least 1, got {tuple(ks)}.")
    rows = _sample(prepared.split(split), split, max_users, seed)
    histories, targets = list(rows["history"]), list(rows["target"])
    if max_history_length is not None:
        histories = [history[-max_history_length:] for history in histories]
    start = time.perf_counter()
    recommendations = _recommend_in_batches(recommender, histories, top_k, batch_size, exclude_seen, show_progress)
    seconds = time.perf_counter() - start
    ranks = ranks_of_targets(recommendations.item_ids, targets)
    catalog = prepared.item_ids
    num_excluded = _num_distinct_items(histories, catalog) if exclude_seen else None
    is_invalid = is_invalid_list(recommendations.item_ids, catalog=catalog, top_k=top_k, num_excluded=num_excluded)
    values = {f"recall@{k}": recall_per_user(ranks, k=k) for k in ks}
    values |= {f"ndcg@{k}": ndcg_per_user(ranks, k=k) for k in ks}
    intervals = {name: list(bootstrap_interval(v, confidence=confidence, seed=seed)) for name, v in values.items()}
    visited = recommendations.num_visited
    return {name: float(v.mean()) for name, v in values.items()} | {
        "invalid_rate": float(is_invalid.mean()),
        "num_unknown": recommendations.num_unknown,
        "seconds_per_user": seconds / len(targets),
        "intervals": intervals,
        **({} if visited is None else {"num_visited": float(np.mean(visited))}),
    }


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
    show_progress: bool = False,
) -> dict[str, Any]:
    """
    One model beside its baselines on the same users, as one JSON-ready object.

    Args:
        recommender ([`Recommender`]):
            The model.
        prepared ([`PreparedDataset`]):
            The data set.
        baselines (`dict[str, Recommender]`, *optional*):
            Recommenders by name. `None` fits popularity and item-kNN, the latter tuned on the validation split.
        run (`dict`, *optional*):
            What else the record shall keep, such as the command, the seed and the minutes of training.
        split (`str`, *optional*, defaults to `"test"`):
            `"test"` or `"validation"`.
        ks (`tuple[int, ...]`, *optional*, defaults to `(1, 5, 10, 20)`):
            Cut-offs, each at least 1.
        max_history_length (`int`, *optional*):
            Hand over only the latest items of each history; `None` hands over all.
        batch_size (`int`, *optional*, defaults to 256):
            Users per call of the model.
        max_users (`int`, *optional*):
            Evaluate a sample of this many users, the same for all. `None` means all.
        seed (`int`, *optional*, defaults to 0):
            Seed of the sample and of the bootstrap.
        exclude_seen (`bool`, *optional*, defaults to `False`):
            Whether items of the history may not be recommended.
        confidence (`float`, *optional*, defaults to 0.95):
            Confidence of the intervals.
        show_progress (`bool`, *optional*, defaults to `False`):
            Whether a progress bar is shown for the model.

    Returns:
        `dict`: `protocol`, `split`, `num_users`, `num_items`, `fingerprint` of the data, the settings, `model` and
        `baselines` (name to metrics, see [`evaluate_recommender`]), and `run` where it was given.

    Raises:
        ValueError: If `ks` is empty or the split has no users.
    """
    settings: dict[str, Any] = {
        "split": split,
        "max_history_length": max_history_length,
        "max_users": max_users,
        "seed": seed,
        "exclude_seen": exclude_seen,
        "confidence": confidence,
    }

    def metrics_of(system: Recommender, *, size: int, is_shown: bool) -> dict[str, Any]:
        return evaluate_recommender(system, prepared, ks=ks, batch_size=size, show_progress=is_shown, **settings)

    model = metrics_of(recommender, size=batch_size, is_shown=show_progress)
    systems, baseline_settings = _fit_baselines(prepared, seed=seed) if baselines is None else (baselines, {})
    record = {
        "protocol": prepared.metadata["protocol"],
        "num_users": min(len(prepared.split(split)), max_users or len(prepared.split(split))),
        "num_items": len(prepared.item_ids),
        "fingerprint": prepared.fingerprint,
        "top_k": max(ks),
        **settings,
        "model": model,
        "baselines": {name: metrics_of(system, size=4096, is_shown=False) for name, system in systems.items()},
        "baseline_settings": baseline_settings,
    }
    return record if run is None else record | {"run": dict(run)}


def write_record(record: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """
    Write a record as JSON; a reader sees the old file or the whole new one, never a part.

    Args:
        record (`dict`):
            An evaluation record.
        path (`str` or `Path`):
            The file; its folder is created where it is missing.

    Raises:
        ValueError: If the record holds a NaN or an infinity, which JSON does not know.
    """
    target = Path(path)
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".record-") as folder:
        partial = Path(folder) / target.name
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)


def record_table(record: Mapping[str, Any], *, metrics: Sequence[str] | None = None) -> list[list[str]]:
    """
    A record as a table of strings: the header, the baselines, and the model last.

    Args:
        record (`dict`):
            What [`evaluation_record`] returned.
        metrics (`list[str]`, *optional*):
            The columns. `None` means every recall and ndcg of the record, then the invalid rate.

    Returns:
        `list[list[str]]`: rows of equal length, the first one the header. Each value is followed by its interval where
        it has one.

    Example:

    ```python
    >>> values = {"recall@5": 0.5, "invalid_rate": 0.0, "intervals": {"recall@5": [0.25, 0.75]}}
    >>> record = {"model": values, "baselines": {"popularity": values}}
    >>> for row in record_table(record):
    ...     row
    ['system', 'recall@5', 'invalid_rate']
    ['popularity', '0.5000 [0.2500, 0.7500]', '0.0000']
    ['model', '0.5000 [0.2500, 0.7500]', '0.0000']

    ```
    """
    columns = [*record["model"]["intervals"], "invalid_rate"] if metrics is None else list(metrics)
    systems = {**record["baselines"], "model": record["model"]}
    rows = [[name, *(_cell(values, column) for column in columns)] for name, values in systems.items()]
    return [["system", *columns], *rows]


def _cell(values: Mapping[str, Any], column: str) -> str:
    interval = values["intervals"].get(column)
    suffix = "" if interval is None else f" [{interval[0]:.4f}, {interval[1]:.4f}]"
    return f"{values[column]:.4f}{suffix}"


def _sample(rows: datasets.Dataset, split: str, max_users: int | None, seed: int) -> datasets.Dataset:
    if len(rows) == 0:
        raise ValueError(f"The {split!r} split has no users: there is nothing to evaluate.")
    if max_users is None or max_users >= len(rows):
        return rows
    if max_users < 1:
        raise ValueError(f"`max_users` must be at least 1 or None, got {max_users}.")
    return rows.select(np.sort(np.random.default_rng(seed).choice(len(rows), size=max_users, replace=False)))


def _recommend_in_batches(
    recommender: Recommender,
    histories: list[list[str]],
    top_k: int,
    batch_size: int,
    exclude_seen: bool,
    show_progress: bool,
) -> Recommendations:
    item_ids: list[list[str]] = []
    scores: list[list[float]] = []
    num_unknown = 0
    visited: list[int] = []
    for start in tqdm(range(0, len(histories), batch_size), desc="Evaluating", disable=not show_progress):
        batch = histories[start : start + batch_size]
        recommendations = recommender.recommend(batch, top_k=top_k, exclude_seen=exclude_seen)
        item_ids += recommendations.item_ids
        scores += recommendations.scores
        num_unknown += recommendations.num_unknown
        visited += recommendations.num_visited or []
    return Recommendations(item_ids=item_ids, scores=scores, num_unknown=num_unknown, num_visited=visited or None)


def _num_distinct_items(histories: list[list[str]], catalog: list[str]) -> NDArray[np.int64]:
    lengths = np.fromiter(map(len, histories), dtype=np.int64, count=len(histories))
    items = pd.Index(catalog).get_indexer(np.array([item for history in histories for item in history], dtype=object))
    pairs = pd.DataFrame({"user": np.repeat(np.arange(len(histories)), lengths), "item": items})
    users = pairs[pairs["item"] >= 0].drop_duplicates()["user"].to_numpy()
    return np.bincount(users, minlength=len(histories))


def _fit_baselines(
    prepared: PreparedDataset, *, seed: int
) -> tuple[dict[str, Recommender], dict[str, dict[str, float]]]:
    knn = ItemKNN.tune(prepared, seed=seed)
    systems: dict[str, Recommender] = {"popularity": Popularity.fit(prepared), "item_knn": knn}
    return systems, {"item_knn": {"alpha": knn.alpha, "decay": knn.decay}}
