"""
`hf-genrec merge`: an adapter and its base become one language model.
"""

from __future__ import annotations

from typing import Annotated

import typer

from hf_genrec.cli.command_line import app, output_on
from hf_genrec.cli.options import AsJson, Model


@app.command("merge")
def _merge(
    run: Model,
    output: Annotated[str, typer.Option(help="Folder to write.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """
    Merge the adapter of a language model into its base.

    The folder is a recommender as before, and a plain language model for transformers and for servers of such.

    \b
    Examples:
      hf-genrec merge run --output merged
    """
    with output_on(as_json) as show:
        from hf_genrec.llm.merge import merge_adapter

        path = merge_adapter(run, output)
        show(f"{run} as one language model: {path}", result={"output": str(path)})
