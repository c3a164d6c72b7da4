"""
`hf-genrec catalog`: items are added to and removed from the catalog of a trained model, in versions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_genrec.cli.command_line import app, check_is_folder, output_on
from hf_genrec.cli.options import AsJson


if TYPE_CHECKING:
    from hf_genrec.serving.recommender import Recommender

catalog = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Add items to a trained model, remove some, roll back: no training, no id moves.",
)
app.add_typer(catalog, name="catalog")

Run = Annotated[str, typer.Argument(metavar="RUN", help="Run folder that training wrote.", show_default=False)]


@catalog.command("add")
def _add(
    run: Run,
    items: Annotated[str, typer.Option(help="Table of the new items, as for prepare: item_id, title, ...")],
    vectors: Annotated[
        str | None, typer.Option(metavar="FILE", help=".npy or .safetensors with a row per item instead of texts.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="The text encoder, where training read a local folder.")
    ] = None,
    reuse_ids: Annotated[
        bool, typer.Option("--reuse-ids", help="New items may get the semantic IDs of removed ones.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """
    Add items; those that were removed before come back.

    \b
    Examples:
      hf-genrec catalog add run --items new.jsonl
      hf-genrec catalog add run --items new.csv --vectors new.npy --json
    """
    with output_on(as_json) as show:
        from hf_genrec.data.item_readers import read_items
        from hf_genrec.tokenizers.embeddings import load_matrix

        recommender = _opened(run)
        table = read_items(items).table
        matrix = None if vectors is None else load_matrix(vectors, num_items=table.num_rows)
        version = recommender.catalog.add(table, vectors=matrix, encoder=encoder, reuse_ids=reuse_ids)
        _show(show, version)


@catalog.command("learn")
def _learn(
    run: Run,
    embeddings: Annotated[str, typer.Option(help="What `embed` wrote for the items of the run.")],
    prepared_folder: Annotated[
        str, typer.Option("--prepared", metavar="PREPARED", help="The prepared folder that they are of.")
    ],
    as_json: AsJson = False,
) -> None:
    """
    Learn how what a model knows of items follows from their texts, once, before items are added.

    Needed by models that have a row of their own for each item: SASRec, text similarity, and ensembles with one.

    \b
    Examples:
      hf-genrec catalog learn run --embeddings embeddings --prepared data
    """
    with output_on(as_json) as show:
        from hf_genrec.data.prepared import PreparedDataset
        from hf_genrec.tokenizers.folder import embeddings_path, read_embeddings
        from hf_genrec.training.initial import check_same_catalog

        recommender, prepared = _opened(run), PreparedDataset.load(prepared_folder)
        check_same_catalog(recommender.item_ids, prepared, owner=f"The run {run}")
        vectors, encoder = read_embeddings(embeddings_path(embeddings), prepared)
        recommender.catalog.learn(vectors, encoder=encoder)
        show(
            f"learned from {len(vectors):,} items; next: hf-genrec catalog add {run} --items FILE", result={"run": run}
        )


@catalog.command("remove")
def _remove(
    run: Run,
    item_ids: Annotated[list[str] | None, typer.Argument(metavar="ID ID ...", show_default=False)] = None,
    file: Annotated[str | None, typer.Option(help="File with an id a line.")] = None,
    as_json: AsJson = False,
) -> None:
    """
    Remove items: they are not recommended any more and still count in histories.

    \b
    Examples:
      hf-genrec catalog remove run B0001 B0002
      hf-genrec catalog remove run --file sold_out.txt
    """
    with output_on(as_json) as show:
        wanted = list(item_ids or [])
        if file is not None:
            wanted += Path(file).read_text(encoding="utf-8").split("\n")
        wanted = [item_id.strip() for item_id in wanted if item_id.strip()]
        if not wanted:
            raise ValueError("Name items to remove, or a `--file` of ids.")
        version = _opened(run).catalog.remove(wanted)
        _show(show, version)


@catalog.command("rollback")
def _rollback(
    run: Run,
    number: Annotated[int, typer.Argument(metavar="VERSION", help="The version to go back to.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """
    Go back to an earlier version, which becomes a new one.

    \b
    Examples:
      hf-genrec catalog rollback run 3
    """
    with output_on(as_json) as show:
        version = _opened(run).catalog.rollback(number)
        _show(show, version)


@catalog.command("log")
def _log(run: Run, as_json: AsJson = False) -> None:
    """
    List the versions.

    \b
    Examples:
      hf-genrec catalog log run
    """
    with output_on(as_json) as show:
        from hf_genrec.evaluation.tables import TextTable

        versions = _opened(run).catalog.versions()
        header = ["version", "time", "items", "added", "removed", "fingerprint"]
        counts = [[f"{each.num_items:,}", f"{each.num_added:,}", f"{each.num_removed:,}"] for each in versions]
        rows = [
            [f"{each.number}", each.time, *cells, each.fingerprint]
            for each, cells in zip(versions, counts, strict=True)
        ]
        show(TextTable("Catalog", [header, *rows]), result={"versions": [asdict(each) for each in versions]})


@catalog.command("delta")
def _delta(
    run: Run,
    since: Annotated[int, typer.Argument(metavar="VERSION", help="The version to compare with.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """
    What has changed since a version: the items that came, with their semantic IDs, and those that left.

    \b
    Examples:
      hf-genrec catalog delta run 3 --json
    """
    with output_on(as_json) as show:
        delta = _opened(run).catalog.delta(since)
        added, removed = delta["added"].to_pylist(), delta["removed"]
        lines = [f"+ {item['item_id']} {item.get('codes') or ''}".rstrip() for item in added]
        lines += [f"- {item_id}" for item_id in removed]
        show(*lines, result={**delta, "added": added})


def _opened(run: str) -> Recommender:
    from hf_genrec.serving.recommender import Recommender

    check_is_folder(run, "catalog")
    return Recommender.from_pretrained(run, device="cpu")


def _show(show: Callable[..., None], version: Any) -> None:
    added, removed = f"{version.num_added:,} added", f"{version.num_removed:,} removed"
    show(f"version {version.number}: {version.num_items:,} items, {added}, {removed}", result=asdict(version))
