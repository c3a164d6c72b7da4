"""
Systems in, tables out: rows of strings, and Markdown.

A table is a title and rows, the first row the header; what no system has makes no table, and what one system lacks
is a dash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_genrec.evaluation.metrics import PairedDifference
from hf_genrec.evaluation.record import shown_cut
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
_SEARCH = {"distinct_items": ("items", ".1f"), "num_visited": ("scored", ",.0f")}
_SEARCH_NOTE = (
    "Means per user. Items: distinct ones among the beams. Scored: all items, or those that a graph search visited. "
    "The rest: a sample of the users."
)


@dataclass(frozen=True)
class TextTable:
    """
    One table.

    Args:
        title (`str`): What stands above it.
        rows (`list[list[str]]`): The header first.
        note (`str`, *optional*, defaults to `""`): How its columns are to be read.
    """

    title: str
    rows: Sequence[Sequence[str]]
    note: str = ""


def evidence_tables(systems: Sequence[System]) -> list[TextTable]:
    """
    What systems do beyond the usual metrics, as far as their records say.

    Args:
        systems (`list[System]`): Comparable ones.
    """
    tables = [
        TextTable("Where several items share an id", _collisions(systems), _COLLISIONS_NOTE),
        _properties(systems),
        _by_popularity(systems),
        TextTable("The search against exact scores", _searches(systems), _SEARCH_NOTE),
    ]
    return [table for table in tables if len(table.rows) > 1]


def table_blocks(tables: Sequence[TextTable]) -> list[str]:
    """
    Tables as Markdown.

    Args:
        tables (`list[TextTable]`): What [`evidence_tables`] returned.
    """
    blocks = []
    for table in tables:
        blocks += [
            f"**{table.title}**{f'. {table.note}' if table.note else ''}",
            markdown_table(table.rows),
        ]
    return blocks


def markdown_table(rows: Iterable[Sequence[str]], *, num_left: int = 1, num_right: int | None = None) -> str:
    r"""
    Rows as a table of Markdown.

    Args:
        rows (`list[list[str]]`): The header first.
        num_left (`int`, *optional*, defaults to 1): Columns of words at the left.
        num_right (`int`, *optional*): Columns of numbers after them, which stand on the right; `None` for all.

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
    """
    A metric with what is known of its uncertainty.

    Args:
        system ([`System`]): Any.
        name (`str`): Name of the metric.

    >>> values = {"ndcg@10": 0.0375, "intervals": {"ndcg@10": [0.0354, 0.0393]}}
    >>> metric_cell(System("PSID", values), "ndcg@10"), metric_cell(System("PSID", values), "mrr@10")
    ('0.0375 [0.0354, 0.0393]', '–')
    """
    if name not in system.values:
        return NONE
    cell = number(system.values[name])
    cell += f" ± {system.deviations[name]:.4f}" if name in system.deviations else ""
    return cell + _brackets(system.values.get("intervals", {}).get(name), ".4f")


def paired_cells(found: PairedDifference | None) -> list[str]:
    """
    A paired difference with its interval, and its p-value.

    Args:
        found ([`PairedDifference`] or `None`): What was found.

    >>> paired_cells(PairedDifference(0.0021, 0.0003, 0.004, 0.0214, 8317))
    ['+0.0021 [+0.0003, +0.0040]', '0.021']
    >>> paired_cells(PairedDifference(0.0021, None, None, None, 3))
    ['+0.0021', '–']
    """
    if found is None:
        return [NONE, NONE]
    interval = None if found.low is None or found.high is None else [found.low, found.high]
    return [f"{found.difference:+.4f}{_brackets(interval, '+.4f')}", _p_value(found.p_value)]


def _p_value(value: float | None) -> str:
    if value is None:
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def number(value: float | None, form: str = ".4f") -> str:
    """
    A number as a cell; a dash where there is none.

    Args:
        value (`float` or `None`): The number.
        form (`str`, *optional*, defaults to `".4f"`): How it is written, for `format`.
    """
    return NONE if value is None else format(value, form)


def _brackets(interval: Sequence[float] | None, form: str) -> str:
    return "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"


def _cut(values: Iterable[Mapping[str, Any]], metric: str) -> int:
    return shown_cut([name for names in values for name in names], metric=metric)


def _collisions(systems: Sequence[System]) -> list[list[str]]:
    rows = [["system", "metric", "items counted", "expected", "ids counted", "overestimate", "short"]]
    for system in systems:
        if "corrected" not in system.values:
            continue
        cut = shown_cut(system.values["corrected"], metric="recall")
        for name in (f"recall@{cut}", f"ndcg@{cut}"):
            expected = system.values["corrected"].get(name)
            of_ids = system.values.get("id_level", {}).get(name)
            excess = f"{100 * (of_ids / expected - 1):+.1f} %" if expected and of_ids is not None else NONE
            cells = [number(value) for value in (system.values.get(name), expected, of_ids)]
            short = number(system.values.get("num_id_truncated"), ",.0f")
            rows.append([system.name, name, *cells, excess, short])
    return rows


def _properties(systems: Sequence[System]) -> TextTable:
    cut = _cut([system.values for system in systems], "coverage")
    forms = {name.format(k=cut): form for name, (_, form) in _PROPERTIES.items()}
    rows = [["system", *(title for title, _ in _PROPERTIES.values())]]
    for system in systems:
        if any("@" in name and name in system.values for name in forms):
            rows.append([system.name, *(number(system.values.get(name), form) for name, form in forms.items())])
    return TextTable("What the lists are like", rows, _PROPERTIES_NOTE.format(k=cut))


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
    counts = [name for name in _SEARCH if any(name in system.values for system in systems)]
    rows = [["system", *(_SEARCH[name][0] for name in counts), *(title.format(k=cut) for title, _ in _GAP.values())]]
    for system in systems:
        gap = system.values.get("exact_gap", {})
        if gap or any(name in system.values for name in counts):
            found = [number(system.values.get(name), _SEARCH[name][1]) for name in counts]
            rows.append(
                [system.name, *found, *(number(gap.get(name.format(k=cut)), form) for name, (_, form) in _GAP.items())]
            )
    return rows
