"""
Evaluations of several systems in, one table out: means over seeds and paired differences against one of them.

Only records of the same data, users and treatment of histories are compared. A comparison becomes tables, a page of
Markdown, JSON or a plot.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_genrec.evaluation.metrics import (
    DEFAULT_NUM_RESAMPLES,
    PairedDifference,
    holm_adjusted,
    paired_difference,
    seed_difference,
)
from hf_genrec.evaluation.record import shown_cut
from hf_genrec.evaluation.systems import (
    BASELINES,
    GROUP_FIELDS,
    StoredEvaluation,
    System,
    baseline_systems,
    group_of,
    in_column,
    merge_baselines,
    model_systems,
    user_values,
)
from hf_genrec.evaluation.tables import (
    NONE,
    PUBLISHED_ENCODERS,
    TextTable,
    evidence_tables,
    markdown_table,
    metric_cell,
    paired_cells,
    table_blocks,
)
from hf_genrec.files import write_json, write_text


@dataclass(frozen=True)
class Differences:
    """How far one system is from another, in the values of [`~systems.System.user_values`]."""

    difference: float  # of the metric, the mean over seeds
    users: PairedDifference | None  # over the same users
    seeds: PairedDifference | None  # over the seeds that both were trained with
    adjusted_p_value: float | None = None  # of `users`, after Holm's correction for all comparisons of the table


@dataclass(frozen=True)
class Comparison:
    """Systems on the same users, the best first."""

    metric: str  # what they are ordered by and compared in
    against: str  # name of the system that the others are compared with
    conditions: dict[str, Any]  # what the records share: protocol, split, fingerprint, sizes and settings
    systems: Sequence[System]  # by falling values of the metric
    differences: dict[str, Differences]  # by the name of the system, for all but the reference

    @property
    def title(self) -> str:
        """Data set, protocol and split."""
        names = [self.conditions[name] for name in ("dataset", "protocol") if self.conditions[name]]
        seen = ["seen items excluded"] if self.conditions["exclude_seen"] else []
        return ", ".join([*names, f"{self.conditions['split']} split", *seen])

    def to_dict(self) -> dict[str, Any]:
        """The comparison as one JSON-ready object, without results of users."""
        systems = []
        for own in self.systems:
            intervals = {name: ends for name in own.values if (ends := own.interval(name)) is not None}
            facts = {name: value for name, value in vars(own).items() if name not in ("ranks", "groups", "confidence")}
            systems.append(facts | {"runs": len(own.runs), "values": {**own.values, "intervals": intervals}})
        differences = {name: asdict(difference) for name, difference in self.differences.items()}
        return {**vars(self), "systems": systems, "differences": differences}


def compare_evaluations(
    evaluations: Sequence[StoredEvaluation],
    *,
    metric: str = "ndcg@10",
    against: str | None = None,
    grouped: bool = False,
    num_resamples: int = DEFAULT_NUM_RESAMPLES,
    seed: int = 0,
) -> list[Comparison]:
    """
    Put systems side by side: their metrics, and how far each is from one of them.

    Evaluations of one name are one system. Without a name, those whose records differ in nothing but the seed are.
    Comparisons are those with seen items allowed and with seen items excluded, where all records have both; with
    `grouped` these for each group in the order of the evaluations. A `ValueError` names records that are not
    comparable.

    Args:
        evaluations (`list[StoredEvaluation]`): What [`load_evaluation`] returned.
        metric (`str`, *optional*, defaults to `"ndcg@10"`): `"recall@k"`, `"ndcg@k"` or `"mrr@k"` of all records.
        against (`str`, *optional*):
            Name of the reference. `None` takes the best of the baselines with results per user; without such, the
            first evaluation if it has them, else the best baseline.
        grouped (`bool`, *optional*, defaults to `False`):
            Whether records that are not comparable make a comparison each instead of an error.
        num_resamples (`int`, *optional*, defaults to 9999): Resamples of intervals and tests.
        seed (`int`, *optional*, defaults to 0): Seed of the resamples.
    """
    user_values([], metric)
    if not evaluations:
        raise ValueError("`evaluations` must hold at least one evaluation.")
    sources = [evaluation.source for evaluation in evaluations]
    repeated = sorted({source for source in sources if sources.count(source) > 1})
    if repeated:
        raise ValueError(f"Each evaluation may be given once; given more often: {', '.join(repeated)}.")
    groups: dict[tuple[str, ...], list[StoredEvaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault(group_of({**evaluation.record, "exclude_seen": None}), []).append(evaluation)
    columns = []
    for group in groups.values():  # the columns that all have, or as many as have each if there is none
        both = [[in_column(own, exclude_seen=exclude_seen) for own in group] for exclude_seen in (False, True)]
        known = [[own for own in column if own is not None] for column in both]
        columns += [column for column in known if len(column) == len(group)] or [column for column in known if column]
    if not grouped and len(columns[0]) < len(evaluations):
        check_comparable(evaluations)
    return [_compare(column, metric, against, num_resamples, seed) for column in columns]


def difference_of(
    system: System,
    reference: System,
    *,
    metric: str,
    confidence: float,
    num_resamples: int = DEFAULT_NUM_RESAMPLES,
    seed: int = 0,
) -> Differences:
    """How far one system is from another, above 0 where it is better. Args: see [`compare_evaluations`]."""
    users = seeds = None
    if system.ranks and reference.ranks:
        users = paired_difference(
            system.user_values(metric),
            reference.user_values(metric),
            confidence=confidence,
            num_resamples=num_resamples,
            seed=seed,
        )
    own, other = system.by_seed(metric), reference.by_seed(metric)
    shared = sorted(own.keys() & other.keys())
    if len(shared) > 1:
        seeds = seed_difference([own[key] for key in shared], [other[key] for key in shared], confidence=confidence)
    return Differences(system.expected(metric) - reference.expected(metric), users, seeds)


def check_comparable(evaluations: Sequence[StoredEvaluation]) -> None:
    """Refuse to compare what was not measured in the same way. Args: at least one evaluation."""
    first = evaluations[0]
    for other in evaluations[1:]:
        if group_of(other.record) != group_of(first.record):
            names = [name for name in GROUP_FIELDS if str(first.record[name]) != str(other.record[name])] or ["seed"]
            differences = ", ".join(f"`{name}` is {first.record[name]!r} and {other.record[name]!r}" for name in names)
            raise ValueError(
                f"{first.source} and {other.source} cannot be compared: {differences}. Evaluate both in the same way, "
                "or ask for one table per group (`--grouped`)."
            )


def check_same_users(evaluations: Sequence[StoredEvaluation]) -> None:
    """Refuse to pair results of different users, which are paired by position. Args: comparable evaluations."""
    with_users = [(evaluation.source, evaluation.users) for evaluation in evaluations if evaluation.users is not None]
    for column in ("num_train", "history_length"):
        known = [(source, users[column].to_numpy()) for source, users in with_users if column in users]
        for source, values in known[1:]:
            if not np.array_equal(values, known[0][1]):
                raise ValueError(
                    f"The users of {known[0][0]} and {source} differ in `{column}`: they were not evaluated on the "
                    "same users in the same order. Evaluate both again on the same prepared data."
                )


def comparison_tables(comparison: Comparison) -> list[TextTable]:
    """The metrics with the paired differences, then [`evidence_tables`]. Args: see [`compare_evaluations`]."""
    known = dict.fromkeys(name for system in comparison.systems for name in system.values)
    cut = shown_cut(known, metric="recall")
    wanted = dict.fromkeys([f"recall@{cut}", f"ndcg@{cut}", f"mrr@{cut}", comparison.metric])
    metrics = [name for name in wanted if name in known]
    has_seeds = any(len(system.runs) > 1 for system in comparison.systems)
    over_seeds = any(found.seeds is not None for found in comparison.differences.values())
    header = ["system", *(["runs"] if has_seeds else []), *metrics, f"{comparison.metric}, difference", "p"]
    rows = [header + (["difference over seeds", "p over seeds"] if over_seeds else [])]
    for system in comparison.systems:
        found = comparison.differences.get(system.name)
        row = [system.name, *([str(len(system.runs) or NONE)] if has_seeds else [])]
        row += [metric_cell(system, name) for name in metrics]
        row += ["reference", NONE] if found is None else difference_cells(found)
        rows.append(row + (paired_cells(None if found is None else found.seeds) if over_seeds else []))
    return [TextTable(comparison.title, rows, comparison_note(comparison)), *evidence_tables(comparison.systems)]


def comparison_page(comparisons: Sequence[Comparison]) -> str:
    """Comparisons as Markdown, a section each. Args: what [`compare_evaluations`] returned."""
    blocks = []
    for comparison in comparisons:
        first, *others = comparison_tables(comparison)
        blocks += [f"## {first.title}", first.note, markdown_table(first.rows)]
        blocks += table_blocks(others)
    return "\n\n".join(blocks) + "\n"


def comparison_note(comparison: Comparison) -> str:
    """How the numbers of a comparison are to be read. Args: one of what [`compare_evaluations`] returned."""
    shared = comparison.conditions
    encoders = sorted({system.encoder for system in comparison.systems if system.encoder is not None})
    notes = [
        f"{shared['num_users']:,} users, {shared['num_items']:,} items, data fingerprint `{shared['fingerprint']}`.",
        f"Items of the history are {'left out of' if shared['exclude_seen'] else 'allowed in'} all lists.",
        f"In brackets {100 * shared['confidence']:g} % bootstrap intervals over users; ± is the standard deviation "
        "between seeds.",
        f"Differences are paired, user by user, against {comparison.against}; p is that of the sign-flip permutation "
        "test after Holm's correction for the comparisons of this table. It takes the trained models as given: what "
        "another seed would change is estimated over seeds alone. Intervals and `p over seeds` are not corrected.",
    ]
    if any(group is not None for system in comparison.systems for group in system.groups):
        notes.append(
            "Where several items share an id, differences of recall and ndcg are those of the expectation over the "
            "order of the items of an id, while the columns of metrics count the items of the lists as decoded."
        )
    lacking = [name for name, found in comparison.differences.items() if found.users is None]
    if lacking:
        notes.append(f"No intervals of the difference without results per user: {', '.join(lacking)}.")
    dtypes = {system.name: system.dtype for system in comparison.systems if system.dtype is not None}
    if set(dtypes.values()) - {"float32"}:
        notes.append(f"Weights as measured: {', '.join(f'{name} in {dtype}' for name, dtype in dtypes.items())}.")
    if encoders:
        notes.append(f"Text encoder behind the ids: {', '.join(encoders)}; {PUBLISHED_ENCODERS}.")
    return " ".join(notes)


def write_comparisons(comparisons: Sequence[Comparison], path: str | os.PathLike[str]) -> Path:
    """Write what [`compare_evaluations`] returned. Args: the comparisons, a path that ends in `.md` or `.json`."""
    path = Path(path)
    if path.suffix == ".json":
        write_json({"comparisons": [comparison.to_dict() for comparison in comparisons]}, path)
        return path
    if path.suffix != ".md":
        raise ValueError(f"`path` must end in .md or .json, got {os.fspath(path)!r}.")
    write_text(comparison_page(comparisons), path)
    return path


def difference_cells(found: Differences) -> list[str]:
    """A difference with its interval, and its p-value, corrected where known. Args: see [`difference_of`]."""
    if found.users is None:
        return [f"{found.difference:+.4f}", NONE]
    adjusted = found.adjusted_p_value
    return paired_cells(found.users if adjusted is None else replace(found.users, p_value=adjusted))


def _compare(
    evaluations: Sequence[StoredEvaluation], metric: str, against: str | None, num_resamples: int, seed: int
) -> Comparison:
    record = evaluations[0].record
    datasets = {evaluation.record.get("run", {}).get("dataset") for evaluation in evaluations}
    conditions = {name: record[name] for name in (*GROUP_FIELDS, "seed")}
    conditions["dataset"] = datasets.pop() if len(datasets) == 1 else None
    check_same_users(evaluations)
    systems = merge_baselines([*model_systems(evaluations), *baseline_systems(evaluations)])
    lacking = [system.name for system in systems if metric not in system.values]
    if lacking:
        raise ValueError(f"`metric` {metric} is not in the records of {', '.join(lacking)}: evaluate them again.")
    systems = sorted(systems, key=lambda system: -system.values[metric])
    reference = _reference(systems, against, first=evaluations[0].source)
    differences = {
        system.name: difference_of(
            system, reference, metric=metric, confidence=record["confidence"], num_resamples=num_resamples, seed=seed
        )
        for system in systems
        if system is not reference
    }
    p_values = {name: found.users.p_value if found.users else None for name, found in differences.items()}
    tested = {name: p_value for name, p_value in p_values.items() if p_value is not None}
    for name, p_value in zip(tested, holm_adjusted([*tested.values()]), strict=True):
        differences[name] = replace(differences[name], adjusted_p_value=p_value)
    return Comparison(metric, reference.name, conditions, systems, differences)


def _reference(systems: Sequence[System], against: str | None, *, first: str) -> System:
    if against is None:
        baselines = [system for system in systems if system.is_baseline]
        with_ranks = [system for system in baselines if system.ranks]
        given = [system for system in systems if first in system.sources and system.runs]
        return (with_ranks or [system for system in given if system.ranks] or baselines or given)[0]
    for system in systems:
        if system.name.lower() == BASELINES.get(against, against).lower():
            return system
    known = ", ".join(system.name for system in systems)
    raise ValueError(f"`against` names no system of the table, got {against!r}; there are {known}.")
