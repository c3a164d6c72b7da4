"""
Options and arguments that several verbs of the command line share.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def ending_in(*endings: str) -> Callable[[typer.CallbackParam, str | None], str | None]:
    """A callback for options that name a file to write: other endings are refused. Args: such as `".png"`."""

    def check(param: typer.CallbackParam, value: str | None) -> str | None:
        if value is not None and Path(value).suffix not in endings:
            raise ValueError(f"`{param.opts[0]}` must end in {' or '.join(endings)}, got {value!r}.")
        return value

    return check


def torch_dtype(name: str | None) -> Any:
    """What `Recommender.from_pretrained` takes for a value of `--dtype`. Args: the value, `None` for none."""
    import torch

    return None if name is None else getattr(torch, name)


PlotFile = Annotated[
    str | None, typer.Option("--plot", metavar="FILE.png", callback=ending_in(".png"), help="Draw the result here.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of tables.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output of the same kind.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Run folder or Hub repository.", show_default=False)]
Prepared = Annotated[
    str, typer.Argument(metavar="PREPARED", help="Folder that `hf-genrec prepare` wrote.", show_default=False)
]
RunFolder = Annotated[str, typer.Option("--output", help="The run folder to write.", show_default=False)]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the sample of validation users.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; chosen if not given.")]
Dtype = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option("--dtype", help="What the weights are rounded to.", show_default="as saved"),
]
ExcludeSeen = Annotated[
    bool | None,
    typer.Option(
        "--exclude-seen/--allow-seen",
        help="Choose settings for lists without or with items of the history, and serve such.",
        show_default="without, where the data has almost no repeats",
    ),
]
Beams = Annotated[
    int | None, typer.Option("--beams", min=1, help="Beams per user.", show_default="what the model was saved with")
]
Decoding = Annotated[
    Literal["exact", "graph", "beam"] | None,
    typer.Option(
        help="How items are found: exact or graph by rpg and acerec, exact or beam by two heads.",
        show_default="the model's own",
    ),
]
SearchOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--search", metavar="NAME=VALUE", help="A further argument of the model's recommend(), as num_propagations=5."
    ),
]
Aggregation = Annotated[Literal["max", "sum"] | None, typer.Option(help="Score of an item over the latents.")]
