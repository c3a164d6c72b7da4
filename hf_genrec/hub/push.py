"""
A recommender, a table of semantic IDs or the Space in; a Hub repository out: private by default, one commit.

`huggingface_hub` sends the files and skips what the Hub has already. What is decided here: which files of a branch a
push replaces, keeps or removes. It is planned against the branch's head and committed on top of that head: if anything
fails on the way, or somebody else commits meanwhile, the branch stays where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile, SpaceCard
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash

from hf_genrec.hub.cards import check_written, dataset_card, folder_card, is_generated, marked
from hf_genrec.hub.files import CARD_NAME, Content, files_left_out, hub_files, is_published
from hf_genrec.modeling.genrec_lists import VERSIONS_FILE
from hf_genrec.modeling.modeling_causal_lm import RECOMMENDER_FILE
from hf_genrec.tokenizers.folder import IDS_NAME, QUANTIZER_NAME, load_tokenized


if TYPE_CHECKING:
    from hf_genrec.serving.recommender import Recommender

logger = logging.getLogger(__name__)

SPACE_VARIABLE = "HF_GENREC_REPO"  # of the Space: the repository that it shows
RepoType = Literal["model", "dataset", "space"]
Action = Literal["upload", "unchanged", "keep", "delete", "leave out"]
MakeFiles = Callable[[str], dict[str, Content]]  # from the card on the Hub, which may be "", to what shall be there


@dataclasses.dataclass(frozen=True)
class PlannedFile:
    """What a push does with one file, named by its place in the repository."""

    path: str
    action: Action  # "keep": what is on the Hub stays; "leave out": it is local only
    size: int  # bytes of the file that is meant
    reason: str = ""  # where it is not obvious


@dataclasses.dataclass(frozen=True)
class Publication:
    """A push, done or planned."""

    repo_id: str
    repo_type: RepoType
    files: tuple[PlannedFile, ...]
    commit: str | None = None  # that now holds them; `None` for a plan
    url: str | None = None  # the repository's page; `None` for a plan
    notes: tuple[str, ...] = ()  # what else a person should know

    def to_dict(self) -> dict[str, Any]:
        """The publication as JSON-ready values."""
        return dataclasses.asdict(self)


def push_recommender(
    recommender: str | os.PathLike[str] | Recommender,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
    space: str | None = None,
    neighbors: bool = False,
    replace_card: bool = False,
    token: str | None = None,
    dry_run: bool = False,
) -> Publication:
    """
    Publish a recommender as a Hub repository that is complete: model, code, tokenizer, items and card.

    The repository holds what [`hub_files`] lists, and nothing of ours that the folder no longer has; other files stay.
    A card that was edited, there or in the folder, stays too, without `license` and `space`: a warning says what to
    write into it.

    Args:
        recommender (`str`, `Path` or [`Recommender`]):
            A folder that training or [`save_recommender`] wrote, or a recommender that was loaded from a folder or
            repository and not changed since.
        repo_id (`str`): `user/name`, or `name` for the user of the token. Created where it is missing.
        private (`bool`, *optional*, defaults to `True`): Of a new repository; an existing one stays as it is.
        revision (`str`, *optional*): The branch; `None` for `main`. Created from `main` where it is missing.
        commit_message (`str`, *optional*): The first line of the commit.
        license (`str`, *optional*): The licence in the card's metadata; `None` keeps that of the earlier card.
        space (`str`, *optional*): The Space that the card links to; `None` keeps that of the earlier card.
        neighbors (`bool`, *optional*, defaults to `False`):
            As in [`hub_files`], with a word on privacy. `False` also removes the file of an earlier push.
        replace_card (`bool`, *optional*, defaults to `False`): Whether a card edited on the Hub may be replaced.
        token (`str`, *optional*): The access token; `None` for the one of `hf auth login` or `HF_TOKEN`.
        dry_run (`bool`, *optional*, defaults to `False`): Whether to list only what would happen.

    Returns:
        [`Publication`]

    Raises:
        FileNotFoundError, ValueError:
            As in [`hub_files`]; or if a [`Recommender`] was built in memory or changed since it was loaded.
        OSError: If the Hub cannot be reached or refuses; the branch is then as it was.
    """
    folder = Path(recommender) if isinstance(recommender, (str, os.PathLike)) else recommender.saved_folder()
    contents = hub_files(folder, neighbors=neighbors)
    target = _Target(repo_id, "model", revision, token, dry_run=dry_run)
    if space is not None:
        validate_repo_id(space)

    def files(card_there: str) -> dict[str, Content]:
        card = folder / CARD_NAME
        if card.is_file() and not is_generated(card.read_text(encoding="utf-8")):
            return contents  # a person wrote it
        text = folder_card(folder, repo_id=target.repo_id, license=license, space=space, published=card_there)
        return contents | {CARD_NAME: text.encode()}

    return target.push(
        files,
        commit_message or "Upload recommender",
        is_ours=is_published,
        left_out=[
            PlannedFile(name, "leave out", *entry)
            for name, entry in files_left_out(folder, neighbors=neighbors).items()
        ],
        private=private,
        replace_card=replace_card,
        asked={"license": license, "space": space},
    )


def push_ids(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
    replace_card: bool = False,
    token: str | None = None,
    dry_run: bool = False,
) -> Publication:
    """
    Publish a table of semantic IDs as a data set repository, to be read by `datasets.load_dataset`.

    `folder` is a tokenized folder, or a run folder of a model with semantic IDs, whose table has the titles as well.

    Args: the others: see [`push_recommender`].
    """
    table, record = _ids_table(Path(folder))
    target = _Target(repo_id, "dataset", revision, token, dry_run=dry_run)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)

    def files(card_there: str) -> dict[str, Content]:
        card = dataset_card(table, record, repo_id=target.repo_id, license=license, published=card_there)
        return {CARD_NAME: card.encode(), "ids.parquet": buffer.getvalue()}

    message = commit_message or "Upload semantic IDs"
    return target.push(files, message, private=private, replace_card=replace_card, asked={"license": license})


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

    `repo` is the repository of the recommender, of which the Space cannot read a private one without a token of its
    own; `space_id` is named as other repositories are. The Space runs the code of the commit that the recommender has
    now, and of a later one after the next push of the Space.

    Args: the others: see [`push_recommender`].
    """
    if Path(repo).is_dir():
        raise ValueError(
            f"`repo` must be a Hub repository, from which the Space reads its model; {repo} is a folder. Publish it "
            f"with `hf-genrec push {repo} --repo NAME` and give that name."
        )
    validate_repo_id(repo)
    contents = _space_files(repo, token)
    target = _Target(space_id, "space", None, token, dry_run=dry_run)
    message = commit_message or "Upload demo"
    publication = target.push(lambda card_there: contents, message, private=private, replace_card=replace_card)
    if not dry_run:
        api = HfApi(token=token)
        api.add_space_variable(target.repo_id, SPACE_VARIABLE, f"{repo}@{api.model_info(repo).sha}")
    return publication


