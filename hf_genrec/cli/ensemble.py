"""
`hf-genrec ensemble`: several runs become one model, which is saved and served like any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hf_genrec.cli.command_line import app, arguments_for, command_line, output_on
from hf_genrec.cli.options import AsJson, ExcludeSeen, Prepared, RunFolder, Seed


@app.command("ensemble")
def _ensemble(
    ctx: typer.Context,
    prepared_folder: Prepared,
    members: Annotated[
        list[str], typer.Argument(metavar="[NAME=]RUN...", help="Run folders or Hub repositories.", show_default=False)
    ],
    output_dir: RunFolder,
    combination: Annotated[
        Literal["standardised", "log_probability", "reciprocal_rank"], typer.Option(help="What is added up.")
    ] = "standardised",
    exclude_seen: ExcludeSeen = None,
    max_users: Annotated[int, typer.Option(min=2, help="Validation users that the weights are chosen on.")] = 6000,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """
    Add up the scores of several models.

    Weights are chosen on the validation split. The sum is a run folder, like a trained model.

    \b
    Examples:
      hf-genrec ensemble data ridge text sasrec --output ensemble
      hf-genrec ensemble data Ridge=ridge PSID=user/repository --output ensemble --allow-seen
    """
    with output_on(as_json) as show:
        from hf_genrec.data.prepared import PreparedDataset
        from hf_genrec.evaluation.record import named_path
        from hf_genrec.training.closed_form import ensemble_run

        paths = {}
        for named, path in map(named_path, members):
            name = named or Path(path).resolve().name
            if name in paths:
                raise ValueError(f"Two members are called {name!r}: give them names, NAME=RUN.")
            paths[name] = path
        asked = arguments_for(ensemble_run, ctx) | {"members": paths}
        record = ensemble_run(PreparedDataset.load(prepared_folder), **asked, command=command_line())
        report = record["ensemble"]
        chosen, alone = report["ndcg@10"]["chosen"], report["ndcg@10"]["alone"]
        show(
            "validation ndcg@10 on the users that the weights were chosen on, and on others:",
            *(f"  {alone[name][0]:.4f}  {alone[name][1]:.4f}  {name}" for name in report["scores"]),
            f"  {chosen[0]:.4f}  {chosen[1]:.4f}  together, times "
            + ", ".join(f"{weight:.3g}" for weight in report["weights"]),
            f"written to {output_dir}; next: hf-genrec evaluate {output_dir} {prepared_folder}",
            result={"folder": output_dir} | record,
        )
