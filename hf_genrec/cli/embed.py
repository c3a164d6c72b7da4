"""
`hf-genrec embed`: item texts become embeddings.
"""

from __future__ import annotations

from typing import Annotated

import typer

from hf_genrec.cli.command_line import app, arguments_for, output_on
from hf_genrec.cli.options import AsJson, Device, Prepared


@app.command("embed")
def _embed(
    ctx: typer.Context,
    prepared_folder: Prepared,
    output: Annotated[str, typer.Option("--output", help="A folder, or a .safetensors file.", show_default=False)],
    model_name: Annotated[
        str, typer.Option("--model", help="sentence-transformers model on the Hub, or a folder with one.")
    ] = "sentence-transformers/sentence-t5-base",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model.")] = None,
    matrix: Annotated[str | None, typer.Option(help="A ready .npy or .safetensors matrix instead of a model.")] = None,
    behavior: Annotated[
        str | None,
        typer.Option(help="Add behaviour from the log: svd (seconds), or the folder of a trained SASRec."),
    ] = None,
    weight: Annotated[
        float, typer.Option(min=0.0, help="With --behavior: weight of the texts; 0 for behaviour alone.")
    ] = 0.6,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward pass.")] = 32,
    num_processes: Annotated[
        int, typer.Option(min=1, help="Processes that share the texts: one per GPU, or several on the cores.")
    ] = 1,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """
    Turn item texts, or the log, or both, into vectors.

    What users did counts only in the training part of the log. Vectors of texts are cached by texts and model, also
    those of a run that was killed: the next one goes on from there.

    \b
    Examples:
      hf-genrec embed data --output embeddings --model all-MiniLM-L6-v2
      hf-genrec embed data --output embeddings.safetensors --matrix my_items.npy
      hf-genrec embed data --output both --model all-MiniLM-L6-v2 --behavior svd --weight 0.6
      hf-genrec embed data --output behavior --behavior svd --weight 0
    """
    with output_on(as_json) as show:
        from hf_genrec.data.prepared import PreparedDataset
        from hf_genrec.tokenizers.folder import embed_items, read_embeddings

        prepared = PreparedDataset.load(prepared_folder)
        path = embed_items(prepared, **arguments_for(embed_items, ctx))
        embeddings, encoder = read_embeddings(path, prepared)
        num_items, dim = embeddings.shape
        columns = int(encoder.get("behavior_columns", 0))
        parts = [f"behaviour by {encoder['behavior']} ({columns})"] if columns else []
        parts += [f"{encoder['model']} ({dim - columns})"] if columns < dim else []
        parts[-1] += f" x {encoder['weight']}" if len(parts) > 1 else ""
        show(
            f"{num_items:,} items, {dim} dimensions, from {', '.join(parts)}, written to {path}",
            f"next: hf-genrec train {prepared_folder} --embeddings {output} --output run",
            f"or, to choose by hand, first: hf-genrec tokenize {prepared_folder} --embeddings {output} --output ids",
            result={"file": str(path), "num_items": num_items, "dim": dim} | encoder,
        )
