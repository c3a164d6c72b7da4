"""
A run folder, a table of semantic IDs or the Space in, a Hub repository out: private unless said otherwise, one commit.
"""

from __future__ import annotations

import io
import json
import os
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi, SpaceCard
from huggingface_hub.utils import validate_repo_id

from hf_genrec.hub.cards import dataset_card, folder_card, is_generated, marked
from hf_genrec.hub.commits import PlannedFile, Publication, full_name, publish
from hf_genrec.hub.files import CARD_NAME, Content, files_left_out, is_published, published_files
from hf_genrec.tokenizers.folder import IDS_NAME, QUANTIZER_NAME, load_tokenized


if TYPE_CHECKING:
    from hf_genrec.serving.recommender import Recommender

SPACE_VARIABLE = "HF_GENREC_REPO"  # of the Space: the repository that it shows


def push_recommender(
    recommender: str | os.PathLike[str] | Recommender,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    commit_message: str | None = None,
    replace_card: bool = False,
    token: str | None = None,
    dry_run: bool = False,
) -> Publication:
    """
    Publish a recommender as a Hub repository that is complete: model, code, tokenizer, items and card.

    The repository holds what [`hub_files`] lists, and nothing of ours that the folder no longer has; files of other
    people stay. A card that was edited on the Hub stays too.

    Args:
        recommender (`str`, `Path` or [`Recommender`]):
            A folder that training or [`save_recommender`] wrote, or a recommender that was loaded from a folder or
            repository and not changed since.
        repo_id (`str`): `user/name`, or `name` for the user of the token. Created where it is missing.
        private (`bool`, *optional*, defaults to `True`): Of a new repository; an existing one stays as it is.
        revision (`str`, *optional*): The branch; `None` for `main`. Created where it is missing.
        commit_message (`str`, *optional*): The first line of the commit.
        replace_card (`bool`, *optional*, defaults to `False`): Whether a card that a person edited may be replaced.
        token (`str`, *optional*): The access token; `None` for the one of `hf auth login` or `HF_TOKEN`.
        dry_run (`bool`, *optional*, defaults to `False`): Whether to say only what would happen.

    Returns:
        [`Publication`]

    Raises:
        FileNotFoundError: If the folder is no complete recommender.
        ValueError:
            If a file is damaged, holds a token, or is JSON with a path of this machine; if a [`Recommender`] was built
            in memory or was changed since it was loaded.
        OSError: If the Hub cannot be reached or refuses; the branch is then as it was.
    """
    folder = Path(recommender) if isinstance(recommender, (str, os.PathLike)) else recommender.saved_folder()
    contents = published_files(folder)
    repo_id = full_name(repo_id, token=token, must_answer=not dry_run)
    contents |= _card_of(folder, repo_id)
    left = [PlannedFile(name, "leave out", size, why) for name, (size, why) in files_left_out(folder).items()]
    return publish(
        contents,
        repo_id,
        is_ours=is_published,
        left_out=left,
        private=private,
        revision=revision,
        commit_message=commit_message or "Upload recommender",
        replace_card=replace_card,
        token=token,
        dry_run=dry_run,
    )


def push_ids(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    commit_message: str | None = None,
    replace_card: bool = False,
    token: str | None = None,
    dry_run: bool = False,
) -> Publication:
    """
    Publish a table of semantic IDs as a data set repository, to be read by `datasets.load_dataset`.

    Args:
        folder (`str` or `Path`):
            A tokenized folder, or a run folder of a model with semantic IDs, whose table has the titles as well.
        repo_id (`str`): `user/name`, or `name` for the user of the token. Created where it is missing.
        private (`bool`, *optional*, defaults to `True`): Of a new repository; an existing one stays as it is.
        revision (`str`, *optional*): The branch; `None` for `main`. Created where it is missing.
        commit_message (`str`, *optional*): The first line of the commit.
        replace_card (`bool`, *optional*, defaults to `False`): Whether a card that a person edited may be replaced.
        token (`str`, *optional*): The access token; `None` for the one of `hf auth login` or `HF_TOKEN`.
        dry_run (`bool`, *optional*, defaults to `False`): Whether to say only what would happen.

    Returns:
        [`Publication`]

    Raises:
        FileNotFoundError: If the folder is neither.
        ValueError: If its items have no semantic IDs.
        OSError: If the Hub cannot be reached or refuses; the branch is then as it was.
    """
    table, record = ids_table(folder)
    repo_id = full_name(repo_id, token=token, must_answer=not dry_run)
    return publish(
        {CARD_NAME: dataset_card(table, record, repo_id=repo_id).encode(), "ids.parquet": _parquet_of(table)},
        repo_id,
        repo_type="dataset",
        private=private,
        revision=revision,
        commit_message=commit_message or "Upload semantic IDs",
        replace_card=replace_card,
        token=token,
        dry_run=dry_run,
    )


