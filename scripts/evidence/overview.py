"""
Result records and the headings of the page in, the first screen of `RESULTS.md` out: the best systems of each data set
in one table, how to read the rest, and where it is.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hf_genrec.evaluation.systems import seedless_key
from hf_genrec.evaluation.tables import NONE, markdown_table, number


def overview_blocks(records: Sequence[Mapping[str, Any]], blocks: Sequence[str]) -> list[str]:
    """
    The first screen of the page.

    Args:
        records (`list[dict]`): Result records, those of one data set together.
        blocks (`list[str]`): The other blocks of the page; those that begin with `## ` are listed with links.

    Returns:
        `list[str]`: blocks of Markdown.
    """
    titles = [block.splitlines()[0].removeprefix("## ") for block in blocks if block.startswith("## ")]
    contents = "\n".join(f"- [{title}](#{heading_anchor(title)})" for title in titles)
    best = [markdown_table(_best_rows(records), num_left=3), _best_note(records)] if records else []
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
little; the tables below have all systems, with intervals. These are small trainings on a CPU: they compare systems
with each other and do not repeat published trainings."""
_HOW = """**How to read the page.** Recall, ndcg and mrr are shares in [0, 1], and users without a hit count. In
brackets stand bootstrap intervals over users. `invalid` is the share of users whose list is short, repeats an item or
holds a foreign id. `ids` is the collision policy of the semantic IDs, their levels and the codes per level. CPU
minutes are the processor time of the training, so that a run that had to share its cores counts no more than it used.
A dash stands where a record has no value.

Items are counted, not ids. Where several items share an id (policy `keep`), the main table counts them in the order
in which they were decoded, within an id that of the catalog; a further table says what counting ids would claim,
beside the expectation over a random order of the items of an id, which is also what the paired differences compare.

Published results of semantic-ID models embed item texts mostly with sentence-t5-base, some with an API encoder. Rows
with another encoder, such as all-MiniLM-L6-v2, are not comparable with them.

This page is made by `python scripts/evidence/write_results.py` from the records in `scripts/evidence/records/`; edit
neither by hand."""


def _best_rows(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["data set", "kind", "system", "seeds", *_METRICS]]
    for dataset in dict.fromkeys(record["run"]["dataset"] for record in records):
        best: dict[str, tuple[str, int, list[float]]] = {}
        for kind, name, seeds, values in _systems([one for one in records if one["run"]["dataset"] == dataset]):
            if kind not in best or values[-1] > best[kind][2][-1]:
                best[kind] = name, seeds, values
        for kind in _KINDS:
            if kind in best:
                name, seeds, values = best[kind]
                rows.append([dataset, kind, name, str(seeds or NONE), *map(number, values)])
    return rows


_KINDS = ("not trained", "item ids", "semantic IDs, code by code", "semantic IDs, all codes at once")


def _best_note(records: Sequence[Mapping[str, Any]]) -> str:
    """How to take the table, and where a baseline without training is ahead of every model."""
    notes = []
    for dataset in dict.fromkeys(record["run"]["dataset"] for record in records):
        systems = _systems([record for record in records if record["run"]["dataset"] == dataset])
        kind, name, *_ = max(systems, key=lambda system: system[-1][-1])
        if kind == "not trained":
            notes.append(f"**On {dataset} no model here is ahead of {name}, which is not trained at all.**")
    return " ".join([*notes, _BEST_NOTE])


def _systems(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int, list[float]]]:
    """Kind, name, number of seeds and the metrics of each system of a data set; runs of one system are averaged."""
    baselines = records[0]["baselines"]
    found = [
        ("not trained", {"item_knn": "item-kNN", "popularity": "Popularity"}.get(name, name), 0, _values([values]))
        for name, values in baselines.items()
    ]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(seedless_key(record, record["run"]["name"]), []).append(record)
    for group in groups.values():
        run = group[0]["run"]
        if run["policy"] is None:
            kind = "item ids"
        else:
            is_tree = run.get("decoding", "beam") == "beam"
            kind = "semantic IDs, code by code" if is_tree else "semantic IDs, all codes at once"
        link = f"[{run['system']}](#{run['name']})"
        found.append((kind, link, len(group), _values([record["model"] for record in group])))
    return found


def _values(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    return [statistics.fmean(values[name] for values in runs) for name in _METRICS]
