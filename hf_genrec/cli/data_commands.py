"""
The verbs that make data: `prepare`, `embed`, `tokenize`. Heavy modules are imported inside.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_genrec.cli.command_line import AsJson, Overwrite, Prepared, app, name_values, one_of, output_on


if TYPE_CHECKING:
    from hf_genrec.data.prepared import PreparedDataset


@app.command("prepare")
def _prepare(
    ctx: typer.Context,
    output: Annotated[str, typer.Option("--output", help="The prepared folder to write.", show_default=False)],
    interactions: Annotated[str | None, typer.Option(help="Log: .csv, .tsv, .jsonl (also .gz) or .parquet.")] = None,
    sequences: Annotated[str | None, typer.Option(help="Ready-made sequences: user<TAB>item item ...")] = None,
    items: Annotated[str | None, typer.Option(help="Items table: .jsonl, .csv, .tsv or .parquet.")] = None,
    movielens: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="MovieLens-100K: what scripts/fetch_movielens.py wrote, or ml-100k.zip."),
    ] = None,
    amazon: Annotated[int | None, typer.Option(metavar="2014|2023", help="Amazon Reviews of this year.")] = None,
    category: Annotated[str | None, typer.Option(help="Category of Amazon Reviews, as its files spell it.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder with Amazon's files; else they are fetched.")] = None,
    benchmark: Annotated[
        str, typer.Option(help="5-core files of 2023: last_out_w_his, last_out, rating_only, or none for raw.")
    ] = "last_out_w_his",
    user_column: Annotated[str, typer.Option(help="Column of the users in the log.")] = "user_id",
    item_column: Annotated[str, typer.Option(help="Column of the items in the log.")] = "item_id",
    timestamp_column: Annotated[str, typer.Option(help="Column of the times; '' for the file's order.")] = "timestamp",
    rating_column: Annotated[str | None, typer.Option(help="Column of the ratings, for --min-rating.")] = None,
    min_rating: Annotated[float | None, typer.Option(help="Drop interactions rated lower.")] = None,
    items_id: Annotated[str, typer.Option(help="Field of the ids in the items table.")] = "item_id",
    title_field: Annotated[str, typer.Option(help="Field of the titles in the items table.")] = "title",
    text_fields: Annotated[str | None, typer.Option(help="Fields of the text, separated by commas.")] = None,
    protocol: Annotated[
        str, typer.Option(help="custom, amazon2014, amazon2018, amazon2023 or movielens: k-core and de-duplication.")
    ] = "custom",
    k_core: Annotated[int | None, typer.Option(help="Least interactions of users and items; 0 keeps all.")] = None,
    deduplicate: Annotated[bool | None, typer.Option(help="Keep a user's earliest interaction with an item.")] = None,
    min_history: Annotated[int | None, typer.Option(help="Least items before a user's last one.")] = None,
    missing_text: Annotated[
        str, typer.Option(callback=one_of("error", "drop", "keep"), help="Items without text: error, drop or keep.")
    ] = "error",
    on_error: Annotated[
        str, typer.Option(callback=one_of("raise", "skip"), help="Malformed lines: raise, or skip and count.")
    ] = "raise",
    keep_all_items: Annotated[bool, typer.Option(help="Keep items without an interaction in the catalog.")] = False,
    cold_items: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.99,
            help="Share of the items, the newest, that are held out of training; 0.02 to 0.2 is usual.",
        ),
    ] = 0.0,
    strict: Annotated[bool, typer.Option(help="Stop where a category's published statistics are not met.")] = True,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """
    Read a log and an items table, filter, split, and write a prepared folder.

    \b
    Examples:
      hf-genrec prepare --interactions log.csv --items items.jsonl --output data --k-core 5
      hf-genrec prepare --interactions log.parquet --user-column customer --item-column sku \\
          --timestamp-column time --items items.csv --output data
      hf-genrec prepare --sequences sequences.tsv --items items.jsonl --output data
      hf-genrec prepare --movielens ml-100k --output data
      hf-genrec prepare --amazon 2023 --category Video_Games --output data
      hf-genrec prepare --movielens ml-100k --cold-items 0.05 --output cold_data
    """
    kinds = {"--interactions": interactions, "--sequences": sequences, "--movielens": movielens, "--amazon": amazon}
    if sum(bool(value) for value in kinds.values()) != 1:
        raise ValueError(f"Give exactly one of {', '.join(kinds)}.")
    if amazon and not category:
        raise ValueError("`--amazon` needs `--category`, such as Video_Games.")
    _check_options(ctx, kind=next(kind for kind, value in kinds.items() if value), year=amazon)
    if (interactions or sequences) and not items:
        raise ValueError("`--items` is missing: the table with the items' titles and texts.")
    with output_on(as_json) as show:
        from hf_genrec.cli.tables import preparation_notes, statistics_table
        from hf_genrec.data.prepare import prepare
        from hf_genrec.data.sources.amazon import prepare_amazon
        from hf_genrec.data.sources.movielens import prepare_movielens

        rules: dict[str, Any] = {"missing_text": missing_text, "on_error": on_error, "overwrite": overwrite}
        rules |= {"cold_items": cold_items, "strict": strict}
        if movielens:
            prepared = prepare_movielens(output, movielens, cold_items=cold_items, overwrite=overwrite)
        elif amazon:
            files: Any = None if benchmark == "none" else benchmark
            year: Any = amazon
            prepared = prepare_amazon(
                output, year=year, category=category or "", data_dir=data_dir, benchmark=files, **rules
            )
        else:
            prepared = prepare(
                output,
                interactions=interactions,
                sequences=sequences,
                items=items or "",
                protocol=protocol,
                category=category,
                user=user_column,
                item=item_column,
                timestamp=timestamp_column or None,
                rating=rating_column,
                items_id=items_id,
                title=title_field,
                text_fields=text_fields.split(",") if text_fields else None,
                min_rating=min_rating,
                deduplicate=deduplicate,
                k_core=k_core,
                min_history=min_history,
                keep_all_items=keep_all_items,
                **rules,
            )
        tables = statistics_table(prepared.metadata), *preparation_notes(prepared.metadata), f"written to {output}"
        show(*tables, result={"folder": output} | prepared.metadata)


_OF_A_LOG = {"user_column", "item_column", "timestamp_column", "rating_column", "min_rating"}
_OF_AMAZON = {"data_dir", "benchmark"}
_OF_A_TABLE = {
    "items", "items_id", "title_field", "text_fields", "protocol", "k_core", "deduplicate", "min_history",
    "keep_all_items",
}  # fmt: skip
_WITHOUT_EFFECT = {
    "--interactions": _OF_AMAZON,
    "--sequences": _OF_AMAZON | _OF_A_LOG,
    "--movielens": _OF_AMAZON | _OF_A_LOG | _OF_A_TABLE | {"category", "missing_text", "on_error", "strict"},
    "--amazon": _OF_A_LOG | _OF_A_TABLE,
}


def _check_options(ctx: typer.Context, *, kind: str, year: int | None) -> None:
    """Refuses options that would have no effect on this kind of data."""
    ignored = _WITHOUT_EFFECT[kind] | ({"benchmark"} if year == 2014 else set())
    given = {name for name in ignored if getattr(ctx.get_parameter_source(name), "name", None) == "COMMANDLINE"}
    words = [f"`{option.opts[0]}`" for option in ctx.command.params if option.name in given]
    if words:
        data = f"{kind} {year}" if year else kind
        raise ValueError(f"{', '.join(words)} would have no effect with `{data}`: leave out what does not belong.")


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
            result={"file": str(path), "num_items": num_items, "dim": dim} | encoder,
        )


@app.command("tokenize")
def _tokenize(
    prepared_folder: Prepared,
    output: Annotated[str, typer.Option("--output", help="The tokenized folder to write.", show_default=False)],
    embeddings: Annotated[str | None, typer.Option(help="What `hf-genrec embed` wrote, or a ready matrix.")] = None,
    ids: Annotated[str | None, typer.Option(help="Import ids instead: JSON {item_id: [codes]}.")] = None,
    quantizer: Annotated[
        str | None,
        typer.Option(
            callback=one_of("residual-kmeans", "rqvae", "hierarchical-kmeans", "opq", "pq", "random"),
            help="residual-kmeans (Latte, PSID, TIGER), rqvae (TIGER's own), hierarchical-kmeans, opq (RPG, ACERec), "
            "pq (no rotation) or random (a control).",
            show_default="residual-kmeans",
        ),
    ] = None,
    levels: Annotated[
        int | None, typer.Option(min=1, help="Codes per item.", show_default="3; 32 for opq, pq and random")
    ] = None,
    codebook_size: Annotated[
        int | None,
        typer.Option(
            help="Codes per level, a power of two.", show_default="256; by the number of items for hierarchical-kmeans"
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Collisions: widen, append, candidates, rematch or keep.", show_default="widen; keep beyond 8 levels"
        ),
    ] = None,
    whiten: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Whitened principal components; 0 for none.",
            show_default="192 for residual-kmeans, 128 for opq and pq, else 0",
        ),
    ] = None,
    fit_on: Annotated[
        str | None,
        typer.Option(
            callback=one_of("train", "all"),
            metavar="train|all",
            help="Items to learn codes from.",
            show_default="train",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the quantizer.", show_default="1234")] = None,
    options: Annotated[
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
    plot: Annotated[str | None, typer.Option(metavar="FILE.png", help="Draw the report; needs --report.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """
    Turn embeddings into semantic IDs, or import another project's ids.

    \b
    Examples:
      hf-genrec tokenize data --embeddings embeddings --output ids
      hf-genrec tokenize data --embeddings embeddings --output tiger_ids --policy append
      hf-genrec tokenize data --embeddings embeddings --output rpg_ids --quantizer opq
      hf-genrec tokenize data --embeddings embeddings --output rqvae_ids --quantizer rqvae --set sinkhorn_epsilon=0.003
      hf-genrec tokenize data --ids other_project.json --output ids --policy append
      hf-genrec tokenize data --output ids --report --embeddings embeddings --plot ids.png
    """
    making = (ids, quantizer, levels, codebook_size, policy, whiten, fit_on, seed, options or None)
    if plot is not None and not report:
        raise ValueError("`--plot` draws a report: add `--report`.")
    exists = _check_report(output, report=report and not overwrite, plot=plot, making=making)
    if report and not (exists or overwrite) and embeddings is None and ids is None:
        raise ValueError(
            f"{output} holds no ids to report on (no tokenizer.json): check the name, or make ids with "
            "`--embeddings` or `--ids`."
        )
    if not exists and (embeddings is None) == (ids is None) and not (report and ids is not None):
        raise ValueError("Give either `--embeddings` or `--ids`.")
    if ids is not None and (quantizer or levels or whiten is not None or fit_on or seed is not None or options):
        raise ValueError(
            "`--quantizer`, `--levels`, `--whiten`, `--fit-on`, `--seed` and `--set` do not go with ready `--ids`."
        )
    with output_on(as_json) as show:
        from hf_genrec.cli.tables import collision_table, usage_table
        from hf_genrec.data.prepared import PreparedDataset
        from hf_genrec.tokenizers.folder import import_ids, load_tokenized, tokenize_items

        prepared = PreparedDataset.load(prepared_folder)
        if exists:
            pass  # nothing is made
        elif ids is not None:
            import_ids(prepared, ids, output, policy=policy, codebook_size=codebook_size, overwrite=overwrite)
        else:
            wanted: dict[str, Any] = {"quantizer": quantizer or "residual-kmeans", "policy": policy}
            wanted |= {"fit_on": fit_on or "train", "seed": 1234 if seed is None else seed}
            tokenize_items(
                prepared,
                embeddings or "",
                output,
                num_levels=levels,
                codebook_size=codebook_size,
                num_whitened=whiten,
                options=name_values("--set", options or []),
                overwrite=overwrite,
                **wanted,
            )
        record = load_tokenized(output)[1]
        result = {"folder": output} | record
        if report:
            shown, result["report"] = _report(prepared, output, embeddings=embeddings, plot=plot)
            show(collision_table(record["statistics"]), *shown, result=result)
            return
        tables = collision_table(record["statistics"]), usage_table(record["statistics"], fit=record.get("fit"))
        show(*tables, f"written to {output}", result=result)


def _check_report(output: str, *, report: bool, plot: str | None, making: tuple[Any, ...]) -> bool:
    """Whether there are ids that are judged as they are; refuses options that would have no effect."""
    exists = report and (Path(output) / "tokenizer.json").is_file()
    if exists and any(option is not None for option in making):
        raise ValueError(
            f"{output} exists already: `--report` judges it as it is. Drop the other options, or pass `--overwrite`."
        )
    if plot is not None and Path(plot).suffix != ".png":
        raise ValueError(f"`--plot` must end in .png, got {plot!r}.")
    return exists


def _report(
    prepared: PreparedDataset, folder: str, *, embeddings: str | None, plot: str | None
) -> tuple[list[Any], dict[str, Any]]:
    """What is to be shown of a report on a tokenized folder, and the report."""
    from hf_genrec.cli.tables import position_table, prefix_table
    from hf_genrec.tokenizers.report import REPORT_NAME, report_tokenized
    from hf_genrec.tokenizers.report_plot import plot_id_report

    report = report_tokenized(folder, prepared, embeddings=embeddings)
    shown: list[Any] = [prefix_table(report), position_table(report)]
    if embeddings is None:
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
