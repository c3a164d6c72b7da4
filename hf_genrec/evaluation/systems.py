"""
Evaluation records and the results of their users in, systems out: a model with its seeds, or a baseline.
"""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from hf_genrec.evaluation.baselines import BASELINES as RANKERS
from hf_genrec.evaluation.metrics import (
    PER_USER,
    bootstrap_interval,
    corrected_ndcg_per_user,
    corrected_recall_per_user,
)
from hf_genrec.evaluation.record import COLUMNS, named_path, users_path


EVALUATION_NAME = "evaluation.json"
BASELINES = {name: ranker.title for name, ranker in RANKERS.items()} | {"sasrec": "SASRec"}  # as tables call them
# Results that differ in one of these are not comparable.
GROUP_FIELDS = (
    "protocol", "split", "fingerprint", "num_users", "num_items", "max_history_length", "max_users", "exclude_seen",
    "confidence",
)  # fmt: skip
# What of a `run`, beside its settings, makes a system another one.
_KINDS = (
    "system", "encoder", "policy", "num_levels", "codebook_size", "decoding", "num_beams", "latent_aggregation",
    "search_options",
)  # fmt: skip
_CORRECTED_PER_USER = {"recall": corrected_recall_per_user, "ndcg": corrected_ndcg_per_user}
_METRIC = re.compile(r"(recall|ndcg|mrr)@([1-9]\d*)")


@dataclass(frozen=True)
class StoredEvaluation:
    """One evaluation record and, where they were kept, the results of its users."""

    name: str | None  # what the system is to be called; `None` leaves it to the record
    source: str  # the file, for messages
    record: Mapping[str, Any]
    users: pd.DataFrame | None = None  # in the order of the split, see [`EvaluationRecord`]


@dataclass(frozen=True)
class System:
    """A model trained with one or several seeds, or a baseline."""

    name: str
    values: Mapping[str, Any]  # metrics as in an evaluation record, the mean over the runs
    deviations: Mapping[str, float] = field(default_factory=dict)  # standard deviation between seeds, by metric
    confidence: float | None = None  # of the intervals of several runs, which are computed when they are asked for
    seeds: Sequence[int] = ()
    sources: Sequence[str] = ()
    encoder: str | None = None
    ids: str | None = None  # collision policy and shape of the semantic IDs
    dtype: str | None = None  # that of the weights when they were measured
    is_baseline: bool = False
    runs: Sequence[Mapping[str, Any]] = ()  # the metrics of each run
    ranks: Sequence[NDArray[np.int64]] = ()  # of all users, per run; empty where they were not kept
    # Per run of `ranks` where items share an id: position of the first item with the target's id, and their number.
    groups: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]] | None] = ()

    def user_values(self, metric: str) -> NDArray[np.float64]:
        """
        Each user's value of a metric, the mean over the runs, of shape `(num_users,)`.

        Where several items share an id, recall and ndcg are the expectation over a random order of the items of an id:
        their order in the lists is that of the catalog, which no system found. Mrr is that of the lists.
        """
        groups = self.groups or [None] * len(self.ranks)
        return np.mean(
            [user_values(ranks, metric, group=group) for ranks, group in zip(self.ranks, groups, strict=True)], axis=0
        )

    def interval(self, metric: str) -> list[float] | None:
        """Lower and upper end over users: of one run as recorded, of the mean of several from their ranks."""
        if len(self.runs) < 2 or self.confidence is None:
            return self.values.get("intervals", {}).get(metric)
        if not self.ranks or not _METRIC.fullmatch(metric):
            return None
        as_listed = replace(self, groups=[])  # `values` are those of the lists, and so are their intervals
        return list(bootstrap_interval(as_listed.user_values(metric), confidence=self.confidence))

    def expected(self, metric: str) -> float:
        """What is compared: the mean over the runs of the `corrected` metric where a record has it."""
        return statistics.fmean(_expected(values, metric) for values in (self.runs or [self.values]))

    def by_seed(self, metric: str) -> dict[int, float]:
        """What [`~System.expected`] averages, by the seed of the run; empty without distinct seeds."""
        if len(set(self.seeds)) != len(self.runs):
            return {}
        return {seed: _expected(run, metric) for seed, run in zip(self.seeds, self.runs, strict=True)}


def load_evaluation(word: str | os.PathLike[str]) -> StoredEvaluation:
    """
    Read an evaluation record and the results of its users beside it (`FILE_users.parquet` of `FILE.json`).

    Args: a JSON file, or a run folder for its `evaluation.json`; `NAME=` before it names the system.
    """
    name, file = named_path(word)
    path = Path(file)
    if path.is_dir():
        path /= EVALUATION_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{path.parent} has no {EVALUATION_NAME}: run `hf-genrec evaluate` on it first.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    known = record if isinstance(record, dict) else {}
    missing = [key for key in (*GROUP_FIELDS, "seed", "model", "baselines") if key not in known]
    if missing:
        raise ValueError(f"{path} is no evaluation record: it lacks {', '.join(f'`{key}`' for key in missing)}.")
    users = load_users(users_path(path), num_users=record["num_users"])
    return StoredEvaluation(name, os.fspath(path), record, users)


