"""
`hf-genrec prepare`: a log and an items table become a prepared folder.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hf_genrec.cli.command_line import AsJson, Overwrite, app, one_of, output_on


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
    delimiter: Annotated[str | None, typer.Option(help="Between the fields of .csv files, such as ';'.")] = None,
    date_format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="How times are written, such as '%d/%m/%Y %H:%M'.")
    ] = None,
    min_rating: Annotated[float | None, typer.Option(help="Drop interactions rated lower.")] = None,
    items_id: Annotated[str, typer.Option(help="Field of the ids in the items table.")] = "item_id",
    title_field: Annotated[str, typer.Option(help="Field of the titles in the items table.")] = "title",
    text_fields: Annotated[str | None, typer.Option(help="Fields of the text, separated by commas.")] = None,
    ascii_only: Annotated[
        bool | None, typer.Option(help="Keep ASCII only in texts.", show_default="what the protocol does")
    ] = None,
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
    allow_huge: Annotated[
        bool, typer.Option("--allow-huge", help="Read lines of over 16 million characters and files packed to 1/200.")
    ] = False,
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
            rules |= {"year": amazon, "benchmark": None if benchmark == "none" else benchmark}
            prepared = prepare_amazon(output, category=category or "", data_dir=data_dir, **rules)
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
                delimiter=delimiter,
                date_format=date_format,
                deduplicate=deduplicate,
                k_core=k_core,
                min_history=min_history,
                keep_all_items=keep_all_items,
                ascii_only=ascii_only,
                allow_huge=allow_huge,
                **rules,
            )
        notes = preparation_notes(prepared.metadata)
        following = f"written to {output}; next: hf-genrec embed {output} --output embeddings"
        show(statistics_table(prepared.metadata), *notes, following, result={"folder": output} | prepared.metadata)


_OF_A_LOG = {"user_column", "item_column", "timestamp_column", "rating_column", "min_rating", "date_format"}
_OF_AMAZON = {"data_dir", "benchmark"}
_OF_A_TABLE = {
    "items", "items_id", "delimiter", "title_field", "text_fields", "protocol", "k_core", "deduplicate", "min_history",
    "keep_all_items", "ascii_only", "allow_huge",
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
