"""
Files in, one commit of a Hub repository out: only what changed travels, and what people wrote there stays.

A push is planned against the repository's head and committed on top of that head: if anything fails on the way, or
somebody else commits meanwhile, the branch stays where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from hf_genrec.hub.cards import is_generated
from hf_genrec.hub.files import CARD_NAME, Content


logger = logging.getLogger(__name__)

RepoType = Literal["model", "dataset", "space"]
Action = Literal["upload", "unchanged", "keep", "delete", "leave out"]


@dataclasses.dataclass(frozen=True)
class PlannedFile:
    """
    What a push does with one file.

    Attributes:
        path (`str`): its place in the repository.
        action (`str`):
            `"upload"`, `"unchanged"` (it is there already), `"keep"` (what is there stays), `"delete"` or
            `"leave out"`.
        size (`int`): bytes of the file that is meant.
        reason (`str`): why, where it is not obvious.
    """

    path: str
    action: Action
    size: int
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Publication:
    """
    A push, done or planned.

    Attributes:
        repo_id (`str`): the repository.
        repo_type (`str`): `"model"`, `"dataset"` or `"space"`.
        files (`tuple[PlannedFile, ...]`): what happens to each file.
        commit (`str` or `None`): the commit that now holds them; `None` if nothing was sent.
        url (`str` or `None`): the repository's page; `None` if nothing was sent.
        notes (`tuple[str, ...]`): what else a person should know.
    """

    repo_id: str
    repo_type: RepoType
    files: tuple[PlannedFile, ...]
    commit: str | None = None
    url: str | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """
        The publication as JSON-ready values.

        Returns:
            `dict`
        """
        return dataclasses.asdict(self) | {"files": [dataclasses.asdict(file) for file in self.files]}


@dataclasses.dataclass(frozen=True)
class _Head:
    """What a branch holds; `commit` is `None` where there is no repository yet."""

    commit: str | None
    files: dict[str, RepoFile]
    notes: tuple[str, ...] = ()


def publish(
    contents: Mapping[str, Content],
    repo_id: str,
    *,
    repo_type: RepoType = "model",
    is_ours: Callable[[str], bool] = lambda path: False,
    left_out: Iterable[PlannedFile] = (),
    private: bool = True,
    revision: str | None = None,
    commit_message: str,
    replace_card: bool = False,
    token: str | None = None,
    dry_run: bool = False,
    space_sdk: str | None = None,
) -> Publication:
    """
    Make a repository hold some files, in one commit.

    Args:
        contents (`dict[str, Path | bytes]`): Place in the repository to a file or its bytes.
        repo_id (`str`): `user/name`, see [`full_name`]. Created where it is missing.
        repo_type (`str`, *optional*, defaults to `"model"`): `"model"`, `"dataset"` or `"space"`.
        is_ours (`Callable`, *optional*):
            Which files of the repository are removed if they are not among the contents; none by default.
        left_out (`Iterable[PlannedFile]`, *optional*): What stays at home, to be listed.
        private (`bool`, *optional*, defaults to `True`): Of a new repository; an existing one stays as it is.
        revision (`str`, *optional*): The branch; `None` for `main`. Created from `main` where it is missing.
        commit_message (`str`): The first line of the commit.
        replace_card (`bool`, *optional*, defaults to `False`): Whether a card that a person edited may be replaced.
        token (`str`, *optional*): The access token; `None` for the one of `hf auth login` or `HF_TOKEN`.
        dry_run (`bool`, *optional*, defaults to `False`): Whether to plan only.
        space_sdk (`str`, *optional*): Of a Space: `"gradio"`.

    Returns:
        [`Publication`]

    Raises:
        OSError: If the Hub cannot be reached or refuses; the branch is then as it was.
    """
    api = HfApi(token=token)

    def planned(*, must_exist: bool) -> tuple[_Head, tuple[PlannedFile, ...]]:
        head = _read_head(api, repo_id, repo_type=repo_type, revision=revision, must_exist=must_exist)
        edited = not replace_card and _is_card_edited(api, repo_id, head, contents, repo_type=repo_type)
        return head, (*_plan(contents, head, is_ours=is_ours, is_card_edited=edited), *left_out)

    if dry_run:
        head, files = planned(must_exist=False)
        return Publication(repo_id, repo_type, files, notes=head.notes)
    for wait in (*_WAITS, None):
        try:
            url = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=space_sdk)
            if revision is not None:
                api.create_branch(repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
            head, files = planned(must_exist=True)
            commit = _commit(api, repo_id, contents, files, head, repo_type, revision, commit_message)
            break
        except (HTTPError, RuntimeError) as error:  # uploads wrap theirs in a RuntimeError
            cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
            if isinstance(cause, HfHubHTTPError) and cause.response.status_code not in _PASSING:
                raise
            if wait is None:
                raise ConnectionError(
                    f"Publishing to {repo_id} failed: {str(cause) or type(cause).__name__}. The repository is as it "
                    "was. Run the same command again; what has arrived is not sent twice."
                ) from error
            logger.warning("Publishing to %s: %s; trying again.", repo_id, str(cause) or type(cause).__name__)
            time.sleep(wait)
    return Publication(repo_id, repo_type, files, commit=commit, url=str(url), notes=head.notes)


def full_name(repo_id: str, *, token: str | None = None, must_answer: bool = True) -> str:
    """
    A repository's name with its owner.

    Args:
        repo_id (`str`): `user/name`, or `name` for the user of the token.
        token (`str`, *optional*): The access token; `None` for the one of `hf auth login` or `HF_TOKEN`.
        must_answer (`bool`, *optional*, defaults to `True`): Whether silence of the Hub is an error.

    Returns:
        `str`: `user/name`; just `name` if the Hub did not answer and need not.

    Raises:
        ValueError: If the name is no repository's.
        OSError: If the Hub cannot be reached or refuses the token.

    Example:

    ```python
    >>> full_name("me/latte-beauty")
    'me/latte-beauty'

    ```
    """
    validate_repo_id(repo_id)
    if "/" in repo_id:
        return repo_id
    try:
        return f"{HfApi(token=token).whoami()['name']}/{repo_id}"
    except (HTTPError, OSError) as error:
        if not must_answer:
            return repo_id
        raise ConnectionError(
            f"`repo_id` {repo_id!r} has no owner, and the Hub did not say who you are: {error}. Log in with `hf auth "
            "login`, or write `owner/name`."
        ) from error


_WAITS = (1, 4)  # seconds before the second and the third attempt
_PASSING = {408, 412, 425, 429, 500, 502, 503, 504}  # what may be over soon; 412: somebody else has just committed


def _read_head(api: HfApi, repo_id: str, *, repo_type: RepoType, revision: str | None, must_exist: bool) -> _Head:
    """The files of a branch; of a branch that does not exist yet, those of `main`, from which it will be made."""
    try:
        try:
            info = api.repo_info(repo_id, repo_type=repo_type, revision=revision)
        except RevisionNotFoundError:
            if must_exist:
                raise
            info = api.repo_info(repo_id, repo_type=repo_type)
        tree = api.list_repo_tree(repo_id, repo_type=repo_type, revision=info.sha, recursive=True)
        files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        notes = () if info.private or not must_exist else (f"{repo_id} is public.",)
        return _Head(info.sha, files, notes)
    except RepositoryNotFoundError:
        if must_exist:
            raise
        return _Head(None, {}, (f"{repo_id} does not exist yet or is hidden from you.",))
    except (HTTPError, OSError) as error:
        if must_exist:
            raise
        return _Head(None, {}, (f"The Hub was not asked what it holds already: {str(error).splitlines()[0]}",))


def _is_card_edited(
    api: HfApi, repo_id: str, head: _Head, contents: Mapping[str, Content], *, repo_type: RepoType
) -> bool:
    """Whether the card on the Hub differs from ours and a person wrote on it."""
    there, ours = head.files.get(CARD_NAME), contents.get(CARD_NAME)
    if there is None or ours is None or _is_same(ours, there):
        return False
    path = api.hf_hub_download(repo_id, CARD_NAME, repo_type=repo_type, revision=head.commit)
    return not is_generated(Path(path).read_text(encoding="utf-8"))


def _plan(
    contents: Mapping[str, Content], head: _Head, *, is_ours: Callable[[str], bool], is_card_edited: bool
) -> list[PlannedFile]:
    plan = []
    for path, content in contents.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if path in head.files and _is_same(content, head.files[path]):
            plan.append(PlannedFile(path, "unchanged", size))
        elif path == CARD_NAME and is_card_edited:
            plan.append(PlannedFile(path, "keep", head.files[path].size, "edited on the Hub"))
        else:
            reason = (
                "cleaned of paths of this machine" if isinstance(content, bytes) and path.endswith(".json") else ""
            )
            plan.append(PlannedFile(path, "upload", size, reason))
    for path, file in head.files.items():
        if path not in contents and path != CARD_NAME:
            if is_ours(path):
                plan.append(PlannedFile(path, "delete", file.size, "no longer in the folder"))
            elif path != ".gitattributes":
                plan.append(PlannedFile(path, "keep", file.size, "not ours"))
    return plan


def _is_same(content: Content, there: RepoFile) -> bool:
    """Whether the Hub holds these bytes: large files are known by their SHA-256, others by git's own digest."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if size != there.size:
        return False
    if there.lfs is None:
        data = content if isinstance(content, bytes) else content.read_bytes()
        return hashlib.sha1(f"blob {size}\0".encode() + data, usedforsecurity=False).hexdigest() == there.blob_id
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest() == there.lfs.sha256
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == there.lfs.sha256


def _commit(
    api: HfApi,
    repo_id: str,
    contents: Mapping[str, Content],
    files: Iterable[PlannedFile],
    head: _Head,
    repo_type: RepoType,
    revision: str | None,
    message: str,
) -> str | None:
    """The new head; the old one if nothing has changed."""
    operations: list[Any] = [
        CommitOperationAdd(file.path, contents[file.path]) for file in files if file.action == "upload"
    ]
    operations += [CommitOperationDelete(file.path, is_folder=False) for file in files if file.action == "delete"]
    if not operations:
        return head.commit
    with warnings.catch_warnings():  # a recommender holds a table of its items: Parquet belongs into its repository
        warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
        return api.create_commit(
            repo_id,
            operations,
            commit_message=message,
            repo_type=repo_type,
            revision=revision,
            parent_commit=head.commit,
        ).oid
