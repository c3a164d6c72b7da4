"""
Result records and pairs of runs in, Markdown for the results page out: what one system has over another, and what
systems do beyond recall and ndcg.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_genrec.evaluation.compare import check_comparable, check_same_users, difference_cells, difference_of
from hf_genrec.evaluation.systems import (
    BASELINES,
    StoredEvaluation,
    System,
    baseline_systems,
    merge_baselines,
    model_systems,
    system_of,
)
from hf_genrec.evaluation.tables import NONE, evidence_tables, markdown_table, number, paired_cells, table_blocks


def baselines_of(records: Iterable[Mapping[str, Any]]) -> list[System]:
    """
    The baselines of comparable result records.

    Args:
        records (`list[dict]`): Result records, whose `run` has a `name`.

    Returns:
        `list[System]`: each once, with the numbers of all records that agree about it.
    """
    return merge_baselines(baseline_systems(_evaluations(map(_with_named_heads, records), {})))


def evidence_blocks(records: Iterable[Mapping[str, Any]], baselines: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """
    What records of one data set tell beyond the usual metrics.

    Args:
        records (`list[dict]`): Comparable result records, old ones among them.
        baselines (`list[dict]`, *optional*): Records of baselines alone.

    Returns:
        `list[str]`: blocks of Markdown; empty where no record has more.
    """
    evaluations = _evaluations(map(_with_named_heads, records), {})
    others = baseline_systems(_evaluations(baselines, {}))
    systems = merge_baselines([*baseline_systems(evaluations), *others, *model_systems(evaluations)])
    return table_blocks(evidence_tables(systems))


def load_pairs(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """
    Read which runs are to be compared on the results page.

    Args:
        path (`str` or `Path`):
            A JSON list of objects with `dataset`, `a` and `b` (lists of names of runs, or of one baseline), `metric`,
            and optionally a `note` that says what the pair shows.

    Returns:
        `list[dict]`: empty if there is no such file.

    Raises:
        ValueError: If the file holds something else.
    """
    path = Path(path)
    if not path.is_file():
        return []
    try:
        pairs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    if not isinstance(pairs, list):
        raise ValueError(f"{path} must be a list of pairs, got {type(pairs).__name__}.")
    for pair in pairs:
        is_complete = isinstance(pair, dict) and {"dataset", "a", "b", "metric"} <= set(pair)
        if not is_complete or not all(isinstance(pair[side], list) and pair[side] for side in "ab"):
            raise ValueError(
                f"{path}: each pair must have `dataset`, `metric` and in `a` and `b` lists of names, got {pair!r}."
            )
    return pairs


def difference_blocks(
    pairs: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
    users: Mapping[str, Any],
) -> list[str]:
    """
    The section "Paired differences" of the results page.

    Args:
        pairs (`list[dict]`): What [`load_pairs`] returned. A pair with a run that has no record yet is named below.
        records (`list[dict]`): Result records.
        users (`dict[str, pd.DataFrame]`): Results per user by the name of the run.

    Returns:
        `list[str]`: blocks of Markdown; empty without pairs.

    Raises:
        ValueError: If the runs of a pair are not comparable, or are several with other seeds on either side.
    """
    if not pairs:
        return []
    by_name = {record["run"]["name"]: record for record in records}
    header = ["a against b", "data set", "metric", "runs of a, b", "a", "b", "difference", "p", "over seeds", "p"]
    awaited = [(pair, _missing(pair, by_name)) for pair in pairs]
    rows = [header, *(_pair_row(pair, by_name, users) for pair, missing in awaited if not missing)]
    blocks = ["## Paired differences", _PAIRS_NOTE, *([markdown_table(rows, num_left=4)] if len(rows) > 1 else [])]
    waiting = "; ".join(_pair_title(pair) for pair, missing in awaited if missing)
    names = ", ".join(sorted({name for _, missing in awaited for name in missing}))
    return [*blocks, *([f"Not yet compared: {waiting}.\n\nRecords that are missing: {names}."] if waiting else [])]


_NUM_RESAMPLES = 1999  # of each of many pairs
_PAIRS_NOTE = """The same users, and where there are several runs the same seeds. `difference` is a - b with a
bootstrap interval over users (each user's values averaged over the seeds first) and the p-value of a sign-flip
permutation test: it takes the trained models as given. `over seeds` is the interval of the paired t-test over seeds:
it estimates what another seed may change, and there is none where all seeds differ by the same. Neither intervals nor
p-values are corrected for being several. Where several items share an id, recall and ndcg are here, a and b included,
their expectation over a random order of the items of an id: the order in the lists is that of the catalog."""


def _missing(pair: Mapping[str, Any], by_name: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Runs without a record. `b` may be a baseline, which is in the records of `a`."""
    present = [by_name[name] for name in pair["a"] if name in by_name]
    baselines = set.intersection(*(set(record["baselines"]) for record in present)) if present else set(BASELINES)
    is_baseline = len(pair["b"]) == 1 and pair["b"][0] in baselines
    return [name for name in (*pair["a"], *([] if is_baseline else pair["b"])) if name not in by_name]


def _pair_title(pair: Mapping[str, Any]) -> str:
    return pair.get("note") or f"{', '.join(pair['a'])} against {', '.join(pair['b'])}"


def _pair_row(
    pair: Mapping[str, Any], by_name: Mapping[str, Mapping[str, Any]], users: Mapping[str, Any]
) -> list[str]:
    metric = pair["metric"]
    runs = {side: [by_name[name] for name in pair[side] if name in by_name] for side in "ab"}
    evaluations = {side: _evaluations(runs[side], users) for side in "ab"}
    check_comparable([*evaluations["a"], *evaluations["b"]])
    check_same_users([*evaluations["a"], *evaluations["b"]])
    others = {record["run"]["dataset"] for record in [*runs["a"], *runs["b"]]} - {pair["dataset"]}
    if others:
        raise ValueError(f"A pair of `dataset` {pair['dataset']!r} names runs on {', '.join(sorted(others))}.")
    a = _system(evaluations["a"])
    b = _system(evaluations["b"]) if runs["b"] else _baseline(evaluations["a"], pair["b"][0])
    if runs["b"]:
        _check_same_seeds(runs)
    title = pair.get("note") or f"{a.name} against {b.name}"
    cells = [title, pair["dataset"], metric, f"{len(a.runs)}, {len(b.runs) or NONE}"]
    cells += [number(own.expected(metric) if metric in own.values else None) for own in (a, b)]
    if metric not in a.values or metric not in b.values:
        return [*cells, *[NONE] * 4]
    found = difference_of(
        a, b, metric=metric, confidence=evaluations["a"][0].record["confidence"], num_resamples=_NUM_RESAMPLES
    )
    return [*cells, *difference_cells(found), *paired_cells(found.seeds)]


def _check_same_seeds(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Refuse to compare means over other seeds, whose difference would be that of the seeds too."""
    seeds = {side: sorted(record["run"]["seed"] for record in runs[side]) for side in "ab"}
    if max(map(len, seeds.values())) > 1 and seeds["a"] != seeds["b"]:
        names = {side: ", ".join(record["run"]["name"] for record in runs[side]) for side in "ab"}
        raise ValueError(
            f"A pair must have the same seeds on both sides, got {seeds['a']} of {names['a']} against {seeds['b']} of "
            f"{names['b']}: name runs of the same seeds."
        )


def _system(evaluations: Sequence[StoredEvaluation]) -> System:
    """All runs of one side of a pair, which may differ in more than the seed if the pair says so."""
    return system_of(evaluations[0].record["run"]["system"], evaluations)


def _baseline(evaluations: Sequence[StoredEvaluation], key: str) -> System:
    only = [StoredEvaluation(None, own.source, _only_baseline(own.record, key), own.users) for own in evaluations]
    return merge_baselines(baseline_systems(only))[0]


def _only_baseline(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {**record, "baselines": {key: record["baselines"][key]}}


_HEADS = {"generator": "beams alone", "dense_head": "dense head alone"}


def _with_named_heads(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Parts of a model that were measured alone stand among the baselines, under the name of their model."""
    system = record["run"].get("system")
    titles = {key: f"{system}, {part}" for key, part in _HEADS.items()}
    return {**record, "baselines": {titles.get(key, key): values for key, values in record["baselines"].items()}}


def _evaluations(records: Iterable[Mapping[str, Any]], users: Mapping[str, Any]) -> list[StoredEvaluation]:
    names = [(record, record["run"]["name"]) for record in records]
    return [StoredEvaluation(None, name, record, users.get(name)) for record, name in names]
