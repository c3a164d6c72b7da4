"""
Result records in, the page `RESULTS.md` out: one JSON file per trained and evaluated run, one table per data set; what
is said about decoding comes from `decoding_results.py`.

A result record is an evaluation record whose `run` holds everything about the run: the fields of [`RUN_FIELDS`], which
must all be there, and what else is worth keeping. Its file is named after the run, so a run whose file exists is done.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import pandas as pd

from catalog_shape_results import shape_blocks
from decoding_results import popularity_blocks, speed_blocks, sweep_blocks
from hf_genrec.evaluation.record import interval_text
from hf_genrec.evaluation.systems import GROUP_FIELDS, group_of
from hf_genrec.evaluation.tables import NONE, markdown_table
from hf_genrec.files import write_json
from large_catalog_results import large_catalog_blocks
from live_catalog_results import cold_start_blocks, live_catalog_blocks, month_blocks
from llm_results import llm_blocks
from long_id_results import length_blocks, pool_blocks, rare_blocks
from one_thread_results import one_thread_blocks
from overview import overview_blocks, row_of
from paired_results import baselines_of, difference_blocks, evidence_blocks
from parallel_results import draft_blocks, parallel_blocks, training_blocks
from peer_results import peer_blocks
from preparation_results import preparation_blocks
from process_results import process_blocks
from server_results import onnx_blocks, server_blocks
from space_results import space_blocks
from step_results import step_blocks
from tree_results import synthetic_blocks, tree_blocks


# What `run` must hold, and the JSON types it may have; `minutes` and `cpu_minutes` are those of the training.
RUN_FIELDS: dict[str, tuple[type, ...]] = {
    "name": (str,),  # small letters, digits, "-" and "_": the name of the file and the anchor on the page
    "system": (str,),
    "dataset": (str,),
    "encoder": (str, NoneType),  # null where the system reads no texts
    "policy": (str, NoneType),  # of the semantic IDs; null, like the next two, where there are none
    "num_levels": (int, NoneType),
    "codebook_size": (int, NoneType),
    "command": (str,),
    "seed": (int,),
    "minutes": (int, float),
    "cpu_minutes": (int, float, NoneType),
    "num_parameters": (int,),
    "settings": (dict,),
}  # and, where the run needs a word of explanation, a `note`


def load_records(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """
    Read the result records of a folder.

    Args:
        folder (`str` or `Path`):
            Its `*.json` files are read, each named after the run it tells of.

    Returns:
        `list[dict]`: the records, sorted by name; empty if there are none.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a file is no result record; the message names the file and what is wrong with it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"The folder of records, {folder}, does not exist.")
    records = []
    for file in sorted(folder.glob("*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is no JSON: {error}.") from error
        _check(record, owner=str(file))
        if record["run"]["name"] != file.stem:
            raise ValueError(f"{file} tells of the run {record['run']['name']!r}: name the file after the run.")
        records.append(record)
    return records


def write_result(record: Mapping[str, Any], folder: str | os.PathLike[str]) -> Path:
    """
    Check a result record and write it to the file named after its run.

    Args:
        record (`dict`):
            What [`~hf_genrec.evaluate`] returned, with all of [`RUN_FIELDS`] in `run`.
        folder (`str` or `Path`):
            The folder of records; created where it is missing.

    Returns:
        `Path`: the file.

    Raises:
        ValueError: If the record lacks something or holds a value of the wrong type.
    """
    _check(record, owner="The record")
    path = Path(folder) / f"{record['run']['name']}.json"
    write_json(record, path)
    return path


def results_page(
    records: Iterable[Mapping[str, Any]],
    *,
    baselines: Sequence[Mapping[str, Any]] = (),
    users: Mapping[str, pd.DataFrame | None] | None = None,
    pairs: Sequence[Mapping[str, Any]] = (),
    sweeps: Sequence[Mapping[str, Any]] = (),
    popularity: Sequence[Mapping[str, Any]] = (),
    trees: Mapping[str, Mapping[str, Any]] | None = None,
    figures: Mapping[str, Any] | None = None,
) -> str:
    """
    All results as one page: a table per data set, protocol and split, paired differences, decoding, and the command of
    each run.

    Only what is comparable shares a table: the same data (by fingerprint), the same users and the same treatment of
    histories. Baselines come first, each once; then numbers that records quote under `published`, a list of objects
    with `system`, `source` and metrics; then one row per run.

    Args:
        records (`list[dict]`):
            What [`load_records`] returned.
        baselines (`list[dict]`, *optional*):
            What `scripts/evidence/record_baselines.py` wrote: baselines that older records lack.
        users (`dict[str, pd.DataFrame]`, *optional*):
            Results per user by the name of the run, what [`~systems.load_users`] returned.
        pairs (`list[dict]`, *optional*):
            What [`~evidence_results.load_pairs`] returned.
        sweeps (`list[dict]`, *optional*):
            What [`~decoding_results.load_sweeps`] returned.
        popularity (`list[dict]`, *optional*):
            What `scripts/evidence/sweep_popularity.py` wrote.
        trees (`dict[str, dict]`, *optional*):
            Reports of `hf-genrec diagnose` by name.
        figures (`dict[str, dict]`, *optional*):
            What the benchmarks wrote, by the names of their files without `.json`; see `_SECTIONS`.

    Returns:
        `str`: Markdown, the same for the same records in any order.

    Example:

    ```python
    >>> print(results_page([]).splitlines()[0])
    # Results
    >>> print(results_page([]).splitlines()[-1])
    There are no results yet.

    ```
    """
    ordered = sorted(records, key=lambda record: (*_group_of(record), _order_of(record)))
    blocks: list[str] = []
    for _, group in itertools.groupby(ordered, key=_group_of):
        records_there = list(group)
        blocks += _section(records_there, [one for one in baselines if _group_of(one) == _group_of(records_there[0])])
    blocks += difference_blocks(pairs, ordered, users or {})
    blocks += tree_blocks(trees or {})
    figure = (figures or {}).get
    blocks += synthetic_blocks(figure("synthetic_siblings"))
    blocks += sweep_blocks(sweeps)
    blocks += popularity_blocks(popularity)
    blocks += length_blocks(ordered) + rare_blocks(users or {})
    blocks += speed_blocks(figure("decoding_speed"), figure("catalog_speed"))
    blocks += shape_blocks(figure("catalog_shapes"))
    for name, make in _SECTIONS.items():
        blocks += make(figure(name))
    if ordered:
        blocks.append("## Runs")
        blocks += [_run_block(record["run"]) for record in sorted(ordered, key=_order_of)]
    else:
        blocks.append("There are no results yet.")
    return "\n\n".join([*overview_blocks(ordered, blocks, baselines), *blocks]) + "\n"


# Sections of one file of figures each, in the order of the page.
_SECTIONS: dict[str, Callable[[Mapping[str, Any] | None], list[str]]] = {
    "one_thread": one_thread_blocks,
    "draft_speed": draft_blocks,
    "llm_decoding_speed": llm_blocks,
    "pool_speed": pool_blocks,
    "parallel_speed": parallel_blocks,
    "parallel_training_speed": training_blocks,
    "step_shares": step_blocks,
    "space_speed": space_blocks,
    "server_speed": server_blocks,
    "onnx_speed": onnx_blocks,
    "peer_speed": peer_blocks,
    "preparation_speed": preparation_blocks,
    "processes": process_blocks,
    "live_catalog": live_catalog_blocks,
    "cold_start": cold_start_blocks,
    "month_by_month": month_blocks,
    "large_catalogs": large_catalog_blocks,
}
_METRICS = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
_WITH_INTERVAL = ("recall@10", "ndcg@10")
_SHOWN = (*_METRICS, "mrr@10")
_EXCLUDED = {f"{name}, seen excluded": name for name in _WITH_INTERVAL}
_BOTH = "ndcg@10, seen excluded"  # what records lack that were written before both kinds of lists were measured
_HEADER = ["system", *_SHOWN, *_EXCLUDED, "invalid", "encoder", "ids", "seed", "CPU minutes", "run"]


def _check(record: Any, *, owner: str) -> None:
    run = record.get("run") if isinstance(record, Mapping) else None
    if not isinstance(run, Mapping):
        raise ValueError(f"{owner} is no result record: it has no object `run`.")
    for name, types in RUN_FIELDS.items():
        if name not in run:
            raise ValueError(f"{owner} lacks `run.{name}`.")
        if type(run[name]) not in types:
            wanted = " or ".join(_JSON_TYPES[kind] for kind in types)
            raise ValueError(f"{owner}: `run.{name}` must be {wanted}, got {run[name]!r}.")
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", run["name"]):
        raise ValueError(
            f"{owner}: `run.name` must be of small letters, digits, hyphens and underscores, got {run['name']!r}."
        )
    missing = [name for name in (*GROUP_FIELDS, "seed", "model", "baselines") if name not in record]
    if missing:
        raise ValueError(f"{owner} is no evaluation record: it lacks {', '.join(f'`{name}`' for name in missing)}.")
    for system, values in {**record["baselines"], "model": record["model"]}.items():
        _check_metrics(values, owner=f"{owner}, {system}")
    for row in run.get("published", []):
        if not {"system", "source"} <= set(row):
            raise ValueError(f"{owner}: a row of `run.published` must name its `system` and `source`, got {row!r}.")


_JSON_TYPES = {str: "a string", int: "an integer", float: "a number", dict: "an object", NoneType: "null"}


def _check_metrics(values: Mapping[str, Any], *, owner: str) -> None:
    for name in (*_METRICS, "invalid_rate"):
        if not isinstance(values.get(name), int | float) or not 0 <= values[name] <= 1:
            raise ValueError(f"{owner}: `{name}` must be a share in [0, 1], got {values.get(name)!r}.")
    for name in _WITH_INTERVAL:
        if len(values.get("intervals", {}).get(name, [])) != 2:
            raise ValueError(f"{owner}: `{name}` must have an interval, two numbers.")


def _group_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    return (record["run"]["dataset"], *group_of(record))


def _order_of(record: Mapping[str, Any]) -> tuple[str, str]:
    return record["run"]["system"].lower(), record["run"]["name"]


def _section(records: Sequence[Mapping[str, Any]], baselines: Sequence[Mapping[str, Any]]) -> list[str]:
    first = records[0]
    notes = [
        f"{first['num_users']:,} users",
        f"{first['num_items']:,} items",
        f"data fingerprint `{first['fingerprint']}`",
        f"{100 * first['confidence']:g} % intervals",
    ]
    if first["max_users"] is not None:
        notes.append(f"a sample of the users drawn with seed {first['seed']}")
    if first["max_history_length"] is not None:
        notes.append(f"the latest {first['max_history_length']} items of each history")
    if first["exclude_seen"]:
        notes.append("items of the history are not recommended")
    # Runs on the same data repeat its baselines: equal rows are one row.
    rows: dict[tuple[str, ...], None] = {}
    rows |= {_row(baseline.name, baseline.values): None for baseline in baselines_of([*records, *baselines])}
    for record in records:
        rows |= {_published_row(values): None for values in record["run"].get("published", [])}
    rows |= {_model_row(record): None for record in records}
    heading = f"## {first['run']['dataset']}, {first['protocol']}, {first['split']} split"
    both = [row for row in rows if row[_HEADER.index(_BOTH)] != NONE]
    blocks = [heading, "; ".join(notes) + "."]
    if both:
        blocks.append(_table_of_runs(both))
    if len(both) < len(rows):
        if both:
            blocks.append("Earlier runs, of which only lists with seen items, the papers' protocol, were measured:")
        blocks.append(_table_of_runs(row for row in rows if row not in both))
    blocks += _seeds_table(records)
    blocks += evidence_blocks(records, baselines)
    if any(record["run"].get("curve") for record in records):
        name = curves_name(first["run"]["dataset"])
        blocks.append(f"![ndcg@10 on validation users while training](scripts/evidence/records/curves/{name}.png)")
    return blocks


def curves_name(dataset: str) -> str:
    """
    Name of the plot of a data set's learning curves.

    Args:
        dataset (`str`): Name of the data set.

    Returns:
        `str`: without the suffix.

    Example:

    ```python
    >>> curves_name("Amazon 2014 Beauty")
    'amazon_2014_beauty'

    ```
    """
    return re.sub(r"[^a-z0-9]+", "_", dataset.lower()).strip("_")


def _seeds_table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Means over the runs of a row with several seeds; empty without such runs."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(row_of(record), []).append(record)
    rows = []
    for group in groups.values():
        num_seeds = len({record["run"]["seed"] for record in group})
        if num_seeds > 1:
            run = group[0]["run"]
            cells = [_mean([record["model"][name] for record in group]) for name in _WITH_INTERVAL]
            validated = [record["run"].get("best_validation_ndcg@10") for record in group]
            cells.append(NONE if None in validated else _mean(validated))
            minutes = [record["run"]["cpu_minutes"] for record in group]
            names = (_model_columns(run).get(name, NONE) for name in ("ids", "encoder"))
            cells.append(NONE if None in minutes else f"{statistics.fmean(minutes):.1f}")
            rows.append((run["system"], *names, str(num_seeds), *cells))
    if not rows:
        return []
    header = ("system", "ids", "encoder", "seeds", *_WITH_INTERVAL, "validation ndcg@10", "CPU minutes")
    return [
        "Means over seeds, with the standard deviation between seeds:",
        markdown_table([header, *rows], num_left=3),
    ]


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"


def _row(system: str, values: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> tuple[str, ...]:
    cells = {"system": system} | dict(columns or {})
    for name in _SHOWN:
        low_high = values["intervals"][name] if name in _WITH_INTERVAL and "intervals" in values else None
        cells[name] = NONE if name not in values else f"{values[name]:.4f}"
        cells[name] += interval_text(low_high)
    excluded = values.get("seen_excluded", {})
    for title, name in _EXCLUDED.items():
        if name in excluded:
            cells[title] = f"{excluded[name]:.4f}{interval_text(excluded['intervals'].get(name))}"
    if "invalid_rate" in values:
        cells["invalid"] = f"{values['invalid_rate']:.4f}"
    return tuple(cells.get(name, NONE) for name in _HEADER)


def _published_row(values: Mapping[str, Any]) -> tuple[str, ...]:
    return _row(f"{values['system']}, published ({values['source']})", values)


def _model_row(record: Mapping[str, Any]) -> tuple[str, ...]:
    run = record["run"]
    return _row(run["system"], record["model"], _model_columns(run))


def _model_columns(run: Mapping[str, Any]) -> dict[str, str]:
    columns = {"seed": str(run["seed"]), "run": f"[{run['name']}](#{run['name']})"}
    if run["cpu_minutes"] is not None:
        device = run.get("device", "cpu")
        columns["CPU minutes"] = f"{run['cpu_minutes']:.1f}" + ("" if device == "cpu" else f" beside {device}")
    if run["encoder"] is not None:
        columns["encoder"] = run["encoder"].rpartition("/")[2]
    if run["policy"] is not None:
        columns["ids"] = f"{run['policy']} {run['num_levels']} × {run['codebook_size']}"
    return columns


def _run_block(run: Mapping[str, Any]) -> str:
    notes = [run["system"], run["dataset"], f"{run['num_parameters']:,} parameters"]
    if "num_beams" in run:
        notes.append(f"{run['num_beams']} beams")
    if run.get("decoding", "beam") != "beam":
        notes.append(f"{run['decoding']} decoding")
    notes.append(f"trained for {run['minutes']:.1f} minutes by the clock")
    notes.append(f"[record](scripts/evidence/records/results/{run['name']}.json)")
    note = f"\n\n{run['note']}" if "note" in run else ""
    return f"### {run['name']}\n\n{', '.join(notes)}{note}\n\n```bash\n{run['command']}\n```"


def _table_of_runs(rows: Iterable[Sequence[str]]) -> str:
    """Without the columns of lists without seen items, where no row has them."""
    table = [_HEADER, *rows]
    excluded = [title for title in _EXCLUDED if all(row[_HEADER.index(title)] == NONE for row in table[1:])]
    kept = [place for place, title in enumerate(_HEADER) if title not in excluded]
    num_right = len(_SHOWN) + len(_EXCLUDED) - len(excluded)
    return markdown_table([[row[place] for place in kept] for row in table], num_right=num_right)
