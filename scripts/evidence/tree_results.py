"""
Reports of `hf-genrec diagnose` and the record of the synthetic experiment in, blocks of Markdown out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_genrec.evaluation.tables import markdown_table


def tree_blocks(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """
    The section "The decoding tree".

    Args:
        reports (`dict[str, dict]`):
            What `hf-genrec diagnose --output` wrote, by the name of the file without its ending. A figure of the same
            name is expected beside it.

    Returns:
        `list[str]`: blocks of Markdown; empty without reports.
    """
    blocks = [_TREE_INTRODUCTION] if reports else []
    for name, report in sorted(reports.items()):
        distances = sorted({row["distance"] for model in report["models"].values() for row in model["by_distance"]})
        rows: list[Sequence[str]] = [
            [
                "model",
                "tau-b",
                *(f"correlation at {distance}" for distance in distances),
                *(f"reversed at {distance}" for distance in distances),
                "latent entropy",
                "information, nats",
            ]
        ]
        for model_name, model in report["models"].items():
            at = {row["distance"]: row for row in model["by_distance"]}
            means = [
                _figure(at[distance][key]["mean"] if distance in at else None)
                for key in ("correlation", "reversal_rate")
                for distance in distances
            ]
            latents = model.get("latents", {})
            information = latents.get("mutual_information")
            used = [_figure(latents.get("normalized_entropy")), "–" if information is None else f"{information:.2g}"]
            rows.append([model_name, _figure(model["kendall_tau"], model["interval"]), *means, *used])
        blocks.append(f"### {report['protocol']}: {name}")
        blocks.append(_conditions(report))
        blocks.append(markdown_table(rows, num_left=1))
        blocks.append(f"![Correlation and reversals by distance](scripts/evidence/records/trees/{name}.png)")
        blocks.append(f"`{report['command']}`" if "command" in report else "")
    return [block for block in blocks if block]


def synthetic_blocks(record: Mapping[str, Any] | None) -> list[str]:
    """
    The section "Siblings that different users like".

    Args:
        record (`dict`):
            What `scripts/evidence/synthetic_siblings.py` wrote; `None` if there is none.

    Returns:
        `list[str]`: blocks of Markdown; empty without a record or without runs in it.
    """
    if record is None or not record["runs"]:
        return []
    cells: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for run in sorted(record["runs"], key=lambda run: (run["width"], run["seed"])):
        cells.setdefault((run["system"], run["width"]), []).append(run)
    shared = shared_step(record["runs"])
    measured = [f"order at step {shared}", f"divergence at step {shared}"]
    header = ["system", "width", "parameters", "learnt", "from step", *measured]
    rows: list[Sequence[str]] = [header]
    for (system, width), runs in sorted(cells.items()):
        steps = sorted(run["learned_step"] for run in runs if run["learned_step"] is not None)
        there = [measured_at(run, shared) for run in runs]
        rows.append(
            [
                system,
                str(width),
                f"{runs[0]['num_parameters']:,}",
                f"{len(steps)} of {len(runs)}",
                ", ".join(map(str, steps)) or "–",
                f"{np.mean([entry['order'] for entry in there]):.2f}",
                f"{np.mean([entry['divergence'] for entry in there]):.3f}",
            ]
        )
    settings = record["settings"]
    return [
        _SYNTHETIC_INTRODUCTION,
        f"At most {settings['steps']} steps of {settings['users']} new users, {settings['triples']} triples, learning "
        f"rate {settings['learning_rate']:g} for all, measured every {settings['every']} steps; means over seeds. A "
        f"run ends once {settings['stays']} measurements in a row were right, so runs have different lengths; `order` "
        f"and `divergence` are those at step {shared}, the last that all runs have measured.",
        markdown_table(rows, num_left=1),
        "![Triples in the order that the user likes, by step](scripts/evidence/records/curves/synthetic_siblings.png)",
        f"`{record['command']}`",
    ]


def shared_step(runs: Sequence[Mapping[str, Any]]) -> int:
    """
    The last step at which all runs of the synthetic experiment were measured.

    Args:
        runs (`list[dict]`):
            At least one, each with `measurements`.

    Example:

    ```python
    >>> short, long = ({"measurements": [{"step": step} for step in steps]} for steps in ((0, 5), (0, 5, 10)))
    >>> shared_step([short, long])
    5

    ```
    """
    return min(run["measurements"][-1]["step"] for run in runs)


def measured_at(run: Mapping[str, Any], step: int) -> Mapping[str, Any]:
    """
    The measurement of a run of the synthetic experiment at a step.

    Args:
        run (`dict`): The run.
        step (`int`): One of its steps.

    Returns:
        `dict`: `order`, `divergence` and the rest.
    """
    return next(entry for entry in run["measurements"] if entry["step"] == step)


def _figure(value: float | None, interval: Sequence[float | None] | None = None) -> str:
    if value is None:
        return "–"
    if interval is None or None in interval:
        return f"{value:.3f}"
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _conditions(report: Mapping[str, Any]) -> str:
    trees = {model["tree_of"]: report["models"][model["tree_of"]]["tree"] for model in report["models"].values()}
    sentences = [
        f"{report['num_users']} users of the test split, up to {report['num_pairs']} pairs of items per distance, "
        f"{report['num_items']:,} items; an item's probability is the {report['latent_aggregation']} over the latents."
    ]
    for name, tree in trees.items():
        near = ", ".join(
            f"{tree['num_neighbours'][distance]:.1f} at distance {distance}"
            for distance in ("2", "4")
            if distance in tree["num_neighbours"]
        )
        share = tree["targets_with_sibling"]
        known = "" if share is None else f"; {100 * share:.1f} % of the test targets have a sibling at distance 2"
        sentences.append(f"Tree of {name}: an item has {near} others{known}.")
    return " ".join(sentences)


_TREE_INTRODUCTION = """## The decoding tree

Two items that share all codes but the last are siblings, at distance 2 in the tree of semantic IDs; two more for each
further code that differs. `correlation` is that of the probabilities of two items over users, `reversed` the share of
pairs of users who order the two items oppositely; both are means over pairs. Kendall's tau-b of distance and
correlation is 0 where the tree does not matter and falls where correlation does with distance. It cannot reach -1, as
distances are tied: its floor is -sqrt(1 - share of ties), -0.816 for three distances of equally many pairs, -0.866 for
four; so trees of different depth are not comparable by it. In brackets stands its spread over pairs of items (95 % of
resamples) with the users fixed, which leaves out what other users would change.
Models that decode along no tree are binned by that of the first model: what they show comes from the items, not from
decoding. `latent entropy` is a share of the most it could be; `information` is the mutual information of latent and
item given the user, 0 where all latents say the same."""
_SYNTHETIC_INTRODUCTION = """## Siblings that different users like

An invented world: two groups of users, and triples of items of which group A likes the first, group B the third, and
the second lies between for both. The items of a triple are siblings, so only the last code, given the user, can tell
them apart; in the aligned tree, the control, siblings are liked by the same users. `learnt` counts the seeds of which
95 % of held-out users and triples were in the true order for at least 8 measurements in a row, until the run ended;
`from step` is the first of these. `order` is that share, in the group in which it is lower; `divergence` (nats) is
that of all probabilities from the true ones. Every step brings new users, so nothing is learnt by heart."""
