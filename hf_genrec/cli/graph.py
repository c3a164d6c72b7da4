"""
`hf-genrec graph`: the graph of similar items beside a model, for `--decoding graph`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from hf_genrec.cli.command_line import app, check_is_folder, output_on
from hf_genrec.cli.options import AsJson, Device


@app.command("graph")
def _graph(
    model: Annotated[str, typer.Argument(metavar="RUN", help="Run folder of rpg or acerec.", show_default=False)],
    num_neighbors: Annotated[
        int, typer.Option("--neighbors", min=1, help="Neighbours of each item, itself among them.")
    ] = 50,
    search: Annotated[
        Literal["auto", "exact", "approximate"],
        typer.Option("--method", help="How neighbours are found; auto is exact up to 1,000,000 items."),
    ] = "auto",
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """
    Write the graph of similar items beside a model.

    \b
    Examples:
      hf-genrec graph run --neighbors 100
      hf-genrec evaluate run data --decoding graph --beams 20 --search num_propagations=5
    """
    with output_on(as_json) as show:
        from hf_genrec.serving.item_graph import write_item_graph

        check_is_folder(model, "graph")
        graph = write_item_graph(model, num_neighbors=num_neighbors, search=search, device=device)
        num_items, found = graph.neighbors.shape
        show(
            f"{num_items:,} items, {found} neighbours each, {100 * graph.overlap:.1f} % of the exact ones",
            result={"folder": model, "num_items": num_items, "num_neighbors": found, "overlap": graph.overlap},
        )
