"""
Records in, tables for a terminal out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table


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
        `list[str]`: sizes of the splits, everything that was skipped, and the published statistics.
    """
    splits = ", ".join(f"{name} {size:,}" for name, size in metadata["splits"].items())
    notes = [f"users per split: {splits}; training targets: {metadata['num_train_targets']:,}"]
    skipped = metadata["skipped"]
    notes += [f"skipped, {name}: {count:,}" for name, count in skipped.items() if isinstance(count, int) and count]
    notes += [f"first of the {name}: {text}" for name, text in skipped.items() if isinstance(text, str) and text]
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


def usage_table(statistics: Mapping[str, Any]) -> Table:
    """
    How the codes of each level are used.

    Args:
        statistics (`dict`): What [`SemanticIds.statistics`] returned.

    Returns:
        `rich.table.Table`
    """
    table = Table(title=f"codebook size {statistics['codebook_size']}")
    for name in ("level", "codes used", "usage", "perplexity"):
        table.add_column(name, justify="right")
    for level, values in enumerate(statistics["levels"]):
        table.add_row(
            str(level), f"{values['num_used']:,}", f"{100 * values['usage']:.1f} %", f"{values['perplexity']:.1f}"
        )
    return table


def metrics_table(record: Mapping[str, Any], *, metrics: Sequence[str] | None = None) -> Table:
    """
    An evaluation record, baselines first and the model last.

    Args:
        record (`dict`): What [`evaluation_record`] returned.
        metrics (`list[str]`, *optional*): Columns; `None` for recall and ndcg at 5 and 10 and the invalid rate.

    Returns:
        `rich.table.Table`: intervals of 95 % (or what the record says) in brackets.
    """
    wanted = ["recall@5", "recall@10", "ndcg@5", "ndcg@10", "invalid_rate"] if metrics is None else list(metrics)
    columns = [name for name in wanted if name in record["model"]]
    title = (
        f"{record['protocol']}, {record['split']} split, {record['num_users']:,} users, {record['num_items']:,} items"
    )
    caption = f"in brackets: {100 * record['confidence']:g} % bootstrap intervals over users"
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("system", no_wrap=True)
    for name in columns:
        table.add_column(name.removesuffix("_rate"), justify="right", no_wrap=True)
    for system, values in [*record["baselines"].items(), ("model", record["model"])]:
        cells = [_cell(values[name], values["intervals"].get(name)) for name in columns]
        table.add_row(system, *cells, style="bold" if system == "model" else None)
    return table


def _cell(value: float, interval: Sequence[float] | None) -> str:
    """Two lines, narrow enough for four metrics in 80 columns; the brackets are no markup."""
    if interval is None:
        return f"{value:.4f}"
    low, high = (f"{bound:.3f}".removeprefix("0") for bound in interval)
    return f"{value:.4f}\n\\[{low} {high}]"


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
    top_k: int,
    exclude_seen: bool = False,
    exclude_items: Sequence[str] | None = None,
    allow_items: Sequence[str] | None = None,
    search_options: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """
    Recommendations with titles, ready for JSON and for [`recommendations_table`].

    Args:
        recommender ([`Recommender`]): A loaded model.
        histories (`list[list[str]]`): Item ids, oldest first.
        top_k (`int`): Items per user.
        exclude_seen (`bool`, *optional*, defaults to `False`): Whether items of the history are left out.
        exclude_items (`list[str]`, *optional*): Ids that may not be recommended.
        allow_items (`list[str]`, *optional*): The only ids that may be; `None` for all.
        search_options (`Mapping[str, Any]`, *optional*): Further arguments of the model's `recommend()` by name.

    Returns:
        `list[dict]`: per history `history`, `unknown` and `recommendations`.
    """
    found = recommender.recommend(
        histories,
        top_k=top_k,
        exclude_seen=exclude_seen,
        exclude_items=exclude_items,
        allow_items=allow_items,
        search_options=search_options,
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
