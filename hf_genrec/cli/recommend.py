"""
`hf-genrec recommend`: histories become ranked items.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from hf_genrec.cli.command_line import app, name_values, output_on
from hf_genrec.cli.options import Aggregation, AsJson, Beams, Decoding, Device, Dtype, SearchOptions, torch_dtype


class _ManyItems(TyperCommand):
    """
    Lets `--history a b c` stand for `--history a --history b --history c`, and so `--exclude` and `--allow`.

    Ids may begin with dashes: after one of these options, a word is another option only if it is one or nearly one.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {"--help", *(name for param in self.params for name in (*param.opts, *param.secondary_opts))}
        expanded: list[str] = []
        empty: list[str] = []  # options of ids without any
        option = None  # of ids, to which the next words belong
        for word in args:
            name = word.partition("=")[0]
            is_mistyped = word.startswith("--") and difflib.get_close_matches(name, known, cutoff=0.8)
            if option is not None and name not in known and not is_mistyped:
                expanded.append(f"{option}={word}")
                empty = [other for other in empty if other != option]
            else:
                option = name if name in ("--history", "--exclude", "--allow") else None
                if option is None or word != name:
                    expanded.append(word)
                elif not any(other.startswith(f"{option}=") for other in expanded):
                    empty.append(option)
        # an empty history is a history; the parser refuses the others at the end of a line
        return super().parse_args(ctx, expanded + ["--history=" if name == "--history" else name for name in empty])


@app.command("recommend", cls=_ManyItems)
def _recommend(
    ctx: typer.Context,
    model: Annotated[str, typer.Option("--model", help="Run folder or Hub repository.", show_default=False)],
    history: Annotated[
        list[str] | None, typer.Option("--history", metavar="ID ID ...", help="Items of one user, oldest first.")
    ] = None,
    histories: Annotated[
        str | None, typer.Option(help="File with one history a line, ids separated by spaces.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Items per user.", show_default="10")] = None,
    exclude_seen: Annotated[
        bool | None,
        typer.Option(
            "--exclude-seen/--include-seen",
            help="Leave out items of the history.",
            show_default="leave them out, unless the training data has repeats",
        ),
    ] = None,
    exclude_items: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="ID ID ...", help="Items that may not be recommended.")
    ] = None,
    allow_items: Annotated[
        list[str] | None, typer.Option("--allow", metavar="ID ID ...", help="The only items that may be.")
    ] = None,
    num_beams: Beams = None,
    decoding: Decoding = None,
    latent_aggregation: Aggregation = None,
    search_options: SearchOptions = None,
    diversity: Annotated[
        float | None, typer.Option(min=0, max=1, help="Above 0 items with other codes than those before them move up.")
    ] = None,
    sample_seed: Annotated[
        int | None, typer.Option(min=0, help="Draw items at random, by their probabilities, with this seed.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """
    Recommend items for one history, or a file of them.

    Scores are log-probabilities.

    \b
    Examples:
      hf-genrec recommend --model run --history 50 181 172 --top-k 5 --include-seen --json
      hf-genrec recommend --model run --history 50 181 --exclude 172 174 --diversity 0.3
      hf-genrec recommend --model run --history 50 181 --allow 56 64 98 127 --sample-seed 7
      hf-genrec recommend --model user/repository --histories histories.txt --json
    """
    if (history is None) == (histories is None):
        raise ValueError("Give either `--history` (ids of one user) or `--histories` (a file).")
    if histories is not None:
        batch = [line.split() for line in Path(histories).read_text(encoding="utf-8").splitlines()]
        if not batch:
            raise ValueError(f"{histories} is empty: it must hold one history a line.")
    else:
        batch = [[item_id for item_id in history or [] if item_id]]
    with output_on(as_json) as show:
        from hf_genrec.cli.tables import recommendation_entries, recommendations_table
        from hf_genrec.serving.recommender import Recommender

        recommender = Recommender.from_pretrained(model, device=device, dtype=torch_dtype(dtype))
        asked = {name: ctx.params[name] for name in _PASSED_ON if ctx.params[name] not in (None, ())}
        options = asked | name_values("--search", search_options or [])
        entries = recommendation_entries(recommender, batch, options=options)
        titles = ["Recommendations"] if histories is None else [f"Line {line + 1}" for line in range(len(batch))]
        tables = [recommendations_table(entry, title=title) for entry, title in zip(entries, titles, strict=True)]
        result = {"model": model} | (entries[0] if histories is None else {"users": entries})
        show(*tables, result=result)


# options that are arguments of `Recommender.recommend`
_PASSED_ON = (
    "top_k", "exclude_seen", "exclude_items", "allow_items", "num_beams", "decoding", "latent_aggregation",
    "diversity", "sample_seed",
)  # fmt: skip
