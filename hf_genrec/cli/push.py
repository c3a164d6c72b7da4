"""
The verbs that publish: `push`, `push-ids`, `push-space`. Heavy modules are imported inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.table import Table

from hf_genrec.cli.command_line import app, arguments_for, output_on
from hf_genrec.cli.options import AsJson


if TYPE_CHECKING:
    from hf_genrec.hub.push import Publication

Repo = Annotated[
    str, typer.Option("--repo", metavar="[OWNER/]NAME", help="The repository; created if missing.", show_default=False)
]
Public = Annotated[bool, typer.Option("--public", help="Make a new repository public; it is private otherwise.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list what would go, and what would not and why.")]
Revision = Annotated[str | None, typer.Option(metavar="BRANCH", help="The branch.", show_default="main")]
Message = Annotated[str | None, typer.Option("--message", "-m", help="First line of the commit.", show_default=False)]
ReplaceCard = Annotated[bool, typer.Option("--replace-card", help="Replace a README.md that was edited on the Hub.")]
License = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Licence in a generated card, as the Hub spells it, such as mit.", show_default=False
    ),
]
Space = Annotated[
    str | None,
    typer.Option(metavar="OWNER/NAME", help="Space that a generated card links to.", show_default=False),
]
Neighbors = Annotated[
    bool,
    typer.Option(
        "--neighbors",
        help="Publish item_neighbors.parquet for the Space; it shows how many users took two items.",
    ),
]


@app.command("push")
def _push(
    ctx: typer.Context,
    recommender: Annotated[str, typer.Argument(metavar="RUN", help="The run folder.", show_default=False)],
    repo_id: Repo,
    public: Public = False,
    dry_run: DryRun = False,
    revision: Revision = None,
    commit_message: Message = None,
    license: License = None,
    space: Space = None,
    neighbors: Neighbors = False,
    replace_card: ReplaceCard = False,
    as_json: AsJson = False,
) -> None:
    """
    Publish a run folder as a Hub repository.

    The repository is a complete recommender. One commit; files that are there already do not travel again. Training
    states, caches and results per user are not uploaded, nor, without `--neighbors`, what shows how many users took
    two items. Log in with `hf auth login` first.

    \b
    Examples:
      hf-genrec push run --repo latte-beauty --dry-run
      hf-genrec push run --repo me/latte-beauty --public --license mit --space me/latte-beauty-demo
    """
    with output_on(as_json) as show:
        from hf_genrec.hub.push import push_recommender

        _show(show, push_recommender(**arguments_for(push_recommender, ctx), private=not public))


@app.command("push-ids")
def _push_ids(
    ctx: typer.Context,
    folder: Annotated[
        str, typer.Argument(metavar="IDS|RUN", help="A tokenized folder or a run folder.", show_default=False)
    ],
    repo_id: Repo,
    public: Public = False,
    dry_run: DryRun = False,
    revision: Revision = None,
    commit_message: Message = None,
    license: License = None,
    replace_card: ReplaceCard = False,
    as_json: AsJson = False,
) -> None:
    """
    Publish semantic IDs as a data set repository.

    \b
    Examples:
      hf-genrec push-ids ids --repo beauty-semantic-ids
    """
    with output_on(as_json) as show:
        from hf_genrec.hub.push import push_ids

        _show(show, push_ids(**arguments_for(push_ids, ctx), private=not public))


@app.command("push-space")
def _push_space(
    ctx: typer.Context,
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="The recommender's repository on the Hub.", show_default=False)
    ],
    space_id: Repo,
    public: Public = False,
    dry_run: DryRun = False,
    commit_message: Message = None,
    replace_card: ReplaceCard = False,
    as_json: AsJson = False,
) -> None:
    """
    Publish a demo Space for a recommender's repository.

    \b
    Examples:
      hf-genrec push-space me/latte-beauty --repo me/latte-beauty-demo --public
    """
    with output_on(as_json) as show:
        from hf_genrec.hub.push import push_space

        _show(show, push_space(**arguments_for(push_space, ctx), private=not public))


def _show(show: Any, publication: Publication) -> None:
    lines = list(publication.notes)
    if publication.url is not None:
        lines.append(f"{publication.url} at {publication.commit}")
    show(_table(publication), *lines, result=publication.to_dict())


def _table(publication: Publication) -> Table:
    """What happens to each file; what travels comes first."""
    is_plan = publication.url is None
    table = Table(
        title=f"{publication.repo_type} {publication.repo_id}" + (", not pushed" if is_plan else ""), box=SIMPLE_HEAD
    )
    table.add_column("file", overflow="fold")
    table.add_column("what", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for file in sorted(publication.files, key=lambda file: _ORDER.index(file.action)):
        table.add_row(file.path, file.action, decimal(file.size), file.reason)
    sent = [file.size for file in publication.files if file.action == "upload"]
    table.caption = f"{len(sent)} files, {decimal(sum(sent))} to upload" if is_plan else f"{len(sent)} files uploaded"
    return table


_ORDER = ("upload", "delete", "keep", "unchanged", "leave out")
