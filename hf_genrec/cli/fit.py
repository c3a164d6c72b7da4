"""
`hf-genrec fit`: a log becomes a run folder in closed form, without training steps.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from hf_genrec.cli.command_line import app, arguments_for, command_line, output_on
from hf_genrec.cli.options import AsJson, ExcludeSeen, Prepared, RunFolder, Seed


@app.command("fit")
def _fit(
    ctx: typer.Context,
    prepared_folder: Prepared,
    output_dir: RunFolder,
    method: Annotated[
        Literal["ridge", "item-knn", "text"],
        typer.Option(help="Ridge regression of the next item, neighbours by common users, or similar texts."),
    ] = "ridge",
    embeddings: Annotated[str | None, typer.Option(help="What `hf-genrec embed` wrote, for text.")] = None,
    exclude_seen: ExcludeSeen = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """
    Fit an item-to-item model without training steps.

    It is solved in closed form and written as a run folder, like a trained model. Seconds to minutes, no GPU. Settings
    are chosen on the validation split.

    \b
    Examples:
      hf-genrec fit data --output ridge
      hf-genrec fit data --output text --method text --embeddings embeddings
    """
    with output_on(as_json) as show:
        from hf_genrec.data.prepared import PreparedDataset
        from hf_genrec.tokenizers.folder import embeddings_path, read_embeddings
        from hf_genrec.training.closed_form import fit_run

        prepared = PreparedDataset.load(prepared_folder)
        vectors = None if embeddings is None else read_embeddings(embeddings_path(embeddings), prepared)[0]
        asked = arguments_for(fit_run, ctx) | {"embeddings": vectors}
        record = fit_run(prepared, **asked, command=command_line())
        show(
            f"{record['num_parameters']:,} weights, {record['cpu_minutes']:.1f} CPU minutes, "
            f"validation ndcg@10: {record['best_metric']:.4f}",
            f"written to {output_dir}; next: hf-genrec evaluate {output_dir} {prepared_folder}",
            result={"folder": output_dir} | record,
        )
