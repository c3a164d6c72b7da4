"""
The verbs that weigh models against each other: `compare`, `diagnose`. Heavy modules are imported inside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_genrec.cli.command_line import AsJson, Prepared, app, command_line, one_of, output_on


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
    output: Annotated[str | None, typer.Option(metavar="FILE.md|FILE.json", help="Write the tables here.")] = None,
    plot: Annotated[str | None, typer.Option(metavar="FILE.png", help="Draw the metric with its intervals.")] = None,
    as_json: AsJson = False,
) -> None:
    """
    Evaluations of several models in one table, with paired differences over the same users.

    Runs of one NAME (or, in records of the results page, runs that differ in the seed only) are one row: means, and
    the standard deviation between the seeds.

    \b
    Examples:
      hf-genrec compare runs/psid runs/latte --against psid
      hf-genrec compare PSID=runs/psid1 PSID=runs/psid2 Latte=runs/latte1 Latte=runs/latte2 --against PSID
      hf-genrec compare scripts/evidence/records/results/beauty_*.json --output beauty.md --plot beauty.png
      hf-genrec compare scripts/evidence/records/results/*.json --grouped --json
    """
    if output is not None and Path(output).suffix not in (".md", ".json"):
        raise ValueError(f"`--output` must end in .md or .json, got {output!r}.")
    if plot is not None and Path(plot).suffix != ".png":
        raise ValueError(f"`--plot` must end in .png, got {plot!r}.")
    with output_on(as_json) as show:
        from hf_genrec.cli.tables import rows_table
        from hf_genrec.evaluation.compare import (
            compare_evaluations,
            comparison_note,
            comparison_sheets,
            plot_comparisons,
            write_comparisons,
        )
        from hf_genrec.evaluation.systems import load_evaluation

        loaded = [load_evaluation(word) for word in evaluations]
        comparisons = compare_evaluations(loaded, metric=metric, against=against, grouped=grouped)
        if output is not None:
            write_comparisons(comparisons, output)
        if plot is not None:
            plot_comparisons(comparisons, plot)
        shown: list[Any] = []
        for comparison in comparisons:
            first, *others = comparison_sheets(comparison)
            shown += [rows_table(first.rows, title=first.title, caption=comparison_note(comparison))]
            shown += [rows_table(sheet.rows, title=sheet.title, caption=sheet.note) for sheet in others]
        show(*shown, result={"comparisons": [comparison.to_dict() for comparison in comparisons]})


@app.command("diagnose")
def _diagnose(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Run folders or Hub repositories; NAME=... names one.", show_default=False),
    ],
    prepared_folder: Prepared,
    reference: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="A model without a tree, such as SASRec, binned by the first run's."),
    ] = None,
    users: Annotated[int, typer.Option(min=2, help="Users of the test split, a sample.")] = 512,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of items per distance, a sample.")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples.")] = 0,
    latent_aggregation: Annotated[
        str, typer.Option(callback=one_of("max", "sum"), metavar="max|sum", help="Probability over the latents.")
    ] = "sum",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; chosen if not given.")] = None,
    output: Annotated[str | None, typer.Option(metavar="FILE.json", help="Write the report here.")] = None,
    plot: Annotated[str | None, typer.Option(metavar="FILE.png", help="Draw it.")] = None,
    as_json: AsJson = False,
) -> None:
    """
    What decoding along the tree of semantic IDs does to the probabilities of items.

    For pairs of items at each distance in the tree: how alike their probabilities move over users, how often two
    users order them oppositely, and Kendall's tau-b of correlation and distance. For Latte also how evenly the
    latents are used and what they say about the item.

    \b
    Examples:
      hf-genrec diagnose run data
      hf-genrec diagnose PSID=psid Latte=latte data --reference SASRec=sasrec --plot tree.png --output tree.json
    """
    if plot is not None and Path(plot).suffix != ".png":
        raise ValueError(f"`--plot` must end in .png, got {plot!r}.")
    if output is not None and Path(output).suffix != ".json":
        raise ValueError(f"`--output` must end in .json, got {output!r}.")
    with output_on(as_json) as show:
        from hf_genrec.data.prepared import PreparedDataset
        from hf_genrec.evaluation.diagnose import diagnose, diagnosis_tables, load_systems, plot_diagnosis
        from hf_genrec.files import write_json
        from hf_genrec.training.trainer import keep_freed_memory

        keep_freed_memory()  # the walk through the tree makes and frees large tensors for every user
        prepared = PreparedDataset.load(prepared_folder)
        systems, loaded = load_systems([*runs, *(reference or [])], device=device)
        report = diagnose(
            systems,
            prepared,
            num_users=users,
            num_pairs=pairs,
            seed=seed,
            latent_aggregation=latent_aggregation,
            show_progress=True,
        )
        report |= {"command": command_line(), "runs": loaded}
        if output is not None:
            write_json(report, output)
        if plot is not None:
            plot_diagnosis(report, plot)
        show(*diagnosis_tables(report), result=report)
