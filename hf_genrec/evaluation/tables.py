"""
Systems in, tables out: rows of strings, and Markdown.

What no system has makes no table, and what one system lacks is a dash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_genrec.evaluation.metrics import PairedDifference
from hf_genrec.evaluation.record import interval_text, shown_cut
from hf_genrec.evaluation.systems import System


NONE = "–"
PUBLISHED_ENCODERS = "published rows use mostly sentence-t5-base, some an API encoder"
# Titles and formats by the name in a record, {k} being the cut-off that is shown.
_PROPERTIES = {
    "coverage@{k}": ("coverage", ".4f"),
    "gini@{k}": ("Gini", ".4f"),
    "novelty@{k}": ("novelty", ".2f"),
    "diversity@{k}": ("diversity", ".4f"),
    "popularity_lift@{k}": ("popularity lift", "+.3f"),
    "invalid_rate": ("invalid", ".4f"),
    "seconds_per_user": ("seconds per user", ".5f"),
}
_GAP = {
    "num_users": ("users", ",.0f"),
    "ndcg@{k}": ("ndcg@{k}", ".4f"),
    "exact_ndcg@{k}": ("exact ndcg@{k}", ".4f"),
    "overlap@{k}": ("overlap@{k}", ".3f"),
}
_SEARCH = {"distinct_items": ("items", ".1f"), "num_visited": ("scored", ",.0f")}
_COLLISIONS_NOTE = (
    "`items counted` are those of the lists as decoded, the items of an id in the order of the catalog; `expected` is "
    "the expectation over a random order of the items of an id; `overestimate` is how far counting ids is above it; "
    "`short` counts users whose list holds neither the target's id nor as many distinct ids."
)
_PROPERTIES_NOTE = (
    "The first {k} items of each list. Coverage: share of the catalog that is in any list. Gini: 0 where all "
    "items are recommended equally often. Novelty, in bits: mean of -log2 of an item's share of the training part. "
    "Diversity: how unlike the buyers of the items of a list are. Popularity lift: how much more popular the items of "
    "the lists are than those of the histories."
)
_SEARCH_NOTE = (
    "Means per user. Items: distinct ones among the beams. Scored: all items, or those that a graph search visited or "
    "that a dense head drafted. The rest: a sample of the users."
)


@dataclass(frozen=True)
class TextTable:
    """One table: what stands above it, its rows with the header first, and how its columns are to be read."""

    title: str
    rows: Sequence[Sequence[str]]
    note: str = ""


def evidence_tables(systems: Sequence[System]) -> list[TextTable]:
    """What systems do beyond the usual metrics, as far as their records say. Args: comparable systems."""
    tables = [
        TextTable("Where several items share an id", _collisions(systems), _COLLISIONS_NOTE),
        _properties(systems),
        _by_popularity(systems),
        TextTable("The search against exact scores", _searches(systems), _SEARCH_NOTE),
    ]
    return [table for table in tables if len(table.rows) > 1]


def table_blocks(tables: Sequence[TextTable]) -> list[str]:
    """Tables as Markdown. Args: what [`evidence_tables`] returned."""
    titles = [f"**{table.title}**{f'. {table.note}' if table.note else ''}" for table in tables]
    return [
        block for title, table in zip(titles, tables, strict=True) for block in (title, markdown_table(table.rows))
    ]


def markdown_table(rows: Iterable[Sequence[str]], *, num_left: int = 1, num_right: int | None = None) -> str:
    r"""
    Rows as a table of Markdown.

    Args: rows, the header first; columns of words at the left; columns of numbers after them, `None` for all others.

    >>> print(markdown_table([["system", "ndcg@10"], ["A|B", "0.0375"]]))
    | system | ndcg@10 |
    | --- | ---: |
    | A\|B | 0.0375 |
    """
    header, *body = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    num_right = len(header) - num_left if num_right is None else num_right
    rule = ["---"] * num_left + ["---:"] * num_right + ["---"] * (len(header) - num_left - num_right)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *body])


def metric_cell(system: System, name: str) -> str:
    """A metric and its uncertainty, such as `0.0375 [0.0354, 0.0393]`. Args: any system, the name of a metric."""
    if name not in system.values:
        return NONE
    deviation = f" ± {system.deviations[name]:.4f}" if name in system.deviations else ""
    return number(system.values[name]) + deviation + interval_text(system.interval(name))


def paired_cells(found: PairedDifference | None) -> list[str]:
    """
    A paired difference with its interval, such as `+0.0021 [+0.0003, +0.0040]`, and its p-value. Args: it, or `None`.
    """
    if found is None:
        return [NONE, NONE]
    interval = None if found.low is None or found.high is None else [found.low, found.high]
    p_value = "< 0.001" if found.p_value is not None and found.p_value < 0.001 else number(found.p_value, ".3f")
    return [f"{found.difference:+.4f}{interval_text(interval, '+.4f')}", p_value]


def number(value: float | None, form: str = ".4f") -> str:
    """A number as a cell; a dash where there is none. Args: the number, and how `format` writes it."""
    return NONE if value is None else format(value, form)


def _cut(values: Iterable[Mapping[str, Any]], metric: str) -> int:
    return shown_cut([name for names in values for name in names], metric=metric)


def _collisions(systems: Sequence[System]) -> list[list[str]]:
    rows = [["system", "metric", "items counted", "expected", "ids counted", "overestimate", "short"]]
    for system in systems:
        cut = _cut([system.values.get("corrected", {})], "recall")
        for name in (f"recall@{cut}", f"ndcg@{cut}") if "corrected" in system.values else ():
            expected = system.values["corrected"].get(name)
            of_ids = system.values.get("id_level", {}).get(name)
            excess = f"{100 * (of_ids / expected - 1):+.1f} %" if expected and of_ids is not None else NONE
            cells = [number(value) for value in (system.values.get(name), expected, of_ids)]
            rows.append([system.name, name, *cells, excess, number(system.values.get("num_id_truncated"), ",.0f")])
    return rows


def _properties(systems: Sequence[System]) -> TextTable:
    cut = _cut([system.values for system in systems], "coverage")
    forms = {name.format(k=cut): form for name, (_, form) in _PROPERTIES.items()}
    shown = [own for own in systems if any("@" in name and name in own.values for name in forms)]
    rows = [[own.name, *(number(own.values.get(name), form) for name, form in forms.items())] for own in shown]
    header = ["system", *(title for title, _ in _PROPERTIES.values())]
    return TextTable("What the lists are like", [header, *rows], _PROPERTIES_NOTE.format(k=cut))


def _by_popularity(systems: Sequence[System]) -> TextTable:
    known = {system.name: system.values["by_popularity"] for system in systems if "by_popularity" in system.values}
    recall = f"recall@{_cut([entry for entries in known.values() for entry in entries], 'recall')}"
    sizes = {entry["bucket"]: entry["num_users"] for entries in known.values() for entry in entries}
    rows = [["system", *(f"{bucket} ({size:,.0f})" for bucket, size in sizes.items())]]
    for name, entries in known.items():
        recalls = {entry["bucket"]: entry.get(recall) for entry in entries}
        rows.append([name, *(number(recalls.get(bucket)) for bucket in sizes)])
    return TextTable(f"{recall} by how often the target was taken in training (users)", rows)


def _searches(systems: Sequence[System]) -> list[list[str]]:
    cut = _cut([system.values.get("exact_gap", {}) for system in systems], "ndcg")
    counts = {name: forms for name, forms in _SEARCH.items() if any(name in system.values for system in systems)}
    gap = {name.format(k=cut): (title.format(k=cut), form) for name, (title, form) in _GAP.items()}
    rows = [["system", *(title for title, _ in [*counts.values(), *gap.values()])]]
    for system in systems:
        found = system.values.get("exact_gap", {})
        if found or any(name in system.values for name in counts):
            cells = [number(system.values.get(name), form) for name, (_, form) in counts.items()]
            rows.append([system.name, *cells, *(number(found.get(name), form) for name, (_, form) in gap.items())])
    return rows