def full_name(repo_id: str, *, token: str | None = None, must_answer: bool = True) -> str:
    """
    A repository's name with its owner, `user/name`; just `name` if the Hub did not answer and need not.

    Args: see [`push_recommender`]; `must_answer` makes silence of the Hub an error.
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


def _ids_table(folder: Path) -> tuple[pa.Table, dict[str, Any]]:
    """The table as it is published, with the titles of a run folder, and what is known about how it was made."""
    if (folder / IDS_NAME).is_file():
        semantic_ids, record = load_tokenized(folder)
        return semantic_ids.to_table().select(["item_id", "codes"]), record
    if not (folder / "items.parquet").is_file():
        raise FileNotFoundError(
            f"{folder} is neither a tokenized folder (no {IDS_NAME}) nor a run folder (no items.parquet)."
        )
    table = pq.read_table(folder / "items.parquet")
    if (folder / VERSIONS_FILE).is_file():  # what it offers now
        from hf_genrec.serving.recommender import Recommender

        now = Recommender.from_pretrained(folder, device="cpu")
        is_open = now.model.open_items
        table = now.items if is_open is None else now.items.filter(pa.array(is_open.numpy()))
    if "codes" not in table.column_names:
        raise ValueError(f"The items of {folder} have no semantic IDs: its model scores items themselves.")
    settings = folder / QUANTIZER_NAME / "config.json"
    record = {"settings": json.loads(settings.read_text(encoding="utf-8"))} if settings.is_file() else {}
    return table.select([name for name in ("item_id", "codes", "title") if name in table.column_names]), record


def _space_files(repo: str, token: str | None) -> dict[str, Content]:
    """The demo, with its recommender named in the head of its `README.md`; a language model needs the package."""
    folder = Path(str(resources.files("hf_genrec").joinpath("spaces_demo")))
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix in (".py", ".md", ".txt"))
    card = SpaceCard((folder / CARD_NAME).read_text(encoding="utf-8"), ignore_metadata_errors=False)
    card.data["models"] = [repo]
    contents: dict[str, Content] = {name: folder / name for name in names if name != "__init__.py"}
    with contextlib.suppress(HTTPError, OSError):  # a plan needs no Hub; what is wrong shows at the next step
        if HfApi(token=token).file_exists(repo, RECOMMENDER_FILE):
            contents["requirements.txt"] = (folder / "requirements.txt").read_bytes() + b"hf-genrec[llm]\n"
    return contents | {CARD_NAME: marked(str(card)).encode()}


_WAITS = (1, 4)  # seconds before the second and the third attempt
_PASSING = {408, 412, 425, 429, 500, 502, 503, 504}  # what may be over soon; 412: somebody else has just committed


@dataclasses.dataclass(frozen=True)
class _Head:
    """What a branch holds; `commit` is `None` where there is no repository yet or the Hub was not asked."""

    commit: str | None = None
    files: Mapping[str, RepoFile] = dataclasses.field(default_factory=dict)
    card: str = ""
    notes: tuple[str, ...] = ()


class _Target:
    """A branch of a repository to push to."""

    def __init__(
        self, repo_id: str, repo_type: RepoType, revision: str | None, token: str | None, *, dry_run: bool
    ) -> None:
        self.api = HfApi(token=token)
        self.repo_id = full_name(repo_id, token=token, must_answer=not dry_run)
        self.repo_type, self.revision, self.dry_run = repo_type, revision, dry_run
        self.where: dict[str, Any] = {"repo_id": self.repo_id, "repo_type": repo_type}

    def push(
        self,
        files: MakeFiles,
        commit_message: str,
        *,
        is_ours: Callable[[str], bool] = lambda path: False,
        left_out: Sequence[PlannedFile] = (),
        private: bool,
        replace_card: bool,
        asked: Mapping[str, str | None] | None = None,
    ) -> Publication:
        """
        Make the branch hold files in one commit; those that `is_ours` and are no longer there are removed.

        What passes by itself is tried three times in all, each time against the head of that moment. `asked` is what
        the card should say, which an edited one may not.
        """
        for wait in (*_WAITS, None):
            try:
                url = None if self.dry_run else self._create(private=private)
                head = self._head()
                contents = files(head.card)
                plan, operations = _plan(contents, head, is_ours=is_ours, replace_card=replace_card)
                commit = None if self.dry_run else self._commit(operations, commit_message, head)
                is_kept = any((file.path, file.action) == (CARD_NAME, "keep") for file in plan)
                check_written(head.card if is_kept else _text_of(contents[CARD_NAME]), **asked or {})
                return Publication(self.repo_id, self.repo_type, (*plan, *left_out), commit, url, head.notes)
            except (HTTPError, RuntimeError) as error:  # uploads wrap theirs in a RuntimeError
                cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
                if isinstance(cause, HfHubHTTPError) and cause.response.status_code not in _PASSING:
                    raise
                what = f"Publishing to {self.repo_id} failed: {str(cause) or type(cause).__name__}"
                if wait is None:
                    raise ConnectionError(
                        f"{what}. The repository is as it was. Run the same command again; what has arrived is not "
                        "sent twice."
                    ) from error
                logger.warning("%s; trying again.", what)
                time.sleep(wait)
        raise AssertionError("unreachable")

    def _create(self, *, private: bool) -> str:
        sdk = "gradio" if self.repo_type == "space" else None
        url = self.api.create_repo(**self.where, private=private, exist_ok=True, space_sdk=sdk)
        if self.revision is not None:
            self.api.create_branch(**self.where, branch=self.revision, exist_ok=True)
        return str(url)

    def _head(self) -> _Head:
        """The branch; of one that does not exist yet, `main`, from which it will be made."""
        try:
            try:
                info = self.api.repo_info(**self.where, revision=self.revision)
            except RevisionNotFoundError:
                info = self.api.repo_info(**self.where)
            tree = self.api.list_repo_tree(**self.where, revision=info.sha, recursive=True)
            files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
            card = ""
            if CARD_NAME in files:
                path = self.api.hf_hub_download(**self.where, filename=CARD_NAME, revision=info.sha)
                card = Path(path).read_text(encoding="utf-8")
            notes = (f"{self.repo_id} is public.",) if self.dry_run and not info.private else ()
            return _Head(info.sha, files, card, notes)
        except (HTTPError, OSError) as error:
            if not self.dry_run:
                raise
            if isinstance(error, RepositoryNotFoundError):
                return _Head(notes=(f"{self.repo_id} does not exist yet or is hidden from you.",))
            return _Head(notes=(f"The Hub was not asked what it holds already: {str(error).splitlines()[0]}",))

    def _commit(self, operations: list[Any], message: str, head: _Head) -> str | None:
        """The new head; the old one if nothing has changed."""
        if not operations:
            return head.commit
        with warnings.catch_warnings():  # a recommender holds a table of its items: Parquet belongs into it
            warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
            what: dict[str, Any] = {"operations": operations, "commit_message": message, "parent_commit": head.commit}
            return self.api.create_commit(**self.where, **what, revision=self.revision).oid


def _text_of(content: Content) -> str:
    return content.decode() if isinstance(content, bytes) else content.read_text(encoding="utf-8")


def _plan(
    contents: Mapping[str, Content], head: _Head, *, is_ours: Callable[[str], bool], replace_card: bool
) -> tuple[list[PlannedFile], list[Any]]:
    """What happens to each file, and the operations of the commit that does it."""
    plan, operations = list[PlannedFile](), list[Any]()
    is_card_kept = not replace_card and bool(head.card) and not is_generated(head.card)
    for path, content in contents.items():
        addition = CommitOperationAdd(path, content)
        size, there = addition.upload_info.size, head.files.get(path)
        if there is not None and _is_same(addition, there):
            plan.append(PlannedFile(path, "unchanged", size))
        elif there is not None and path == CARD_NAME and is_card_kept:
            plan.append(PlannedFile(path, "keep", there.size, "edited on the Hub"))
        else:
            is_cleaned = isinstance(content, bytes) and path.endswith(".json")
            plan.append(PlannedFile(path, "upload", size, "cleaned of paths of this machine" if is_cleaned else ""))
            operations.append(addition)
    for path, file in head.files.items():
        if path in (*contents, CARD_NAME, ".gitattributes"):
            continue
        if is_ours(path):
            plan.append(PlannedFile(path, "delete", file.size, "no longer published"))
            operations.append(CommitOperationDelete(path, is_folder=False))
        else:
            plan.append(PlannedFile(path, "keep", file.size, "not ours"))
    return plan, operations


def _is_same(addition: CommitOperationAdd, there: RepoFile) -> bool:
    """Whether the Hub holds these bytes: large files are known by their SHA-256, others by git's own digest."""
    if there.lfs is not None:
        return addition.upload_info.sha256.hex() == there.lfs.sha256
    with addition.as_file() as file:
        return addition.upload_info.size == there.size and git_hash(file.read()) == there.blob_id
