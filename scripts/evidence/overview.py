"""
Result records and the headings of the page in, the first screen of `RESULTS.md` out: the best systems of each data set
in one table, how to read the rest, and where it is.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hf_genrec.evaluation.tables import NONE, markdown_table, number
from paired_results import baselines_of


def overview_blocks(
    records: Sequence[Mapping[str, Any]], blocks: Sequence[str], baselines: Sequence[Mapping[str, Any]] = ()
) -> list[str]:
    """
    The first screen of the page.

    Args:
        records (`list[dict]`): Result records, those of one data set together.
        blocks (`list[str]`): The other blocks of the page; those that begin with `## ` are listed with links.
        baselines (`list[dict]`, *optional*): Records of baselines alone.

    Returns:
        `list[str]`: blocks of Markdown.
    """
    titles = [block.splitlines()[0].removeprefix("## ") for block in blocks if block.startswith("## ")]
    contents = "\n".join(f"- [{title}](#{heading_anchor(title)})" for title in titles)
    found = {
        dataset: _systems(
            [one for one in records if one["run"]["dataset"] == dataset],
            [one for one in baselines if one["run"]["dataset"] == dataset],
        )
        for dataset in dict.fromkeys(record["run"]["dataset"] for record in records)
    }
    best = [markdown_table(_best_rows(found), num_left=3), _best_note(found)] if records else []
    return [_WHAT, *best, _HOW, *([f"**Contents**\n\n{contents}"] if titles else [])]


def heading_anchor(title: str) -> str:
    """
    Where GitHub puts the link target of a heading.

    Args:
        title (`str`): The heading.

    Example:

    ```python
    >>> heading_anchor("Amazon 2014 Beauty, amazon2014, test split")
    'amazon-2014-beauty-amazon2014-test-split'

    ```
    """
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


_METRICS = ("recall@10", "ndcg@10")
_WHAT = """# Results

Next-item recommendation on public logs: each model ranks every item of the catalog for every user, and the one item
that the user took next is the target. The best system of each kind by ndcg@10, the mean over its seeds:"""
_BEST_NOTE = """The best of several systems is picked by the numbers that stand here, which therefore overestimate a
little; the tables below have all systems, with intervals. These are small trainings, most on a CPU: they compare
systems with each other and do not repeat published trainings."""
_HOW = """**How to read the page.** Recall, ndcg and mrr are shares in [0, 1], and users without a hit count. In
brackets stand bootstrap intervals over users. Items of the history may be listed, as in the papers' protocol; columns
named `seen excluded` are of lists without them, with settings of the baselines that were chosen for such lists.
`invalid` is the share of users whose list is short, repeats an item or holds a foreign id. `ids` is the collision
policy of the semantic IDs, their levels and the codes per level. CPU minutes are the processor time of the training,
so that a run that had to share its cores counts no more than it used; a GPU is named beside them, its time
is not counted.
A dash stands where a record has no value.

Items are counted, not ids. Where several items share an id (policy `keep`), the main table counts them in the order
in which they were decoded, within an id that of the catalog; a further table says what counting ids would claim,
beside the expectation over a random order of the items of an id, which is also what the paired differences compare.

Published results of semantic-ID models embed item texts mostly with sentence-t5-base, some with an API encoder. Rows
with another encoder, such as all-MiniLM-L6-v2, are not comparable with them.

This page is made by `python scripts/evidence/write_results.py` from the records in `scripts/evidence/records/`; edit
neither by hand."""


def _best_rows(found: Mapping[str, Sequence[_System]]) -> list[list[str]]:
    rows = [["data set", "kind", "system", "seeds", *_METRICS, "ndcg@10, seen excluded"]]
    for dataset, systems in found.items():
        for kind in _KINDS:
            best = max((own for own in systems if own[0] == kind), key=lambda own: own[3][1], default=None)
            if best is not None:
                rows.append([dataset, kind, best[1], str(best[2] or NONE), *map(number, best[3])])
    return rows


def row_of(record: Mapping[str, Any]) -> str:
    """The row of a table that a record is a seed of: its name without `_seed3`. Args: a result record."""
    return re.sub(r"_seed\d+$", "", record["run"]["name"])


# Kind, name, number of seeds, and recall, ndcg and ndcg with seen items excluded, which old records lack.
_System = tuple[str, str, int, list[float | None]]
_KINDS = (
    "not trained",
    "item ids",
    "semantic IDs, code by code",
    "semantic IDs, all codes at once",
    "several models, added up",
)


def _best_note(found: Mapping[str, Sequence[_System]]) -> str:
    """How to take the table, and where a baseline without training is ahead of every model."""
    ahead: dict[str, list[str]] = {}
    for dataset, systems in found.items():
        kind, name, *_ = max(systems, key=lambda own: own[3][1])
        if kind == "not trained":
            ahead.setdefault(name, []).append(dataset)
    notes = [
        f"**With seen items allowed, no trained model on {' and '.join(there)} is ahead of {name}.**"
        for name, there in ahead.items()
    ]
    return "\n".join([*notes, _BEST_NOTE])


def _systems(records: Sequence[Mapping[str, Any]], baselines: Sequence[Mapping[str, Any]]) -> list[_System]:
    """The systems of a data set; runs of one system are averaged."""
    found: list[_System] = [
        ("not trained", own.name, 0, _values([own.values])) for own in baselines_of([*records, *baselines])
    ]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(row_of(record), []).append(record)
    for group in groups.values():
        run = group[0]["run"]
        if "members" in run.get("settings", {}).get("model", {}):
            kind = "several models, added up"
        elif run["policy"] is None:
            kind = "item ids"
        else:
            is_tree = run.get("decoding", "beam") == "beam"
            kind = "semantic IDs, code by code" if is_tree else "semantic IDs, all codes at once"
        link = f"[{run['system']}](#{run['name']})"
        found.append((kind, link, len(group), _values([record["model"] for record in group])))
    return found


def _values(runs: Sequence[Mapping[str, Any]]) -> list[float | None]:
    excluded = [values["seen_excluded"] for values in runs if "seen_excluded" in values]
    values = [statistics.fmean(own[name] for own in runs) for name in _METRICS]
    return [*values, statistics.fmean(own["ndcg@10"] for own in excluded) if len(excluded) == len(runs) else None]
