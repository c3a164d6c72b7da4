"""
`hf-genrec diagnose`: what decoding along a tree of codes does to the probabilities of items.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from hf_genrec.cli.command_line import app, arguments_for, command_line, output_on
from hf_genrec.cli.options import AsJson, Device, PlotFile, Prepared, ending_in


@app.command("diagnose")
def _diagnose(
    ctx: typer.Context,
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Run folders or Hub repositories; NAME=... names one.", show_default=False),
    ],
    prepared_folder: Prepared,
    reference: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="A model without a tree, such as SASRec, binned by the first run's."),
    ] = None,
    num_users: Annotated[int, typer.Option("--users", min=2, help="Users of the test split, a sample.")] = 512,
    num_pairs: Annotated[int, typer.Option("--pairs", min=1, help="Pairs of items per distance, a sample.")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples.")] = 0,
    latent_aggregation: Annotated[Literal["max", "sum"], typer.Option(help="Probability over the latents.")] = "sum",
    device: Device = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="FILE.json", callback=ending_in(".json"), help="Write the report here."),
    ] = None,
    plot: PlotFile = None,
    as_json: AsJson = False,
) -> None:
    """
    Show what decoding along the tree of codes does.

    For pairs of items at each distance in the tree: how alike their probabilities move over users, how often two
    users order them oppositely, and Kendall's tau-b of correlation and distance. For Latte also how evenly the
    latents are used and what they say about the item.

    \b
    Examples:
      hf-genrec diagnose run data
      hf-genrec diagnose PSID=psid Latte=latte data --reference SASRec=sasrec --plot tree.png --output tree.json
    """
    with output_on(as_json) as show:
        from hf_genrec.data.prepared import PreparedDataset
        from hf_genrec.evaluation.diagnose import diagnose, diagnosis_tables, load_systems
        from hf_genrec.evaluation.plots import plot_diagnosis
        from hf_genrec.files import write_json
        from hf_genrec.training.trainer import keep_freed_memory

        keep_freed_memory()  # the walk through the tree makes and frees large tensors for every user
        prepared = PreparedDataset.load(prepared_folder)
        systems, loaded = load_systems([*runs, *(reference or [])], device=device)
        report = diagnose(systems, prepared, **arguments_for(diagnose, ctx), show_progress=True)
        report |= {"command": command_line(), "runs": loaded}
        if output is not None:
            write_json(report, output)
        if plot is not None:
            plot_diagnosis(report, plot)
        show(*diagnosis_tables(report), result=report)