def in_column(evaluation: StoredEvaluation, *, exclude_seen: bool) -> StoredEvaluation | None:
    """An evaluation with seen items allowed or excluded; `None` where not measured. Args: it, and which of the two."""
    record, users, column = evaluation.record, evaluation.users, COLUMNS[exclude_seen]
    if bool(record["exclude_seen"]) == exclude_seen:
        return evaluation
    if column not in record["model"]:
        return None
    baselines = {name: values[column] for name, values in record["baselines"].items() if column in values}
    if users is not None:
        own = {name: name.removeprefix(f"{column}_") for name in users if name.startswith(f"{column}_")}
        users = users.filter(["num_train", "history_length", *own]).rename(columns=own) if own else None
    record = {**record, "exclude_seen": exclude_seen, "model": record["model"][column], "baselines": baselines}
    return replace(evaluation, record=record, users=users)


def load_users(path: str | os.PathLike[str], *, num_users: int) -> pd.DataFrame | None:
    """The per-user results of a record without ids, `None` without a file. Args: the file, the number of users."""
    path = Path(path)
    if not path.is_file():
        return None
    users = pd.read_parquet(path).select_dtypes("integer")
    if "rank" not in users:
        raise ValueError(f"{path} holds no results of users: it lacks the column `rank`.")
    if len(users) != num_users:
        raise ValueError(f"{path} has {len(users):,} rows, but its record says {num_users:,} users: evaluate again.")
    return users


def user_values(
    ranks: ArrayLike, metric: str, *, group: tuple[ArrayLike, ArrayLike] | None = None
) -> NDArray[np.float64]:
    """
    One value per user of `recall@k`, `ndcg@k` or `mrr@k`.

    Args: 0-based rank of each target, the metric, and where items share an id the position of the first item with the
    target's id and how many have it: recall and ndcg are then the expectation over the order of these items.
    """
    found = _METRIC.fullmatch(metric)
    if found is None:
        raise ValueError(f"`metric` must be recall@k, ndcg@k or mrr@k, such as ndcg@10; got {metric!r}.")
    name, k = found[1], int(found[2])
    if group is not None and name in _CORRECTED_PER_USER:
        return _CORRECTED_PER_USER[name](*group, k=k)
    return PER_USER[name](ranks, k=k)


def group_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """
    What two records must share to be compared: `GROUP_FIELDS`, and the seed of a sample of users. Args: a record.
    """
    sample_seed = record["seed"] if record["max_users"] is not None else None
    return (*(str(record[name]) for name in GROUP_FIELDS), str(sample_seed))


