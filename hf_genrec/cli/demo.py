"""
`hf-genrec demo`: the whole walk on MovieLens-100K.
"""

from __future__ import annotations

from typing import Annotated

import typer

from hf_genrec.cli.command_line import AsJson, app, output_on, plain_console


@app.command("demo")
def _demo(
    output: Annotated[str, typer.Option("--output", help="Folder for everything.")] = "demo",
    movielens: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="MovieLens-100K: what scripts/fetch_movielens.py wrote, or ml-100k.zip.",
            show_default="OUTPUT/ml-100k",
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|NAME",
            help="sentence-transformers model: what scripts/fetch_minilm.py wrote, or a name on the Hub.",
            show_default="OUTPUT/all-MiniLM-L6-v2, else sentence-transformers/all-MiniLM-L6-v2",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """
    Run all stages on MovieLens-100K, in a few minutes.

    Stages that are done are not done again.

    \b
    Examples:
      hf-genrec demo
      hf-genrec demo --movielens ml-100k.zip --output /tmp/demo --json
    """
    with output_on(as_json) as show:
        from hf_genrec.cli.quick_start import run_demo

        show(result=run_demo(output, console=plain_console(), movielens=movielens, encoder=encoder))
