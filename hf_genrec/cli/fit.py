"""
`hf-genrec fit`: a log becomes a run folder in closed form, without training steps.
"""

from __future__ import annotations

from typing import Annotated

import typer

from hf_genrec.cli.command_line import AsJson, Prepared, app, command_line, one_of, output_on


@app.command("fit")
def _fit(
    prepared_folder: Prepared,
    output: Annotated[str, typer.Option("--output", help="The run folder to write.", show_default=False)],
    method: Annotated[
        str,
        typer.Option(
            callback=one_of("ridge", "item-knn", "text"),
            metavar="ridge|item-knn|text",
            help="Ridge regression of the next item on the history, neighbours by common users, or similar texts.",
        ),
    ] = "ridge",
    embeddings: Annotated[str | None, typer.Option(help="What `hf-genrec embed` wrote, for text.")] = None,
    exclude_seen: Annotated[
        bool | None,
        typer.Option(
            "--exclude-seen/--allow-seen",
            help="Choose settings for lists without or with items of the history.",
            show_default="without, where the data has almost no repeats",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample of validation users.")] = 0,
    as_json: AsJson = False,
) -> None:
    """
    Fit an item-to-item model in closed form and write a run folder, which is also the folder for the Hub.

    Seconds to minutes, no GPU. Settings are chosen on the validation split.

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
        record = fit_run(
            prepared,
            output,
            method=method,
            embeddings=vectors,
            exclude_seen=exclude_seen,
            seed=seed,
            command=command_line(),
        )
        show(
            f"{record['num_parameters']:,} weights, {record['cpu_minutes']:.1f} CPU minutes, "
            f"validation ndcg@10: {record['best_metric']:.4f}",
            f"written to {output}; next: hf-genrec evaluate {output} {prepared_folder}",
            result={"folder": output} | record,
        )
