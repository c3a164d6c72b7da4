"""
`hf-genrec embed`: item texts become embeddings.
"""

from __future__ import annotations

from typing import Annotated

import typer

from hf_genrec.cli.command_line import AsJson, Prepared, app, output_on


@app.command("embed")
def _embed(
    prepared_folder: Prepared,
    output: Annotated[str, typer.Option("--output", help="A folder, or a .safetensors file.", show_default=False)],
    model: Annotated[
        str, typer.Option(help="sentence-transformers model on the Hub, or a folder with one.")
    ] = "sentence-transformers/sentence-t5-base",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model.")] = None,
    matrix: Annotated[str | None, typer.Option(help="A ready .npy or .safetensors matrix instead of a model.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward pass.")] = 32,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; chosen if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """
    Turn the item texts into embeddings. Results are cached by texts and model.

    \b
    Examples:
      hf-genrec embed data --output embeddings --model all-MiniLM-L6-v2
      hf-genrec embed data --output embeddings.safetensors --matrix my_items.npy
    """
    with output_on(as_json) as show:
        from hf_genrec.data.prepared import PreparedDataset
        from hf_genrec.tokenizers.folder import embed_items, read_embeddings

        prepared = PreparedDataset.load(prepared_folder)
        path = embed_items(
            prepared,
            output,
            model_name=model,
            revision=revision,
            matrix=matrix,
            batch_size=batch_size,
            device=device,
        )
        embeddings, encoder = read_embeddings(path, prepared)
        num_items, dim = embeddings.shape
        show(
            f"{num_items:,} items, {dim} dimensions, from {encoder['model']}, written to {path}",
            f"next: hf-genrec tokenize {prepared_folder} --embeddings {output} --output ids",
            result={"file": str(path), "num_items": num_items, "dim": dim} | encoder,
        )