def model_systems(evaluations: Sequence[StoredEvaluation]) -> list[System]:
    """The models of records, runs of one system together. Args: comparable evaluations; one name is one system."""
    groups: dict[str, list[StoredEvaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault(evaluation.name or seedless_key(evaluation.record, evaluation.source), []).append(evaluation)
    names = _names_of([group[0] for group in groups.values()])
    return [system_of(name, group) for name, group in zip(names, groups.values(), strict=True)]


_NO_SETTINGS = ("seed", "weights", "weights_with_seen")  # those of a sum of models are found, not set


def seedless_key(record: Mapping[str, Any], source: str) -> str:
    """
    A text that is equal for runs that differ in nothing but the seed.

    Args: an evaluation record, and its file, which stands for the settings of the training where it lacks them.
    """
    run = record.get("run", {})
    if "settings" not in run:
        return json.dumps({"source": source})
    settings = {name: value for name, value in run["settings"].items() if name != "seed"}
    for part in ("training", "model"):
        if isinstance(settings.get(part), Mapping):
            settings[part] = {name: value for name, value in settings[part].items() if name not in _NO_SETTINGS}
    kind = {name: run.get(name) for name in _KINDS} | {"dtype": _dtype_of(run)}
    return json.dumps([settings, kind], sort_keys=True)


def system_of(name: str, group: Sequence[StoredEvaluation]) -> System:
    """
    One system from the evaluations of its runs.

    Args: what it is called, and comparable evaluations, which a `ValueError` refuses where their dtypes differ.
    """
    dtypes = {_dtype_of(evaluation.record.get("run", {})): evaluation.source for evaluation in group}
    if len(dtypes) > 1:
        (dtype, source), (other_dtype, other_source) = list(dtypes.items())[:2]
        raise ValueError(
            f"Runs of {name} were measured with weights in {dtype} ({source}) and in {other_dtype} ({other_source}): "
            "evaluate all with one `--dtype`, or give these another name."
        )
    runs = [evaluation.record["model"] for evaluation in group]
    seeds = [evaluation.record.get("run", {}).get("seed") for evaluation in group]
    users = [evaluation.users for evaluation in group if evaluation.users is not None]
    if len(users) < len(group):
        users = []
    system = System(
        name,
        values=runs[0],
        seeds=[seed for seed in seeds if seed is not None],
        sources=[evaluation.source for evaluation in group],
        encoder=_encoder_of(group[0]),
        ids=_ids_of(group[0]),
        dtype=next(iter(dtypes)),
        is_baseline=_system_name(group[0]).partition(",")[0] in BASELINES.values(),
        runs=runs,
        ranks=[table["rank"].to_numpy(np.int64) for table in users],
        groups=[_groups_of(table) for table in users],
    )
    if len(group) == 1:
        return system
    values = _mean_of(runs)
    deviations = {key: statistics.stdev(run[key] for run in runs) for key in values if isinstance(values[key], float)}
    return replace(system, values=values, deviations=deviations, confidence=group[0].record["confidence"])


def baseline_systems(evaluations: Sequence[StoredEvaluation]) -> list[System]:
    """The baselines of records, with the ranks in the column `rank_NAME`. Args: comparable evaluations."""
    return [
        System(
            BASELINES.get(key, key),
            values,
            sources=[own.source],
            is_baseline=True,
            ranks=[] if own.users is None else list(own.users.filter([f"rank_{key}"]).to_numpy(np.int64).T),
        )
        for own in evaluations
        for key, values in own.record["baselines"].items()
    ]


def merge_baselines(systems: Sequence[System]) -> list[System]:
    """
    Make baselines of one name that agree in all metrics one: newer records say more about them than older ones.

    Args: any systems; only baselines are merged.
    """
    merged: list[System] = []
    for system in systems:
        place = next((index for index, other in enumerate(merged) if _is_same_baseline(other, system)), None)
        if place is None:
            merged.append(system)
        else:
            other = merged[place]
            intervals = {**system.values.get("intervals", {}), **other.values.get("intervals", {})}
            values = {**system.values, **other.values, "intervals": intervals}
            merged[place] = replace(other, values=values, ranks=other.ranks or system.ranks)
    names = [system.name for system in merged]
    return [
        replace(system, name=f"{system.name} ({_file_of(system.sources[0])})")
        if system.is_baseline and system.name in names[:index]
        else system
        for index, system in enumerate(merged)
    ]


def _expected(values: Mapping[str, Any], metric: str) -> float:
    return values.get("corrected", {}).get(metric, values[metric])


def _groups_of(users: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    if not {"group_start", "group_size"} <= set(users):
        return None
    return users["group_start"].to_numpy(np.int64), users["group_size"].to_numpy(np.int64)


def _mean_of(values: Sequence[Any]) -> Any:
    """Mean of equally built objects, number by number, of what is in all; intervals have none, nor have words."""
    first = values[0]
    if isinstance(first, Mapping):
        shared = [key for key in first if key != "intervals" and all(key in value for value in values)]
        return {key: _mean_of([value[key] for value in values]) for key in shared}
    if isinstance(first, list):
        return [_mean_of(parts) for parts in zip(*values, strict=True)]
    if all(isinstance(value, int | float) for value in values):
        return statistics.fmean(values)
    return first if all(value == first for value in values) else None


def _is_same_baseline(first: System, second: System) -> bool:
    if first.name != second.name or not (first.is_baseline and second.is_baseline):
        return False
    names = [name for name in first.values if _METRIC.fullmatch(name) and name in second.values]
    return all(abs(first.values[name] - second.values[name]) < 1e-9 for name in names)


def _names_of(firsts: Sequence[StoredEvaluation]) -> list[str]:
    """The system's name, and where several share it, the first thing by which all of them differ."""
    names = [evaluation.name or _system_name(evaluation) for evaluation in firsts]
    for name in {name for name in names if names.count(name) > 1}:
        members = [index for index, other in enumerate(names) if other == name and firsts[index].name is None]
        for differs in (
            _ids_of,
            _encoder_of,
            lambda evaluation: _dtype_of(evaluation.record.get("run", {})),
            lambda evaluation: re.sub(r"_seed\d+$", "", _file_of(evaluation.source)),
            lambda evaluation: _file_of(evaluation.source),
        ):
            words = [differs(firsts[index]) for index in members]
            if None not in words and len(set(words)) == len(words):
                for index, word in zip(members, words, strict=True):
                    names[index] = f"{name} ({word})"
                break
    return names


def _system_name(evaluation: StoredEvaluation) -> str:
    run = evaluation.record.get("run", {})
    return run.get("system") or Path(run.get("model", "")).name or _file_of(evaluation.source)


def _ids_of(evaluation: StoredEvaluation) -> str | None:
    run = evaluation.record.get("run", {})
    return None if run.get("policy") is None else f"{run['policy']} {run['num_levels']} × {run['codebook_size']}"


def _encoder_of(evaluation: StoredEvaluation) -> str | None:
    encoder = evaluation.record.get("run", {}).get("encoder")
    return None if encoder is None else encoder.rpartition("/")[2]


def _dtype_of(run: Mapping[str, Any]) -> str:
    """Records that do not say it are of weights as training saves them."""
    return run.get("dtype", "float32")


def _file_of(source: str) -> str:
    path = Path(source)
    return path.parent.name if path.name == EVALUATION_NAME else path.stem
