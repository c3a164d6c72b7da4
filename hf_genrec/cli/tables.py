"""
Records in, tables for a terminal out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from hf_genrec.evaluation.systems import StoredEvaluation, System, baseline_systems, model_systems
from hf_genrec.evaluation.tables import PUBLISHED_ENCODERS, evidence_tables, metric_cell


PUBLISHED_ENCODER = "sentence-t5-base"
_METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr@10")


def statistics_table(metadata: Mapping[str, Any]) -> Table:
    """
    How a data set shrank from step to step.

    Args:
        metadata (`dict`): The content of a prepared folder's `dataset.json`.

    Returns:
        `rich.table.Table`: one row per step, the first one the log as it was read.
    """
    table = Table(title=f"{metadata['source']}, protocol {metadata['protocol']}")
    table.add_column("after the step")
    for name in ("users", "items", "interactions", "per user", "density"):
        table.add_column(name, justify="right")
    for step in metadata["steps"]:
        sizes = [f"{step[name]:,}" for name in ("num_users", "num_items", "num_interactions")]
        table.add_row(step["step"], *sizes, f"{step['mean_length']:.2f}", f"{step['density']:.5f}")
    return table


def preparation_notes(metadata: Mapping[str, Any]) -> list[str]:
    """
    What else is to be said about a prepared data set.

    Args:
        metadata (`dict`): The content of `dataset.json`.

    Returns:
        `list[str]`: sizes of the splits, everything that was skipped, items held out of training, and the published
            statistics.
    """
    splits = ", ".join(f"{name} {size:,}" for name, size in metadata["splits"].items())
    notes = [f"users per split: {splits}; training targets: {metadata['num_train_targets']:,}"]
    skipped = metadata["skipped"]
    notes += [f"skipped, {name}: {count:,}" for name, count in skipped.items() if isinstance(count, int) and count]
    notes += [f"first of the {name}: {text}" for name, text in skipped.items() if isinstance(text, str) and text]
    cold = metadata.get("cold_items")
    if cold is not None:
        notes.append(
            f"held out of training: {cold['num_items']:,} items, the newest by {cold['newest_by']}, with "
            f"{cold['num_train_interactions']:,} training interactions of {cold['num_train_users']:,} users "
            f"({cold['num_users_without_training']:,} are not trained on at all); they are the targets of "
            f"{cold['num_validation_targets']:,} users at validation and {cold['num_test_targets']:,} at test"
        )
        evaluated = metadata["splits"]["validation"] + metadata["splits"]["test"]
        num_trainable = metadata["statistics"]["num_interactions"] - evaluated
        if 2 * cold["num_train_interactions"] > num_trainable:
            left = num_trainable - cold["num_train_interactions"]
            notes.append(
                f"warning: only {left:,} of {num_trainable:,} training interactions are left to train on: hold out "
                "fewer items"
            )
    known = metadata["known_statistics"]
    if known is not None:
        notes.append(
            f"published statistics of {known['category']}: "
            + ("equal" if known["matches"] else str(known["expected"]))
        )
    return notes


def collision_table(statistics: Mapping[str, Any]) -> Table:
    """
    Collisions before and after the policy.

    Args:
        statistics (`dict`): What [`SemanticIds.statistics`] returned.

    Returns:
        `rich.table.Table`
    """
    title = f"{statistics['num_items']:,} items, policy {statistics['policy']}, {statistics['num_changed']:,} changed"
    table = Table(title=title)
    table.add_column("collisions")
    for name in ("distinct ids", "items that share", "must move", "largest group"):
        table.add_column(name, justify="right")
    for name in ("before", "after"):
        values = statistics[name]
        largest = max(map(int, values["group_sizes"]))
        shares = [f"{100 * values[share]:.2f} %" for share in ("collision_rate", "excess_rate")]
        table.add_row(name, f"{values['num_distinct']:,}", *shares, str(largest))
    return table


def usage_table(statistics: Mapping[str, Any], *, fit: Mapping[str, Any] | None = None) -> Table:
    """
    How the codes of each level are used, and how well they fit.

    Args:
        statistics (`dict`): What [`SemanticIds.statistics`] returned.
        fit (`dict`, *optional*):
            `fit` of a `tokenizer.json`: the column `error` is the squared error of the levels up to this one over the
            variance, of the items that were learned from, and `others` that of the other items.

    Returns:
        `rich.table.Table`
    """
    table = Table(title=f"codebook size {statistics['codebook_size']}")
    errors = _errors(fit)
    for name in ("level", "codes used", "usage", "perplexity", *errors):
        table.add_column(name, justify="right")
    for level, values in enumerate(statistics["levels"]):
        table.add_row(
            str(level + 1),
            f"{values['num_used']:,}",
            f"{100 * values['usage']:.1f} %",
            f"{values['perplexity']:.1f}",
            *(_error_cell(column, level) for column in errors.values()),
        )
    return table


def _errors(fit: Mapping[str, Any] | None) -> dict[str, Sequence[float]]:
    """Columns of errors by level, of what is known."""
    columns = {"error": "relative_error", "others": "relative_error_of_others"}
    return {name: fit[key] for name, key in columns.items() if fit is not None and fit.get(key) is not None}


def _error_cell(errors: Sequence[float], level: int) -> str:
    return f"{errors[level]:.3f}" if level < len(errors) else "-"  # an appended code rebuilds nothing


def prefix_table(report: Mapping[str, Any]) -> Table:
    """
    How the items part and how alike they get, the more first codes they share.

    Args:
        report (`dict`): What [`id_report`] returned.

    Returns:
        `rich.table.Table`: one row per prefix length, the first one all pairs of items: chance.
    """
    table = Table(title="items that share their first codes", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("codes", "prefixes", "items", "most", "alone", "pairs", *_measure_names(report)):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in report["prefixes"]:
        table.add_row(
            str(entry["length"]) if entry["length"] else "any",
            f"{entry['num_prefixes']:,}",
            f"{entry['mean_items']:,.1f}",
            f"{entry['max_items']:,}",
            f"{100 * entry['share_alone']:.1f} %",
            f"{entry['num_pairs']:,}",
            *(_measure_cell(name, entry[name]["at_least"]) for name in report["measures"]),
        )
    return table


def position_table(report: Mapping[str, Any]) -> Table:
    """
    How each code of the tuple is used, and how alike items are that share it whatever their other codes are.

    Args:
        report (`dict`): What [`id_report`] returned.

    Returns:
        `rich.table.Table`: one row per level, the last one all pairs of items: chance.
    """
    title = f"items that share one code (codebook size {report['statistics']['codebook_size']})"
    caption = "texts, users: mean cosine of embeddings and of sets of users; lift: shared users, 1 is chance"
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False)
    errors = _errors(report.get("fit"))
    for name in ("level", "codes used", "usage", "perplexity", *errors, "pairs", *_measure_names(report)):
        table.add_column(name, justify="right", no_wrap=True)
    for level, entry in enumerate(report["positions"]):
        table.add_row(
            str(level + 1),
            f"{entry['num_used']:,}",
            f"{100 * entry['usage']:.1f} %",
            f"{entry['perplexity']:.1f}",
            *(_error_cell(column, level) for column in errors.values()),
            f"{entry['num_pairs']:,}",
            *(_measure_cell(name, entry[name]) for name in report["measures"]),
        )
    if report["measures"]:
        chance = report["prefixes"][0]
        cells = [_measure_cell(name, chance[name]["at_least"]) for name in report["measures"]]
        table.add_row("any", "", "", "", *[""] * len(errors), f"{chance['num_pairs']:,}", *cells, style="dim")
    return table


_MEASURES = {"text": ("texts", ".3f"), "co_purchase": ("users", ".4f"), "lift": ("lift", ".1f")}


def _measure_names(report: Mapping[str, Any]) -> list[str]:
    return [_MEASURES[name][0] for name in report["measures"]]


def _measure_cell(name: str, value: float | None) -> str:
    return "-" if value is None else format(value, _MEASURES[name][1])


def metrics_table(record: Mapping[str, Any]) -> Table:
    """
    An evaluation record, baselines first and the model last.

    Args:
        record (`dict`): What [`evaluate`] returned.

    Returns:
        `rich.table.Table`: recall and ndcg at 5 and 10 and mrr at 10, with intervals of 95 % (or what the record says)
        in brackets; below it the share of invalid lists.
    """
    columns = [name for name in _METRICS if name in record["model"]]
    title = (
        f"{record['protocol']}, {record['split']} split, {record['num_users']:,} users, {record['num_items']:,} items"
    )
    caption = (
        f"in brackets: {100 * record['confidence']:g} % bootstrap intervals over users; "
        f"invalid lists of the model: {100 * record['model']['invalid_rate']:.2f} %"
    )
    rows = [[system.name, *(metric_cell(system, name) for name in columns)] for system in _systems(record)]
    return rows_table([["system", *columns], *rows], title=title, caption=caption)


def _systems(record: Mapping[str, Any]) -> list[System]:
    stored = [StoredEvaluation("model", "", record)]
    return [*baseline_systems(stored), *model_systems(stored)]


def evaluation_tables(record: Mapping[str, Any]) -> list[Table | str]:
    """
    All that a reader of an evaluation should see.

    Args:
        record (`dict`): What [`evaluate`] returned.

    Returns:
        `list[rich.table.Table | str]`: [`metrics_table`], the tables of [`evidence_tables`] about the baselines and
        the model, and a line about the text encoder behind the ids where it is known.
    """
    shown: list[Table | str] = [metrics_table(record)]
    for table in evidence_tables(_systems(record)):
        shown.append(rows_table(table.rows, title=table.title, caption=table.note))
    encoder = record.get("run", {}).get("encoder")
    if encoder:
        note = "" if PUBLISHED_ENCODER in encoder else f"; {PUBLISHED_ENCODERS}: compare with care"
        shown.append(f"text encoder behind the ids: {encoder}{note}")
    return shown


def recommendations_table(entry: Mapping[str, Any], *, title: str, shown_history: int = 20) -> Table:
    """
    What one user took and what is recommended.

    Args:
        entry (`dict`): `history` (items with `item_id` and `title`), `unknown` ids and `recommendations` (items with
            `score`).
        title (`str`): The heading.
        shown_history (`int`, *optional*, defaults to 20): Latest items of the history that are listed.

    Returns:
        `rich.table.Table`
    """
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("title", overflow="fold")
    table.add_column("id")
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
    recommender: Any,
    histories: list[list[str]],
    *,
    exclude_seen: bool = True,
    exclude_items: Sequence[str] | None = None,
    allow_items: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """
    Recommendations with titles, ready for JSON and for [`recommendations_table`].

    Args:
        recommender ([`Recommender`]): A loaded model.
        histories (`list[list[str]]`): Item ids, oldest first.
        exclude_seen (`bool`, *optional*, defaults to `True`): Whether items of the history are left out.
        exclude_items (`list[str]`, *optional*): Ids that may not be recommended.
        allow_items (`list[str]`, *optional*): The only ids that may be; `None` for all.
        options (`Mapping[str, Any]`, *optional*): Fields of `RecommendConfig` for this call, such as `top_k`.

    Returns:
        `list[dict]`: per history `history`, `unknown` and `recommendations`.
    """
    found = recommender.recommend(
        histories,
        exclude_seen=exclude_seen,
        exclude_items=exclude_items,
        allow_items=allow_items,
        **(options or {}),
    )
    catalog = set(recommender.item_ids)
    entries = []
    for history, item_ids, scores in zip(histories, found.item_ids, found.scores, strict=True):
        known = [item_id for item_id in history if item_id in catalog]
        pairs = zip(item_ids, recommender.titles(item_ids), scores, strict=True)
        entries.append(
            {
                "history": [
                    {"item_id": item_id, "title": title}
                    for item_id, title in zip(known, recommender.titles(known), strict=True)
                ],
                "unknown": [item_id for item_id in history if item_id not in catalog],
                "recommendations": [{"item_id": i, "title": title, "score": score} for i, title, score in pairs],
            }
        )
    return entries


def rows_table(rows: Sequence[Sequence[str]], *, title: str, caption: str = "") -> Table:
    """
    Rows of strings, numbers on the right; what a cell says in brackets stands below its number.

    Args:
        rows (`list[list[str]]`): The header first, then the rows; the first column holds names.
        title (`str`): The heading.
        caption (`str`, *optional*, defaults to `""`): What stands below.

    Returns:
        `rich.table.Table`
    """
    table = Table(
        title=title,
        caption=caption,
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    header, *body = rows
    for column, name in enumerate(header):
        is_name = column == 0
        table.add_column(
            name.replace("[", r"\[").replace(" ", "\n"),
            justify="left" if is_name else "right",
            no_wrap=not is_name,
            overflow="fold",
            min_width=min(10, max(len(row[0]) for row in rows)) if is_name else None,
        )
    for name, *cells in body:
        table.add_row(name.replace("[", r"\["), *map(_lines_of, cells))
    return table


def _lines_of(cell: str) -> str:
    """`0.0375 ± 0.0010 [0.0354, 0.0393]` on three short lines; the brackets are no markup."""
    if cell.startswith("< 0."):
        return f"<{cell[3:]}"
    value, _, interval = cell.partition(" [")
    decimals = 4 if interval.startswith(("+", "-")) else 3  # a difference is small
    bounds = [f"{float(bound):.{decimals}f}".replace("0.", ".") for bound in interval.rstrip("]").split(", ") if bound]
    return value.replace(" ±", "\n±") + (f"\n\\[{' '.join(bounds)}]" if bounds else "")
