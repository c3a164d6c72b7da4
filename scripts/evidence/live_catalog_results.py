"""
Figures of `benchmark_live_catalog.py`, `cold_start.py` and `month_by_month.py` in, a section of `RESULTS.md` out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_genrec.evaluation.record import interval_text
from hf_genrec.evaluation.tables import markdown_table


def live_catalog_blocks(figures: Mapping[str, Any] | None) -> list[str]:
    """
    The section "A catalog that changes".

    Args:
        figures (`dict` or `None`): The content of `live_catalog.json`.

    Returns:
        `list[str]`: blocks of Markdown; empty without figures.

    Example:

    ```python
    >>> added = {"model": "RPG", "seconds_to_add": 0.41, "cpu_seconds_to_add": 0.2, "seconds_to_first": 0.05}
    >>> steps = {"model": "RPG", "num_steps": 5000, "num_lists": 750, "seconds": 300.0}
    >>> blocks = live_catalog_blocks({"num_items": 9, "num_added": 2, "additions": [added], "steps": [steps]})
    >>> print(blocks[2].splitlines()[2])
    | RPG | 0.41 | 0.20 | 0.05 | - |

    ```
    """
    if not figures:
        return []
    rows = [["model", "seconds", "of these computing", "first list, seconds", "texts, seconds each"]]
    for each in figures["additions"]:
        texts = "-"
        if "num_texts" in each:
            texts = f"{each['seconds_to_add_texts'] / each['num_texts']:.2f}"
        cells = (each["seconds_to_add"], each["cpu_seconds_to_add"], each["seconds_to_first"])
        rows.append([each["model"], *(f"{cell:.2f}" for cell in cells), texts])
    num_steps = sum(each["num_steps"] for each in figures["steps"])
    num_lists = sum(each["num_lists"] for each in figures["steps"])
    kinds = "; ".join(each["model"] for each in figures["steps"])
    blocks = [
        "## A catalog that changes",
        f"{figures['num_added']:,} items are added to {figures['num_items']:,} in a folder on disk, from vectors of "
        "384 columns; then the first list that holds one of them. Medians on one of two cores that other programs "
        "used too, hence the column of computing alone. The last column is a short text with its encoder "
        "(all-MiniLM-L6-v2), loading it included. Made by `scripts/evidence/benchmark_live_catalog.py`.",
        markdown_table(rows, num_left=1),
        f"**Against rebuilds.** {num_steps:,} random steps (add, remove, bring back, roll back) of {kinds}: after "
        "each the trie, where there is one, equalled that of a model made anew of the items left, and so did "
        f"{num_lists:,} lists.",
    ]
    if "graph" in figures:
        blocks.append(
            f"**The item graph.** Extending a graph of 50 neighbours by the {figures['num_added']:,} items, which "
            "makes it that of a model built anew, took an RPG with 16 codes per item "
            f"{figures['graph']['cpu_seconds']:.1f} seconds of computing."
        )
    return blocks


def cold_start_blocks(record: Mapping[str, Any] | None) -> list[str]:
    """
    The section "Items without interactions".

    Args:
        record (`dict` or `None`): The content of `cold_start.json`.

    Returns:
        `list[str]`: blocks of Markdown; empty without a record.
    """
    if not record:
        return []
    blocks = [
        "### Items without interactions",
        "A model is trained without the newest items of a log, and then they are added from their vectors, as a shop "
        "would (`catalog.add`). *closed*: they are not offered. *together*: ranked with all others "
        "(`num_new_items=0`, `new_item_margin=0`). *alone*: a shelf of them (`allow_items`). *places*: the last "
        "places of ten are theirs (`num_new_items`). *margin*: so many places, and a better one where the score of a "
        "new item exceeds that of an old one by so many nats (`new_item_margin`); a tenth of a list and 1.5 are the "
        "defaults. *dense*: 20 generated old items and all new ones, by the dense head, with an offset (LIGER). "
        "Settings: of those that keep enough of the ndcg@10 of old targets on validation users the ones with the best "
        "recall@10 of new targets; test users were read once. `lost` is the share of the ndcg@10 of old targets that "
        "*closed* has more. 95 % bootstrap intervals over users. Made by `scripts/evidence/cold_start.py`.",
    ]
    for name, figures in record.items():
        test = figures["test"]
        base, num_users = test["nothing"]["warm"]["ndcg@10"], test["num_users"]
        rows = [["new items", "recall@10, new", "ndcg@10, new", "recall@10, old", "ndcg@10, old", "lost"]]
        for way, title in _ways(figures).items():
            cells = [
                _cell(test[way][kind], metric) for kind in ("cold", "warm") for metric in ("recall@10", "ndcg@10")
            ]
            less = [test[way]["warm"]["ndcg@10 less"], *test[way]["warm"]["ndcg@10 less interval"]]
            lost = "–" if way == "nothing" else "{:.1%} [{:.1%}, {:.1%}]".format(*(each / base for each in less))
            rows.append([title, *cells, lost] if way != "restricted" else [title, *cells[:2], "–", "–", "–"])
        offset = f", the offset is {figures['offset']:g}" if "offset" in figures else ""
        blocks += [
            f"**{name}.** {figures['num_cold_items']} items, the newest by {figures['newest_by']}; "
            f"{num_users['cold']:,} users with a new target and {num_users['warm']:,} others; at most "
            f"{figures['loss']:.0%} may be lost on validation{offset}.",
            markdown_table(rows, num_left=1),
        ]
    return blocks


def _ways(figures: Mapping[str, Any]) -> dict[str, str]:
    """The ways of a data set, and what they are called."""
    (places, margin), last = figures["margin"], figures["places"]
    ways = {"nothing": "closed", "id only": "together", "restricted": "alone", "quota": f"places: {last}"}
    ways["margin"] = f"places: {places}, margin {margin:g}"
    return ways | ({"dense": "dense"} if "offset" in figures else {})


def _cell(values: Mapping[str, Any], name: str) -> str:
    return f"{values[name]:.4f}{interval_text(values[f'{name} interval'])}"


def month_blocks(record: Mapping[str, Any] | None) -> list[str]:
    """
    The section "Month by month".

    Args:
        record (`dict` or `None`): The content of `month_by_month.json`.

    Returns:
        `list[str]`: blocks of Markdown; empty without a record.
    """
    if not record:
        return []
    first, last, seconds = record["months"][0]["month"], record["months"][-1]["month"], record["seconds"]
    names = ("recall@10", "ndcg@10", "recall@10 new", "ndcg@10 new")
    header = ["model", "recall@10", "ndcg@10", "recall@10, new", "ndcg@10, new", "CPU minutes"]
    rows = [header]
    spent = {
        "frozen": seconds[f"anew {first}"],
        "items added": seconds[f"anew {first}"],
        "fine-tuned": seconds[f"anew {first}"] + sum(each for name, each in seconds.items() if "tuned" in name),
    }
    for way, found in record["together"]["fine-tuned"].items():
        cells = [f"{found[name]['mean']:.4f}{interval_text(found[name]['interval'])}" for name in names]
        rows.append([way, *cells, f"{spent[way] / 60:.1f}"])
    again = [header[:-1]]
    retrained = [month["month"] for month in record["months"] if "retrained" in month["ways"]]
    for way, found in record["together"]["retrained"].items():
        again.append([way, *(f"{found[name]['mean']:.4f}{interval_text(found[name]['interval'])}" for name in names)])
    minutes = sum(seconds[f"anew {month}"] for month in retrained) / 60
    return [
        "### Month by month",
        f"Online Retail, {record['num_items']:,} items: a PSID with two heads (width 64) is trained on the first "
        f"{record['first_months']} months. In each month from {first} to {last} the items that appear are added from "
        "their titles on its first day, users who have bought before get ten items, and what they buy in the month "
        "are the targets; after it the model goes on with the users of the month (`train --from`). Means over users "
        "and months, with 95 % bootstrap intervals; *new*: of targets that appear in the month. No setting was chosen "
        "by these figures. Made by `scripts/evidence/month_by_month.py`.",
        markdown_table(rows, num_left=1),
        f"In {' and '.join(retrained)} also a model with new ids, trained on everything before ({minutes:.1f} CPU "
        "minutes together). The same months:",
        markdown_table(again, num_left=1),
        "![recall@10 by month](scripts/evidence/records/month_by_month.png)",
    ]
