"""
Records in, tables for a terminal out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from hf_genrec.evaluation.record import COLUMNS
from hf_genrec.evaluation.systems import StoredEvaluation, System, baseline_systems, in_column, model_systems
from hf_genrec.evaluation.tables import NONE, PUBLISHED_ENCODERS, TextTable, evidence_tables, metric_cell


PUBLISHED_ENCODER = "sentence-t5-base"
_WIDE = 60  # characters of a header; longer ones are broken between the words
_METRICS = ("recall@5", "recall@10", "ndcg@10", "mrr@10")
_MEASURES = {"text": ("texts", ".3f"), "co_purchase": ("users", ".4f"), "lift": ("lift", ".1f")}


def statistics_table(metadata: Mapping[str, Any]) -> TextTable:
    """
    How a data set shrank from step to step; the first row is the log as it was read.

    Args: the content of a prepared folder's `dataset.json`.
    """
    sizes = ("num_users", "num_items", "num_interactions")
    rows = [
        [step["step"], *(f"{step[name]:,}" for name in sizes), f"{step['mean_length']:.2f}", f"{step['density']:.5f}"]
        for step in metadata["steps"]
    ]
    header = ["step", "users", "items", "interactions", "per user", "density"]
    return TextTable(f"{metadata['source']}, protocol {metadata['protocol']}", [header, *rows])


def preparation_notes(metadata: Mapping[str, Any]) -> list[str]:
    """
    Sizes of the splits, what was skipped, items held out of training, and the published statistics.

    Args: as for [`statistics_table`].
    """
    repeats = metadata.get("repeat_rate")
    splits = ", ".join(f"{name} {size:,}" for name, size in metadata["splits"].items())
    notes = [f"users per split: {splits}; training targets: {metadata['num_train_targets']:,}"]
    if repeats is not None:
        notes.append(f"repeats: {100 * repeats:.1f} % of the training targets had been taken before by that user")
    skipped = metadata["skipped"]
    notes += [f"skipped, {name}: {count:,}" for name, count in skipped.items() if isinstance(count, int) and count]
    notes += [f"first of the {name}: {text}" for name, text in skipped.items() if isinstance(text, str) and text]
    if metadata.get("cold_items") is not None:
        notes += _notes_on_cold_items(metadata, metadata["cold_items"])
    times = metadata.get("split_times")
    if times is not None:
        begin = f"validation from {times['validation']}, " if times["validation"] else ""
        unused = f"{times['num_unused_interactions']:,} interactions after the targets are of no split"
        notes.append(f"split in time: {begin}test from {times['test']}; {unused}")
    known = metadata["known_statistics"]
    if known is not None:
        found = "equal" if known["matches"] else str(known["expected"])
        notes.append(f"published statistics of {known['category']}: {found}")
    return notes


def _notes_on_cold_items(metadata: Mapping[str, Any], cold: Mapping[str, Any]) -> list[str]:
    notes = [
        f"held out of training: {cold['num_items']:,} items, the newest by {cold['newest_by']}, with "
        f"{cold['num_train_interactions']:,} training interactions of {cold['num_train_users']:,} users "
        f"({cold['num_users_without_training']:,} are not trained on at all); they are the targets of "
        f"{cold['num_validation_targets']:,} users at validation and {cold['num_test_targets']:,} at test"
    ]
    evaluated = metadata["splits"]["validation"] + metadata["splits"]["test"]
    num_trainable = metadata["statistics"]["num_interactions"] - evaluated
    left = num_trainable - cold["num_train_interactions"]
    if 2 * left < num_trainable:
        notes.append(
            f"warning: only {left:,} of {num_trainable:,} training interactions are left to train on: hold out "
            "fewer items"
        )
    return notes


def weights_line(ensemble: Mapping[str, Any]) -> str:
    """The weights of an ensemble in words. Args: `ensemble` of its `training.json`."""
    weights = zip(ensemble["scores"], ensemble["weights"], strict=True)
    return (
        "weights, chosen on validation users: "
        + ", ".join(f"{name} {weight:.2f}" for name, weight in weights)
        + " (not shares: their sum sets how far the probabilities of a list lie apart)"
    )


def collision_table(statistics: Mapping[str, Any]) -> TextTable:
    """Collisions before and after the policy. Args: what [`SemanticIds.statistics`] returned."""
    rows = []
    for name in ("before", "after"):
        values = statistics[name]
        shares = [f"{100 * values[share]:.2f} %" for share in ("collision_rate", "excess_rate")]
        rows.append([name, f"{values['num_distinct']:,}", *shares, str(max(map(int, values["group_sizes"])))])
    title = f"{statistics['num_items']:,} items, policy {statistics['policy']}, {statistics['num_changed']:,} changed"
    header = ["collisions", "distinct ids", "items that share", "must move", "largest group"]
    return TextTable(title, [header, *rows])


def usage_table(statistics: Mapping[str, Any], *, fit: Mapping[str, Any] | None = None) -> TextTable:
    """
    How the codes of each level are used, and how well they fit.

    Args: what [`SemanticIds.statistics`] returned, and `fit` of a `tokenizer.json`: the column `error` is the squared
        error of the levels up to this one over the variance, of the items learned from, and `others` that of the rest.
    """
    errors = _errors(fit)
    rows = [[str(level + 1), *_usage(values, level, errors)] for level, values in enumerate(statistics["levels"])]
    header = ["level", "codes used", "usage", "perplexity", *errors]
    return TextTable(f"codebook size {statistics['codebook_size']}", [header, *rows])


def _errors(fit: Mapping[str, Any] | None) -> dict[str, Sequence[float]]:
    """Columns of errors by level, of what is known."""
    columns = {"error": "relative_error", "others": "relative_error_of_others"}
    return {name: fit[key] for name, key in columns.items() if fit is not None and fit.get(key) is not None}


def _usage(values: Mapping[str, Any], level: int, errors: Mapping[str, Sequence[float]]) -> list[str]:
    """The cells of a level; an appended code rebuilds nothing and has no error."""
    cells = [f"{values['num_used']:,}", f"{100 * values['usage']:.1f} %", f"{values['perplexity']:.1f}"]
    return cells + [f"{column[level]:.3f}" if level < len(column) else "-" for column in errors.values()]


def prefix_table(report: Mapping[str, Any]) -> TextTable:
    """
    How the items part and how alike they get, the more first codes they share; the first row is chance.

    Args: what [`id_report`] returned.
    """
    rows = []
    for entry in report["prefixes"]:
        sizes = [f"{entry['num_prefixes']:,}", f"{entry['mean_items']:,.1f}", f"{entry['max_items']:,}"]
        sizes += [f"{100 * entry['share_alone']:.1f} %", f"{entry['num_pairs']:,}"]
        measures = _measures(report, {name: entry[name]["at_least"] for name in report["measures"]})
        rows.append([str(entry["length"] or "any"), *sizes, *measures])
    header = ["codes", "prefixes", "items", "most", "alone", "pairs", *_measure_names(report)]
    return TextTable("items that share their first codes", [header, *rows])


def position_table(report: Mapping[str, Any]) -> TextTable:
    """
    How each code is used, and how alike items are that share it; the last row is chance.

    Args: what [`id_report`] returned.
    """
    errors = _errors(report.get("fit"))
    rows = [
        [str(level + 1), *_usage(entry, level, errors), f"{entry['num_pairs']:,}", *_measures(report, entry)]
        for level, entry in enumerate(report["positions"])
    ]
    if report["measures"]:
        chance = report["prefixes"][0]
        cells = _measures(report, {name: chance[name]["at_least"] for name in report["measures"]})
        rows.append(["any", "", "", "", *[""] * len(errors), f"{chance['num_pairs']:,}", *cells])
    title = f"items that share one code (codebook size {report['statistics']['codebook_size']})"
    caption = "texts, users: mean cosine of embeddings and of sets of users; lift: shared users, 1 is chance"
    header = ["level", "codes used", "usage", "perplexity", *errors, "pairs", *_measure_names(report)]
    return TextTable(title, [header, *rows], caption)


def _measure_names(report: Mapping[str, Any]) -> list[str]:
    return [_MEASURES[name][0] for name in report["measures"]]


def _measures(report: Mapping[str, Any], values: Mapping[str, float | None]) -> list[str]:
    cells = [(values[name], _MEASURES[name][1]) for name in report["measures"]]
    return ["-" if value is None else format(value, how) for value, how in cells]


def metrics_table(record: Mapping[str, Any]) -> TextTable:
    """
    An evaluation record, baselines first and the model last, with seen items allowed and with seen items excluded.

    Args: what [`evaluate`] returned.
    """
    first = bool(record["exclude_seen"])
    names = [name for name in _METRICS if name in record["model"]]
    columns = [(first, name) for name in names]
    if COLUMNS[not first] in record["model"]:
        columns += [(not first, name) for name in names if name in ("recall@10", "ndcg@10")]
    systems = {seen: {own.name: own for own in _systems(record, exclude_seen=seen)} for seen in (False, True)}
    title = (
        f"{record['protocol']}, {record['split']} split, {record['num_users']:,} users, {record['num_items']:,} items"
    )
    caption = (
        f"in brackets: {100 * record['confidence']:g} % bootstrap intervals over users; "
        f"invalid lists of the model: {100 * record['model']['invalid_rate']:.2f} %"
    )
    header = ["system", *(f"{name} {COLUMNS[seen].replace('_', ' ')}" for seen, name in columns)]
    rows = [header]
    for system in systems[first]:
        found = [(systems[seen].get(system), name) for seen, name in columns]
        rows.append([system, *(NONE if own is None else metric_cell(own, name) for own, name in found)])
    return TextTable(title, rows, caption)


def _systems(record: Mapping[str, Any], *, exclude_seen: bool) -> list[System]:
    found = in_column(StoredEvaluation("model", "", record), exclude_seen=exclude_seen)
    return [] if found is None else [*baseline_systems([found]), *model_systems([found])]


def evaluation_tables(record: Mapping[str, Any]) -> list[TextTable | str]:
    """
    All that a reader of an evaluation should see: metrics, evidence, and the text encoder where it is known.

    Args: what [`evaluate`] returned.
    """
    exclude_seen = bool(record["exclude_seen"])
    lists = "seen items excluded" if exclude_seen else "seen items allowed"
    evidence = evidence_tables(_systems(record, exclude_seen=exclude_seen))
    shown: list[TextTable | str] = [metrics_table(record)]
    shown += [replace(table, title=f"{table.title}; {lists}") for table in evidence]
    for name, settings in record.get("baseline_settings", {}).items():
        if "error" in settings:
            shown.append(f"{name} failed and is left out: {settings['error']}")
    encoder = record.get("run", {}).get("encoder")
    if encoder:
        note = "" if PUBLISHED_ENCODER in encoder else f"; {PUBLISHED_ENCODERS}: compare with care"
        shown.append(f"text encoder behind the ids: {encoder}{note}")
    return shown


def recommendations_table(entry: Mapping[str, Any], *, title: str, shown_history: int = 20) -> Table:
    """
    What one user took (the latest items) and what is recommended. Args: one of [`recommendation_entries`]; a heading.
    """
    table = Table("", title=title, title_justify="left")
    table.add_column("title", overflow="fold")
    table.add_column("id", overflow="fold")
    table.add_column("log-probability", justify="right")
    history = entry["history"]
    if len(history) > shown_history:
        table.add_row("", f"... {len(history) - shown_history} earlier items", "", "")
    for item in history[-shown_history:]:
        table.add_row("took", item["title"], item["item_id"], "", style="dim")
    for item_id in entry["unknown"]:
        table.add_row("unknown", "not in the catalog, ignored", item_id, "", style="yellow")
    if history or entry["unknown"]:
        table.add_section()
    for place, item in enumerate(entry["recommendations"], start=1):
        table.add_row(str(place), item["title"], item["item_id"], f"{item['score']:.3f}")
    return table


def recommendation_entries(
    recommender: Any, histories: list[list[str]], *, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """
    Recommendations with titles, ready for JSON and for [`recommendations_table`]: per history `history` (items with
    `item_id` and `title`), `unknown` ids and `recommendations` (items with `score`).

    Args: a [`Recommender`], histories of item ids, and further arguments of its `recommend()`.
    """
    found = recommender.recommend(histories, **options)
    catalog = set(recommender.item_ids)
    titled = [
        [{"item_id": i, "title": title} for i, title in zip(item_ids, recommender.titles(item_ids), strict=True)]
        for item_ids in ([i for i in history if i in catalog] for history in histories)
    ]
    entries = []
    for history, known, item_ids, scores in zip(histories, titled, found.item_ids, found.scores, strict=True):
        ranked = zip(item_ids, recommender.titles(item_ids), scores, strict=True)
        entries.append(
            {
                "history": known,
                "unknown": [item_id for item_id in history if item_id not in catalog],
                "recommendations": [{"item_id": i, "title": title, "score": score} for i, title, score in ranked],
            }
        )
    return entries


def drawn(text: TextTable) -> Table:
    """Names on the left, numbers right; what a cell has in brackets stands below its number. Args: a table."""
    look: dict[str, Any] = {"box": SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0)}
    table = Table(title=text.title, caption=text.note, caption_justify="left", **look)
    header, *body = text.rows
    names = min(10, max(len(row[0]) for row in text.rows))
    between = "\n" if len("".join(header)) > _WIDE else " "
    first, *others = (name.replace(" ", between) for name in header)
    table.add_column(first, overflow="fold", min_width=names)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    for name, *cells in body:
        table.add_row(name, *map(_lines_of, cells))
    return table


def _lines_of(cell: str) -> str:
    """`0.0375 ± 0.0010 [0.0354, 0.0393]` on four short lines."""
    lines = cell.replace(" ±", "\n±").replace(" [", "\n[")
    return lines.replace(", ", ",\n")