def push_space(
    repo: str,
    space_id: str,
    *,
    private: bool = True,
    commit_message: str | None = None,
    replace_card: bool = False,
    token: str | None = None,
    dry_run: bool = False,
) -> Publication:
    """
    Publish the demo as a Space that shows a recommender's repository.

    Args:
        repo (`str`): The repository of the recommender. A Space cannot read a private one without a token of its own.
        space_id (`str`): `user/name`, or `name` for the user of the token. Created where it is missing.
        private (`bool`, *optional*, defaults to `True`): Of a new Space; an existing one stays as it is.
        commit_message (`str`, *optional*): The first line of the commit.
        replace_card (`bool`, *optional*, defaults to `False`): Whether a card that a person edited may be replaced.
        token (`str`, *optional*): The access token; `None` for the one of `hf auth login` or `HF_TOKEN`.
        dry_run (`bool`, *optional*, defaults to `False`): Whether to say only what would happen.

    Returns:
        [`Publication`]

    Raises:
        ValueError: If `repo` is a folder or no repository's name.
        OSError: If the Hub cannot be reached or refuses; the Space is then as it was.
    """
    if Path(repo).is_dir():
        raise ValueError(
            f"`repo` must be a Hub repository, from which the Space reads its model; {repo} is a folder. Publish it "
            f"with `hf-genrec push {repo} --repo NAME` and give that name."
        )
    validate_repo_id(repo)
    space_id = full_name(space_id, token=token, must_answer=not dry_run)
    publication = publish(
        space_files(repo),
        space_id,
        repo_type="space",
        private=private,
        commit_message=commit_message or "Upload demo",
        replace_card=replace_card,
        token=token,
        dry_run=dry_run,
        space_sdk="gradio",
    )
    if not dry_run:
        HfApi(token=token).add_space_variable(space_id, SPACE_VARIABLE, repo)
    return publication


def ids_table(folder: str | os.PathLike[str]) -> tuple[pa.Table, dict[str, Any]]:
    """
    The table of semantic IDs as it is published.

    Args:
        folder (`str` or `Path`): A tokenized folder, or a run folder of a model with semantic IDs.

    Returns:
        `tuple[pa.Table, dict]`: `item_id`, `codes` and, of a run folder, `title`; and what is known about how the ids
            were made: the record of a tokenized folder, the quantizer's settings of a run.

    Raises:
        FileNotFoundError: If the folder is neither.
        ValueError: If its items have no semantic IDs.
    """
    folder = Path(folder)
    if (folder / IDS_NAME).is_file():
        semantic_ids, record = load_tokenized(folder)
        return semantic_ids.to_table().select(["item_id", "codes"]), record
    if not (folder / "items.parquet").is_file():
        raise FileNotFoundError(
            f"{folder} is neither a tokenized folder (no {IDS_NAME}) nor a run folder (no items.parquet)."
        )
    table = pq.read_table(folder / "items.parquet")
    if "codes" not in table.column_names:
        raise ValueError(f"The items of {folder} have no semantic IDs: its model scores items themselves.")
    settings = folder / QUANTIZER_NAME / "config.json"
    record = {"settings": json.loads(settings.read_text(encoding="utf-8"))} if settings.is_file() else {}
    return table.select([name for name in ("item_id", "codes", "title") if name in table.column_names]), record


def space_files(repo: str) -> dict[str, Content]:
    """
    The Space as it is uploaded, with its recommender named in the head of its `README.md`.

    Args:
        repo (`str`): The repository of the recommender.

    Returns:
        `dict[str, Path | bytes]`: place in the repository to file or content.
    """
    folder = Path(str(resources.files("hf_genrec").joinpath("spaces_demo")))
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix in (".py", ".md", ".txt"))
    card = SpaceCard((folder / CARD_NAME).read_text(encoding="utf-8"), ignore_metadata_errors=False)
    card.data["models"] = [repo]
    return {name: folder / name for name in names if name != "__init__.py"} | {CARD_NAME: marked(str(card)).encode()}


def _card_of(folder: Path, repo_id: str) -> dict[str, Content]:
    """The card with the repository's name in its example; one that a person wrote in the folder stays as it is."""
    card = folder / CARD_NAME
    if card.is_file() and not is_generated(card.read_text(encoding="utf-8")):
        return {}
    return {CARD_NAME: folder_card(folder, repo_id=repo_id).encode()}


def _parquet_of(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()
