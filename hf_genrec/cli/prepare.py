"""
`hf-genrec prepare`: a log and an items table become a prepared folder.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from hf_genrec.cli.command_line import app, arguments_for, check_effect, output_on
from hf_genrec.cli.options import AsJson, Overwrite


@app.command("prepare")
def _prepare(
    ctx: typer.Context,
    output_dir: Annotated[str, typer.Option("--output", help="The prepared folder to write.", show_default=False)],
    interactions: Annotated[
        str | None, typer.Option(help="Log: .csv, .tsv, .jsonl (also .gz), .parquet or a pattern of them.")
    ] = None,
    sequences: Annotated[str | None, typer.Option(help="Ready-made sequences: user<TAB>item item ...")] = None,
    items: Annotated[str | None, typer.Option(help="Items table: .jsonl, .csv, .tsv or .parquet.")] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--movielens",
            metavar="PATH",
            help="MovieLens-100K: what scripts/fetch_movielens.py wrote, or ml-100k.zip.",
        ),
    ] = None,
    year: Annotated[
        int | None, typer.Option("--amazon", metavar="2014|2023", help="Amazon Reviews of this year.")
    ] = None,
    category: Annotated[str | None, typer.Option(help="Category of Amazon Reviews, as its files spell it.")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder with Amazon's files; else they are fetched.")] = None,
    benchmark: Annotated[
        str, typer.Option(help="5-core files of 2023: last_out_w_his, last_out, rating_only, or none for raw.")
    ] = "last_out_w_his",
    user: Annotated[str, typer.Option("--user-column", help="Column of the users in the log.")] = "user_id",
    item: Annotated[str, typer.Option("--item-column", help="Column of the items in the log.")] = "item_id",
    timestamp: Annotated[
        str, typer.Option("--timestamp-column", help="Column of the times; '' for the file's order.")
    ] = "timestamp",
    rating: Annotated[
        str | None, typer.Option("--rating-column", help="Column of the ratings, for --min-rating.")
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(
            "--delimiter",
            "--separator",
            help="Between the fields of .csv files, such as ';'.",
            show_default="found in the header",
        ),
    ] = None,
    date_format: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="How times are written, such as '%d/%m/%Y %H:%M'.",
            show_default="found in the column",
        ),
    ] = None,
    min_rating: Annotated[float | None, typer.Option(help="Drop interactions rated lower.")] = None,
    items_id: Annotated[str, typer.Option(help="Field of the ids in the items table.")] = "item_id",
    title: Annotated[str, typer.Option("--title-field", help="Field of the titles in the items table.")] = "title",
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
        Literal["error", "drop", "keep"], typer.Option(help="Items without text: stop, drop them, or use their ids.")
    ] = "error",
    on_error: Annotated[
        Literal["raise", "skip"], typer.Option(help="Malformed lines: stop, or skip and count.")
    ] = "raise",
    allow_huge: Annotated[
        bool, typer.Option("--allow-huge", help="Read lines of over 16 million characters and files packed to 1/200.")
    ] = False,
    engine: Annotated[
        Literal["duckdb", "spark"], typer.Option(help="What runs the steps: this process, or a cluster of Spark.")
    ] = "duckdb",
    master: Annotated[
        str | None, typer.Option(help="Spark's master: local[4], spark://host:7077, yarn; for --engine spark.")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(help="What DuckDB may take, such as 4GB; more lies on the disk.", show_default="80 %")
    ] = None,
    keep_all_items: Annotated[bool, typer.Option(help="Keep items without an interaction in the catalog.")] = False,
    cold_items: Annotated[
        float,
        typer.Option(min=0, max=0.99, help="Share of the items, the newest, held out of training, such as 0.05."),
    ] = 0.0,
    split_time: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TIME",
            help="Train on what came before this time (such as 2011-10-01), test on what came next; given twice, the "
            "first is the validation's.",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option(help="Stop where a category's published statistics are not met.")] = True,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """
    Turn a log and an items table into a prepared folder.

    They are read, checked, filtered, split and counted.

    \b
    Examples:
      hf-genrec prepare --interactions log.csv --items items.jsonl --output data --k-core 5
      hf-genrec prepare --interactions log.parquet --user-column customer --item-column sku \\
          --timestamp-column time --items items.csv --output data
      hf-genrec prepare --sequences sequences.tsv --items items.jsonl --output data
      hf-genrec prepare --movielens ml-100k --output data
      hf-genrec prepare --amazon 2023 --category Video_Games --output data
      hf-genrec prepare --movielens ml-100k --cold-items 0.05 --output cold_data
      hf-genrec prepare --interactions log.csv --items items.jsonl --split-time 2011-10-01 --output data
    """
    kinds = {"--interactions": interactions, "--sequences": sequences, "--movielens": source, "--amazon": year}
    if sum(bool(value) for value in kinds.values()) != 1:
        raise ValueError(f"Give exactly one of {', '.join(kinds)}.")
    if year and not category:
        raise ValueError("`--amazon` needs `--category`, such as Video_Games.")
    kind = next(kind for kind, value in kinds.items() if value)
    with output_on(as_json) as show:
        from hf_genrec.cli.tables import preparation_notes, statistics_table
        from hf_genrec.data.prepare import prepare
        from hf_genrec.data.sources.amazon import prepare_amazon
        from hf_genrec.data.sources.movielens import prepare_movielens

        if source:
            check_effect(prepare_movielens, ctx, kind)
            prepared = prepare_movielens(**arguments_for(prepare_movielens, ctx))
        elif year:
            check_effect(prepare_amazon, ctx, f"{kind} {year}", ["benchmark"] if year == 2014 else [])
            files = {"benchmark": None if benchmark == "none" else benchmark}
            prepared = prepare_amazon(**arguments_for(prepare_amazon, ctx) | files)
        else:
            of_a_log = ["user", "item", "timestamp", "rating", "min_rating", "date_format", "split_time"]
            check_effect(prepare, ctx, kind, of_a_log if sequences else [])
            if not items:
                raise ValueError("`--items` is missing: the table with the items' titles and texts.")
            columns = {"timestamp": timestamp or None, "text_fields": text_fields.split(",") if text_fields else None}
            prepared = prepare(**arguments_for(prepare, ctx) | columns)
        notes = preparation_notes(prepared.metadata)
        following = f"written to {output_dir}; next: hf-genrec embed {output_dir} --output embeddings"
        show(statistics_table(prepared.metadata), *notes, following, result={"folder": output_dir} | prepared.metadata)
