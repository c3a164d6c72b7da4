"""
`hf-genrec export`: a trained model as ONNX graphs, or its catalog in the format of another engine.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from hf_genrec.cli.command_line import app, output_on
from hf_genrec.cli.options import AsJson, Model


@app.command("export")
def _export(
    run: Model,
    to: Annotated[
        Literal["onnx", "flashrec", "nvidia", "tzrec", "static"],
        typer.Option(
            "--to",
            help="ONNX graphs, or the catalog for FlashRec, NVIDIA, TorchEasyRec or STATIC.",
            show_default=False,
        ),
    ],
    output: Annotated[str, typer.Option(help="File to write; a folder for onnx and tzrec.", show_default=False)],
    top_k: Annotated[int, typer.Option(min=1, help="Items of a list, for onnx.")] = 100,
    int8: Annotated[bool, typer.Option("--int8", help="Graphs with 8-bit products too, for onnx.")] = False,
    as_json: AsJson = False,
) -> None:
    """
    Export a model to onnxruntime, or its catalog to another engine.

    ONNX: sasrec, hstu, gru4rec, rpg, acerec and dense heads as one graph that ranks the whole catalog; latte as two,
    an encoder and a step of the decoder, with the trie for the search between them. The folder's README says how they
    are run.

    \b
    Examples:
      hf-genrec export run --to onnx --output run-onnx --int8
      hf-genrec export run --to flashrec --output ids.json
      hf-genrec export run --to tzrec --output bundle
    """
    if to != "onnx" and (int8 or top_k != 100):
        raise ValueError(f"`--top-k` and `--int8` are for `--to onnx`, not for {to}.")
    with output_on(as_json) as show:
        from hf_genrec.serving.recommender import Recommender

        recommender = Recommender.from_pretrained(run, device="cpu")
        if to == "onnx":
            from hf_genrec.serving.export.onnx_graph import export_onnx

            path = export_onnx(recommender, output, top_k=top_k, int8=int8)
        else:
            from hf_genrec.serving.export.catalog import export_catalog

            path = export_catalog(recommender, output, format=to)
        result = {"output": str(path), "to": to, "num_items": recommender.catalog.version.num_items}
        show(f"{result['num_items']:,} items of {run} for {to}: {path}", result=result)
