"""
Histories of item ids in, ranked item ids with scores out: the object that serves a trained model.

It is built from one folder or Hub repository and refuses to start if its weights, its item table and its tokenizer do
not belong together: a wrong table would turn every right code into a wrong item.
"""

from __future__ import annotations

import inspect
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from huggingface_hub import snapshot_download
from numpy.typing import NDArray
from safetensors import safe_open
from transformers import AutoModel, AutoTokenizer
from transformers.utils.hub import cached_file, extract_commit_hash

from hf_genrec.modeling.genrec_recommend_config import REMOVED
from hf_genrec.serving.folder import ITEMS_NAME, check_items, item_table, whole_folder, write_parts
from hf_genrec.serving.recommendations import Recommendations, as_histories
from hf_genrec.tokenizers.folder import QUANTIZER_NAME


logger = logging.getLogger(__name__)

_COMPANIONS = ("item_graph.safetensors", "item_neighbors.parquet")  # made for the weights and items of a folder

ItemRule = Sequence[str] | Sequence[Sequence[str]] | None


class Recommender:
    """
    A model and its catalog, spoken to in item ids.

    Args:
        model:
            A model with `recommend()`: [`LatteForConditionalGeneration`], [`RPGForItemGeneration`], ...
        items (`pa.Table`):
            One row per item in the model's order: `item_id` and whatever else is known (`title`, ...).
        num_beams (`int`, *optional*, defaults to 50):
            Beams per user, unless a call says otherwise. Users who would get too short a list get more.
        latent_aggregation (`str`, *optional*, defaults to `"max"`):
            `"max"` or `"sum"` over the latents of a Latte model.
        batch_size (`int`, *optional*, defaults to 64):
            Users decoded at a time.
        search_options (`Mapping[str, Any]`, *optional*):
            Further arguments of the model's `recommend()` for every call, such as `{"decoding": "graph"}`; those of a
            call come on top.

    Raises:
        ValueError: If the table's ids are not those that the model was saved with.
    """

    def __init__(
        self,
        model: Any,
        items: pa.Table,
        *,
        num_beams: int = 50,
        latent_aggregation: str = "max",
        batch_size: int = 64,
        search_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_items(model, items)
        self.model = model.eval()
        self.items = items
        self.num_beams = num_beams
        self.latent_aggregation = latent_aggregation
        self.batch_size = batch_size
        self.search_options = dict(search_options or {})
        _check_search_options(model, self.search_options)
        self.item_ids: list[str] = items["item_id"].to_pylist()
        self._index_of = {item_id: index for index, item_id in enumerate(self.item_ids)}
        self._origin: tuple[str, dict[str, Any]] | None = None  # the folder or repository, and how it was loaded

    @classmethod
    def from_pretrained(
        cls,
        folder_or_repo: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | None = None,
        device: str | torch.device | None = None,
        num_beams: int = 50,
        latent_aggregation: str = "max",
        batch_size: int = 64,
        search_options: Mapping[str, Any] | None = None,
    ) -> Recommender:
        """
        Load a folder that training wrote, or a Hub repository.

        Args:
            folder_or_repo (`str` or `Path`): A folder or the name of a repository.
            revision (`str`, *optional*): Branch, tag or commit of the repository.
            cache_dir (`str` or `Path`, *optional*): Where repositories are kept; `None` for the cache of the Hub.
            local_files_only (`bool`, *optional*, defaults to `False`): Whether to take what is kept and ask nobody.
            token (`str`, *optional*): The access token; `None` for the one of `hf auth login` or `HF_TOKEN`.
            device (`str`, *optional*): Where the model runs; `None` for the GPU if there is one.
            num_beams (`int`, *optional*, defaults to 50): Beams per user.
            latent_aggregation (`str`, *optional*, defaults to `"max"`): `"max"` or `"sum"`.
            batch_size (`int`, *optional*, defaults to 64): Users decoded at a time.
            search_options (`Mapping[str, Any]`, *optional*): See [`Recommender`].

        Returns:
            [`Recommender`]

        Raises:
            ValueError: If weights, `items.parquet` and tokenizer do not belong together.
            OSError: If a file is missing.
        """
        path = os.fspath(folder_or_repo)
        where: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        table = cached_file(path, ITEMS_NAME, revision=revision, **where)
        # The rest is of the same commit, even if somebody publishes another one meanwhile.
        where["revision"] = revision if Path(path).is_dir() else extract_commit_hash(table, None) or revision
        model = AutoModel.from_pretrained(path, **where)
        try:
            items = pq.read_table(table)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{table} is no readable Parquet file: {error}. Write the folder again.") from error
        check_items(model, items, tokenizer=AutoTokenizer.from_pretrained(path, **where))
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        recommender = cls(
            model.to(device),
            items,
            num_beams=num_beams,
            latent_aggregation=latent_aggregation,
            batch_size=batch_size,
            search_options=search_options,
        )
        recommender._origin = (path, where)
        return recommender

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, quantizer: str | os.PathLike[str] | None = None
    ) -> Path:
        """
        Write the folder that [`~Recommender.from_pretrained`] reads: weights, code and settings, tokenizer, items.

        [`save_recommender`] writes the same with a card and an evaluation. Files of the folder that are not written
        stay; an evaluation of earlier weights is removed.

        Args:
            folder (`str` or `Path`): Where to write; created where it is missing. It never holds half of a save.
            quantizer (`str` or `Path`, *optional*):
                The folder that tokenizing wrote, by which new items can get codes; `None` for the one that this
                recommender was loaded with, if any. An item graph that it was loaded with is copied too.

        Returns:
            `Path`: the folder.
        """
        codes = self.model.item_codes.cpu().numpy() if self.model.config.has_codes else None
        origin = self._companions()
        if quantizer is None and origin is not None and (origin / QUANTIZER_NAME).is_dir():
            quantizer = origin / QUANTIZER_NAME
        with whole_folder(folder) as partial:
            write_parts(partial, self.model, item_table(self.items, codes), quantizer=quantizer)
            if origin is not None:
                for path in filter(Path.is_file, (origin / name for name in _COMPANIONS)):
                    shutil.copyfile(path, partial / path.name)
        self._origin = (os.fspath(folder), {})
        return Path(folder)

    def saved_folder(self) -> Path:
        """
        The folder that holds what this recommender serves, to be copied or published.

        Returns:
            `Path`: the folder it was loaded from; of a Hub repository, its files in the cache.

        Raises:
            ValueError: If it was not loaded with `from_pretrained`, or differs from the files it was loaded from.
        """
        if self._origin is None:
            raise ValueError(
                "This recommender was built in memory, so there is no folder with its files. Write one with "
                "`save_pretrained(folder)`."
            )
        path, where = self._origin
        folder = Path(path) if Path(path).is_dir() else Path(snapshot_download(path, **where))
        _check_unchanged(self, folder)
        return folder

    def _companions(self) -> Path | None:
        """Where the files are that came with the model and are not read here; `None` if it was built in memory."""
        if self._origin is None:
            return None
        path, where = self._origin
        if Path(path).is_dir():
            return Path(path)
        return Path(snapshot_download(path, allow_patterns=[f"{QUANTIZER_NAME}/*", *_COMPANIONS], **where))

    @property
    def decoding(self) -> str:
        """`str`: how items are found: `"exact"`, `"graph"` or `"beam"`."""
        return self.search_options.get("decoding", self.model.default_decoding)

    def titles(self, item_ids: Sequence[str]) -> list[str]:
        """
        Titles of items, for people.

        Args:
            item_ids (`Sequence[str]`): Ids of the catalog.

        Returns:
            `list[str]`: titles, or the ids where the table has none.

        Raises:
            KeyError: If an id is not in the catalog.
        """
        if "title" not in self.items.column_names:
            return list(item_ids)
        column = self.items["title"]
        return [column[self._index_of[item_id]].as_py() or item_id for item_id in item_ids]

    def recommend(
        self,
        histories: Sequence[Sequence[str]] | Sequence[str],
        *,
        top_k: int = 10,
        exclude_seen: bool = False,
        exclude_items: ItemRule = None,
        allow_items: ItemRule = None,
        num_beams: int | None = None,
        search_options: Mapping[str, Any] | None = None,
    ) -> Recommendations:
        """
        The best next items for each history.

        Args:
            histories (`list[list[str]]` or `list[str]`):
                Item ids per user, oldest first; a single list of ids is one user. The model reads the latest
                `config.max_history_length`. Unknown ids are left out, counted and logged; an empty history is allowed.
            top_k (`int`, *optional*, defaults to 10):
                Length of the lists. They are shorter only where the catalog has no more items to offer.
            exclude_seen (`bool`, *optional*, defaults to `False`):
                Whether items of the history (all of it) may not be recommended.
            exclude_items (`list[str]` or `list[list[str]]`, *optional*):
                Ids that may not be recommended, for all users or a list per user; what is out of stock, say.
            allow_items (`list[str]` or `list[list[str]]`, *optional*):
                The only ids that may be, less those excluded; a category, say. `None` for all, an empty list for none.
            num_beams (`int`, *optional*):
                Beams per user; `None` for the recommender's.
            search_options (`Mapping[str, Any]`, *optional*):
                Further arguments of the model's `recommend()` by name: `latents_per_prefix`, `num_rescored`, ...;
                `num_beams` and `latent_aggregation` overrule those of the recommender. A `sample_seed` is that of the
                first batch; those of the others are derived from it.

        Returns:
            [`Recommendations`]: ids and log-probabilities, best first unless a search option says otherwise.

        Raises:
            ValueError: If `top_k` is below 1, or a rule holds ids that are not in the catalog or lists for another
                number of users, or `search_options` one of the arguments above.
            TypeError: If an id is no string.
        """
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
        own = {
            "top_k": min(top_k, len(self.item_ids)),
            "num_beams": self.num_beams if num_beams is None else num_beams,
            "latent_aggregation": self.latent_aggregation,
        }
        search_options = self.search_options | dict(search_options or {})
        _check_search_options(self.model, search_options)
        batch = as_histories(histories)
        excluded = self._rule("exclude_items", exclude_items, num_users=len(batch))
        allowed = self._rule("allow_items", allow_items, num_users=len(batch))
        indices, num_unknown = self._look_up(batch)
        if exclude_seen:
            shared = excluded if excluded is None or len(excluded) == len(batch) else excluded * len(batch)
            excluded = indices if shared is None else [[*a, *b] for a, b in zip(indices, shared, strict=True)]
        order = np.argsort([len(history) for history in indices], kind="stable")
        item_ids: list[list[str]] = [[]] * len(batch)
        scores: list[list[float]] = [[]] * len(batch)
        counts: dict[str, dict[int, int]] = {"num_visited": {}, "num_distinct": {}}
        for start in range(0, len(order), self.batch_size):
            users = order[start : start + self.batch_size].tolist()
            output = self.model.recommend(
                self._tokens([indices[user][-self.model.config.max_history_length :] for user in users]),
                exclude_items=self._rule_tokens(excluded, users, num_users=len(batch)),
                allow_items=self._rule_tokens(allowed, users, num_users=len(batch)),
                **(own | _options_of_batch(search_options, start // self.batch_size)),
            )
            items = (output.item_tokens - self.model.config.first_item_token).tolist()
            for user, row, row_scores in zip(users, items, output.scores.tolist(), strict=True):
                item_ids[user] = [self.item_ids[item] for item in row if item >= 0]
                scores[user] = row_scores[: len(item_ids[user])]
            for name, of_user in counts.items():
                if output.get(name) is not None:
                    of_user |= dict(zip(users, output[name].tolist(), strict=True))
        told: dict[str, list[int]] = {
            name: [of_user[user] for user in range(len(batch))] for name, of_user in counts.items() if of_user
        }
        return Recommendations(item_ids=item_ids, scores=scores, num_unknown=num_unknown, **told)

    def score_items(self, histories: Sequence[Sequence[str]] | Sequence[str]) -> NDArray[np.float32]:
        """
        Exact log-probabilities of all items, which a search with beams approximates; for small catalogs or few users.

        Args:
            histories (`list[list[str]]` or `list[str]`):
                Item ids per user, oldest first; as in `recommend`, unknown ids are ignored.

        Returns:
            `np.ndarray` of shape `(num_users, num_items)`, float32: columns in the order of `item_ids`.
        """
        known = inspect.signature(self.model.score_items).parameters
        options = {"latent_aggregation": self.latent_aggregation} | self.search_options
        options = {name: value for name, value in options.items() if name in known}
        indices, _ = self._look_up(as_histories(histories))
        length = self.model.config.max_history_length
        parts = []
        for start in range(0, len(indices), self.batch_size):
            tokens = self._tokens([history[-length:] for history in indices[start : start + self.batch_size]])
            parts.append(self.model.score_items(tokens, **options).float().cpu().numpy())
        return np.concatenate(parts)

    def _rule(self, name: str, item_ids: ItemRule, *, num_users: int) -> list[list[int]] | None:
        """Item indices of a rule: one list for all users, or one for each."""
        if item_ids is None:
            return None
        item_ids = list(item_ids)
        is_shared = all(isinstance(entry, str) for entry in item_ids)
        rows = as_histories(item_ids)
        if not is_shared and len(rows) != num_users:
            raise ValueError(f"`{name}` must be one list of ids or one per user ({num_users}), got {len(rows)} lists.")
        unknown = [item_id for row in rows for item_id in row if item_id not in self._index_of]
        if unknown:
            shown = ", ".join(map(repr, unknown[:5])) + (f", ... ({len(unknown)} in all)" if len(unknown) > 5 else "")
            raise ValueError(f"`{name}` holds ids that are not in the catalog: {shown}.")
        return [[self._index_of[item_id] for item_id in row] for row in rows]

    def _rule_tokens(self, rule: list[list[int]] | None, users: list[int], *, num_users: int) -> torch.Tensor | None:
        """Item tokens of a rule for some of the users: `(n,)` for all, or `(len(users), n)`."""
        if rule is None:
            return None
        if len(rule) == num_users:
            return self._tokens([rule[user] for user in users])
        return self._tokens(rule)[0]

    def _look_up(self, histories: list[list[str]]) -> tuple[list[list[int]], int]:
        unknown = [item_id for history in histories for item_id in history if item_id not in self._index_of]
        if unknown:
            shown = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            logger.warning("%d history items are not in the catalog and are ignored: %s", len(unknown), shown)
        known = [[self._index_of[item] for item in history if item in self._index_of] for history in histories]
        return known, len(unknown)

    def _tokens(self, histories: list[list[int]]) -> torch.LongTensor:
        """Item indices as item tokens, padded on the right with the pad token."""
        config = self.model.config
        tokens = np.full((len(histories), max(1, *map(len, histories))), config.pad_token_id, dtype=np.int64)
        for row, history in enumerate(histories):
            tokens[row, : len(history)] = np.asarray(history, dtype=np.int64) + config.first_item_token
        return torch.from_numpy(tokens).to(self.model.device)  # type: ignore[return-value]


def _check_unchanged(recommender: Recommender, folder: Path) -> None:
    """Whether a recommender serves the weights and items of a folder."""
    remedy = "Write them to a folder with `save_pretrained(folder)` first."
    state = recommender.model.state_dict()
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                tensor = file.get_tensor(name)
                if name not in state or not torch.equal(state[name].to(tensor), tensor):
                    raise ValueError(f"The weights in memory are not those of {path} (`{name}` differs). {remedy}")
    table = pq.read_table(folder / ITEMS_NAME)
    codes = recommender.model.item_codes.cpu().numpy() if "codes" in table.column_names else None
    if not any(items.equals(table) for items in (recommender.items, item_table(recommender.items, codes))):
        raise ValueError(f"The item table in memory is not that of {folder / ITEMS_NAME}. {remedy}")


def _check_search_options(model: Any, search_options: Mapping[str, Any]) -> None:
    known = {*model.recommend_options, "item_prior", "item_embeddings"} - {"top_k"}  # `top_k` is an argument itself
    removed = sorted(set(search_options) & set(REMOVED))
    if removed:
        raise ValueError(f"The option `{removed[0]}` was removed: {REMOVED[removed[0]]}.")
    wrong = sorted(set(search_options) - known)
    if wrong:
        raise ValueError(
            f"`search_options` must not hold {', '.join(f'`{name}`' for name in wrong)}: those of "
            f"{type(model).__name__} are {', '.join(sorted(known))}."
        )


def _options_of_batch(search_options: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The search options of a batch: users of two batches must not be drawn with the same noise."""
    options = dict(search_options)
    if number and options.get("sample_seed") is not None:
        seeds = np.random.SeedSequence([options["sample_seed"], number]).generate_state(1, np.uint64)
        options["sample_seed"] = int(seeds[0] >> np.uint64(1))
    return options


def check_model_name(name: str) -> None:
    """
    Whether a name can be a model's: a misspelt folder should not be looked up on the Hub.

    Args:
        name (`str`): A folder or `user/repository`.

    Raises:
        FileNotFoundError: If it is no folder and cannot be a repository.
    """
    if not Path(name).is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~")) or Path(name).exists()):
        raise FileNotFoundError(f"There is no run folder {name}.")
