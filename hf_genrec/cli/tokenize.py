"""
`hf-genrec tokenize`: embeddings become semantic IDs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_genrec.cli.command_line import app, arguments_for, given, name_values, output_on
from hf_genrec.cli.options import AsJson, Overwrite, PlotFile, Prepared


if TYPE_CHECKING:
    from hf_genrec.data.prepared import PreparedDataset

_RECORD = "tokenizer.json"
_Quantizer = Literal[
    "residual-kmeans", "rqvae", "cosette", "letter", "cost", "hierarchical-kmeans", "gaoq", "opq", "pq", "random"
]


@app.command("tokenize")
def _tokenize(
    ctx: typer.Context,
    prepared_folder: Prepared,
    output_dir: Annotated[str, typer.Option("--output", help="The tokenized folder to write.", show_default=False)],
    embeddings: Annotated[str | None, typer.Option(help="What `hf-genrec embed` wrote, or a ready matrix.")] = None,
    ids: Annotated[str | None, typer.Option(help="Import ids instead: JSON {item_id: [codes]}.")] = None,
    quantizer: Annotated[
        _Quantizer | None,
        typer.Option(
            help="residual-kmeans (Latte, PSID, TIGER), rqvae (TIGER's own), cosette and letter (rqvae that "
            "learns from the log too), cost (contrastive rqvae), hierarchical-kmeans, gaoq (its balanced "
            "form with aligned codes), opq (RPG, ACERec), pq (no rotation) or random (a control).",
            show_default="residual-kmeans",
        ),
    ] = None,
    num_levels: Annotated[
        int | None,
        typer.Option("--levels", min=1, help="Codes per item.", show_default="3; 2 for gaoq, 32 for opq, pq, random"),
    ] = None,
    codebook_size: Annotated[
        int | None,
        typer.Option(
            help="Codes per level, a power of two.",
            show_default="256; fewer for small catalogs, hierarchical-kmeans and gaoq",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Collisions: widen, append, candidates, rematch or keep.",
            show_default="widen, or append for trees; keep beyond 8 levels",
        ),
    ] = None,
    num_whitened: Annotated[
        int | None,
        typer.Option(
            "--whiten",
            min=0,
            help="Whitened principal components; 0 for none.",
            show_default="192 for residual-kmeans, 128 for opq and pq, else and with behaviour 0",
        ),
    ] = None,
    fit_on: Annotated[
        Literal["train", "all"] | None, typer.Option(help="Items to learn codes from.", show_default="train")
    ] = None,
    fit_rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Learn codes from a sample of so many of them.",
            show_default="256 per code for residual-kmeans, opq and pq, else all",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the quantizer.", show_default="1234")] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other argument of the quantizer, such as epochs=500."),
    ] = None,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Also judge the ids: are items that share codes alike in texts (--embeddings) and in users? "
            "Ids that exist already are judged as they are.",
        ),
    ] = False,
    plot: PlotFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """
    Turn vectors of items into semantic IDs, or import ids.

    \b
    Examples:
      hf-genrec tokenize data --embeddings embeddings --output ids
      hf-genrec tokenize data --embeddings embeddings --output rpg_ids --quantizer opq
      hf-genrec tokenize data --embeddings embeddings --output rqvae_ids --quantizer rqvae --set sinkhorn_epsilon=0.003
      hf-genrec tokenize data --ids other_project.json --output ids --policy append
      hf-genrec tokenize data --output ids --report --embeddings embeddings --plot ids.png
    """
    if plot is not None and not report:
        raise ValueError("`--plot` draws a report: add `--report`.")
    learning = [quantizer, num_levels, num_whitened, fit_on, fit_rows, seed, fields or None]
    is_learned, is_new = any(option is not None for option in learning), not (Path(output_dir) / _RECORD).is_file()
    exists = report and not overwrite and not is_new
    if exists and (is_learned or any(option is not None for option in (ids, codebook_size, policy))):
        raise ValueError(
            f"{output_dir} exists already: `--report` judges it as it is. Drop the other options, or pass "
            "`--overwrite`."
        )
    if report and is_new and not overwrite and embeddings is None and ids is None:
        raise ValueError(
            f"{output_dir} holds no ids to report on (no {_RECORD}): check the name, or make ids with "
            "`--embeddings` or `--ids`."
        )
    if not exists and (embeddings is None) == (ids is None) and not (report and ids is not None):
        raise ValueError("Give either `--embeddings` or `--ids`.")
    if ids is not None and is_learned:
        raise ValueError(
            "`--quantizer`, `--levels`, `--whiten`, `--fit-on`, `--fit-rows`, `--seed` and `--set` do not go with "
            "ready `--ids`."
        )
    with output_on(as_json) as show:
        from hf_genrec.cli.tables import collision_table, usage_table
        from hf_genrec.data.prepared import PreparedDataset
        from hf_genrec.tokenizers.folder import import_ids, load_tokenized, tokenize_items

        prepared = PreparedDataset.load(prepared_folder)
        if ids is not None:
            import_ids(prepared, **arguments_for(import_ids, ctx))
        elif not exists:
            options = name_values("--set", fields or [])
            tokenize_items(prepared, **given(arguments_for(tokenize_items, ctx)), options=options)
        record = load_tokenized(output_dir)[1]
        result = {"folder": output_dir} | record
        if report:
            shown, result["report"] = _report(prepared, output_dir, embeddings=embeddings, plot=plot)
            show(collision_table(record["statistics"]), *shown, result=result)
            return
        tables = collision_table(record["statistics"]), usage_table(record["statistics"], fit=record.get("fit"))
        show(
            *tables,
            f"written to {output_dir}; next: hf-genrec train {prepared_folder} --ids {output_dir} --output run",
            result=result,
        )


def _report(
    prepared: PreparedDataset, folder: str, *, embeddings: str | None, plot: str | None
) -> tuple[list[Any], dict[str, Any]]:
    """What is to be shown of a report on a tokenized folder, and the report."""
    from hf_genrec.cli.tables import position_table, prefix_table
    from hf_genrec.tokenizers.report import REPORT_NAME, report_tokenized
    from hf_genrec.tokenizers.report_plot import plot_id_report

    report = report_tokenized(folder, prepared, embeddings=embeddings)
    shown: list[Any] = [prefix_table(report), position_table(report)]
    if len(report["prefixes"]) > 1:
        lifts = {"users": report["prefixes"][1]["lift"]["at_least"], "texts": report["prefixes"][1].get("text_lift")}
        times = [f"{name} {lift:.1f}" for name, lift in lifts.items() if lift is not None]
        shown.append(f"with the same first code, times as alike as any two items: {', '.join(times) or '-'}")
    if report["encoder"] is None:
        shown.append("the similarity of the texts is left out: it needs --embeddings")
    else:
        shown.append(f"embeddings of the texts: {report['encoder']}")
    shown.append(f"written to {Path(folder) / REPORT_NAME}")
    if plot is not None:
        sizes = report["statistics"]
        codes = f"{sizes['num_levels']} levels of {sizes['codebook_size']:,} codes"
        title = f"{Path(folder).name}: {sizes['num_items']:,} items, {codes}"
        shown.append(f"drawn to {plot_id_report(report, plot, title=title)}")
    return shown, report
