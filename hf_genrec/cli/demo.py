"""
`hf-genrec demo`: the whole walk on MovieLens-100K, verb by verb.
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from hf_genrec.cli.command_line import app, output_on
from hf_genrec.cli.options import AsJson


ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


@app.command("demo")
def _demo(
    ctx: typer.Context,
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
            show_default=f"OUTPUT/{Path(ENCODER).name}, else {ENCODER}",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """
    Run all stages on MovieLens-100K, in a few minutes.

    Each stage is a verb, shown as you would type it. Stages that are done are not done again.

    \b
    Examples:
      hf-genrec demo
      hf-genrec demo --movielens ml-100k.zip --output /tmp/demo --json
    """
    with output_on(as_json) as show:
        from hf_genrec.data.prepared import PreparedDataset
        from hf_genrec.files import read_json

        folder, start = Path(output), time.perf_counter()
        data, vectors, model = (str(folder / name) for name in ("data", "vectors", "model"))
        fetched = folder / Path(ENCODER).name
        reader = encoder or (str(fetched) if fetched.is_dir() else ENCODER)
        flags = [f"--{name}" for name in ("verbose", "quiet") if ctx.find_root().params[name]]
        stages = {
            f"{data}/dataset.json": ["prepare", "--movielens", movielens or f"{folder}/ml-100k", "--output", data],
            f"{vectors}/embeddings.safetensors": ["embed", data, "--model", reader, "--output", vectors],
            f"{model}/training.json": ["train", data, "--embeddings", vectors, "--output", model, "--resume"],
            f"{model}/evaluation.json": ["evaluate", model, data],
        }
        for made, words in stages.items():
            _run(words, flags, is_done=Path(made).is_file())
        history = PreparedDataset.load(data).split("test")[0]["history"][-5:]
        _run(["recommend", "--model", model, "--history", *history], flags)
        minutes = (time.perf_counter() - start) / 60
        result = {"folder": model, "evaluation": read_json(f"{model}/evaluation.json"), "minutes": minutes}
        show(f"Done in {minutes:.1f} minutes. Everything is in {folder}.", result=result)


def _run(words: list[str], flags: list[str], *, is_done: bool = False) -> None:
    """One verb, in this process; its failure is that of the whole."""
    typer.echo(f"\n$ {shlex.join(['hf-genrec', *words])}{'  # done before' if is_done else ''}")
    if not is_done and (code := app([*flags, *words], prog_name="hf-genrec", standalone_mode=False)):
        raise typer.Exit(code)
