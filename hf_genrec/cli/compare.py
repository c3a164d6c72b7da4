"""
`hf-genrec compare`: evaluations of several models in one table.
"""

from __future__ import annotations

from typing import Annotated

import typer

from hf_genrec.cli.command_line import app, output_on
from hf_genrec.cli.options import AsJson, PlotFile, ending_in


@app.command("compare")
def _compare(
    evaluations: Annotated[
        list[str],
        typer.Argument(
            metavar="EVALUATION",
            help="Run folders with an evaluation.json, or JSON files of `evaluate --output`; NAME=... names one.",
            show_default=False,
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The system that the others are compared with.",
            show_default="the best baseline with results per user",
        ),
    ] = None,
    metric: Annotated[str, typer.Option(help="What is compared user by user: recall@k, ndcg@k or mrr@k.")] = "ndcg@10",
    grouped: Annotated[
        bool, typer.Option("--grouped", help="One table for each set of comparable records, such as data sets.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(metavar="FILE.md|FILE.json", callback=ending_in(".md", ".json"), help="Write the tables here."),
    ] = None,
    plot: PlotFile = None,
    as_json: AsJson = False,
) -> None:
    """
    Compare evaluations of several models.

    One table, with paired differences over the same users. Runs of one NAME (or, in records of the results page, runs
    that differ in the seed only) are one row: means, and the standard deviation between the seeds.

    \b
    Examples:
      hf-genrec compare runs/psid runs/latte --against psid
      hf-genrec compare PSID=runs/psid1 PSID=runs/psid2 Latte=runs/latte1 Latte=runs/latte2 --against PSID
      hf-genrec compare scripts/evidence/records/results/beauty_*.json --output beauty.md --plot beauty.png
      hf-genrec compare scripts/evidence/records/results/*.json --grouped --json
    """
    with output_on(as_json) as show:
        from hf_genrec.evaluation.compare import (
            compare_evaluations,
            comparison_tables,
            write_comparisons,
        )
        from hf_genrec.evaluation.plots import plot_comparisons
        from hf_genrec.evaluation.systems import load_evaluation

        loaded = [load_evaluation(word) for word in evaluations]
        comparisons = compare_evaluations(loaded, metric=metric, against=against, grouped=grouped)
        if output is not None:
            write_comparisons(comparisons, output)
        if plot is not None:
            plot_comparisons(comparisons, plot)
        tables = [table for comparison in comparisons for table in comparison_tables(comparison)]
        show(*tables, result={"comparisons": [comparison.to_dict() for comparison in comparisons]})
