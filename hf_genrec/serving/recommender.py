"""
Histories of item ids in, ranked item ids with scores out: the object that serves a trained model.

It is built from one folder or Hub repository and refuses to start if its weights, its item table and its tokenizer do
not belong together: a wrong table would turn every right code into a wrong item.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from huggingface_hub import snapshot_download
from numpy.typing import NDArray
from tqdm.auto import tqdm
from transformers.utils.hub import cached_file, extract_commit_hash

from hf_genrec.files import read_table, reading, restored
from hf_genrec.modeling.genrec_folder import batch_of, check_manifest, write_manifest
from hf_genrec.modeling.genrec_recommend_config import RecommendConfig, check_names
from hf_genrec.serving.catalog.live_catalog import LiveCatalog
from hf_genrec.serving.catalog.snapshot import ItemRule, Snapshot
from hf_genrec.serving.compiled import answer_made_up_requests, compile_networks
from hf_genrec.serving.folder import ITEMS_NAME, check_items, check_unchanged, item_table, whole_folder, write_parts
from hf_genrec.serving.item_questions import Reason, item_vectors, reasons, similar_items, user_vectors
from hf_genrec.serving.language_model import load_model
from hf_genrec.serving.recommendations import Recommendations
from hf_genrec.serving.times import Times, has_times, mask_values
from hf_genrec.tokenizers.base import PROGRESS_DELAY
from hf_genrec.tokenizers.folder import QUANTIZER_NAME
from hf_genrec.tokenizers.vocabulary import check_vocabulary


logger = logging.getLogger(__name__)
_COMPANIONS = ("item_graph.safetensors", "item_neighbors.parquet")  # made for the weights and items of a folder
_READ = re.compile(r"items\.parquet|(?!evaluation)\w+\.json")
_TENSORS = ("item_prior", "item_embeddings")  # arguments of `model.recommend` that are no fields of a config


class Recommender:
    """
    A model and its catalog, spoken to in item ids.

    Args:
        model:
            A model with `recommend()`: [`LatteForConditionalGeneration`], [`RPGForItemGeneration`], ...
        items (`pa.Table`):
            One row per item in the model's order: `item_id` and whatever else is known (`title`, ...).
        batch_size (`int`, *optional*, defaults to 64): Users computed at a time.
        config ([`RecommendConfig`], *optional*):
            Options for every call; `None` for `model.recommend_config`, which was read from `recommend_config.json`.
        **options:
            Fields of [`RecommendConfig`] for every call, such as `num_beams=100`, and `item_prior` or
            `item_embeddings`; those of a call come on top.

    Raises:
        ValueError: If the table's ids are not those that the model was saved with.
    """

    def __init__(
        self,
        model: Any,
        items: pa.Table,
        *,
        batch_size: int = 64,
        config: RecommendConfig | None = None,
        **options: Any,
    ) -> None:
        check_items(model, items)
        self._now = Snapshot.of(model, items)  # read once by every method that answers something
        self.batch_size = batch_size
        self.config = config or model.recommend_config
        self._tensors: dict[str, Any] = {}  # options that are no fields of the config
        self.config, self._tensors = self._asked(None, options)
        self._origin: tuple[str, dict[str, Any]] | None = None  # the folder or repository, and how it was loaded
        self.catalog = LiveCatalog(self)

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
        dtype: torch.dtype | None = None,
        batch_size: int = 64,
        check_files: bool = True,
        catalog_version: int | None = None,
        config: RecommendConfig | None = None,
        **options: Any,
    ) -> Recommender:
        """
        Load a folder that training wrote, or a Hub repository.

        Args:
            folder_or_repo (`str` or `Path`): A folder or the name of a repository.
            revision (`str`, *optional*): Branch, tag or commit of the repository.
            cache_dir (`str` or `Path`, *optional*): Where repositories are kept; `None` for the cache of the Hub.
            local_files_only (`bool`, *optional*, defaults to `False`): Whether to use cached files only.
            token (`str`, *optional*): The access token; `None` for the one of `hf auth login` or `HF_TOKEN`.
            device (`str`, *optional*): Where the model runs; `None` for the GPU if there is one.
            dtype (`torch.dtype`, *optional*):
                What the weights are rounded to; `None` for as saved. `torch.bfloat16` lists many users sooner.
            batch_size (`int`, *optional*, defaults to 64): Users computed at a time.
            check_files (`bool`, *optional*, defaults to `True`):
                Whether the files must be those that were saved, by their digests in `manifest.json`. `False` is for
                files that were edited on purpose.
            catalog_version (`int`, *optional*):
                An earlier version of the catalog, see [`LiveCatalog`]; `None` for the current one.
            config ([`RecommendConfig`], *optional*): See [`Recommender`].
            **options: See [`Recommender`].

        Returns:
            [`Recommender`]

        Raises:
            ValueError: If a file is damaged, or weights, `items.parquet` and tokenizer do not belong together.
            OSError: If a file is missing.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"`device` {str(device)!r} cannot be used here: {str(error).splitlines()[0]}.") from error
        path = os.fspath(folder_or_repo)
        restored(path)
        check_model_name(path)
        where: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        table = cached_file(path, ITEMS_NAME, revision=revision, **where)
        # The rest is of the same commit, even if somebody publishes another one meanwhile.
        where["revision"] = revision if Path(path).is_dir() else extract_commit_hash(table, None) or revision
        if check_files:  # loading the model compares its own files
            check_manifest(path, lambda name: bool(_READ.fullmatch(name)), **where)
        with reading(path, "folder of a recommender", keeps=ValueError):
            model = load_model(path, where, check_files=check_files)
        items = read_table(str(table))
        recommender = cls(model.to(device=device, dtype=dtype), items, batch_size=batch_size, config=config, **options)
        if not hasattr(model, "tokenizer"):  # a language model has its own, which holds no items
            tokenizer = cached_file(path, "tokenizer.json", **where)
            check_vocabulary(Path(str(tokenizer)), recommender.item_ids, model.config)
        recommender._origin = (path, where)
        recommender.catalog.open_folder(path, where, catalog_version)
        return recommender

    def compile(self) -> Recommender:
        """
        Run the networks behind `recommend()` through `torch.compile`, for many requests of few users.

        It takes one to three minutes, in which made-up requests are answered; then batches of any size and
        searches of any width go through what is compiled, but for rare shapes, such as a single beam that is left,
        which are compiled when they come. Lists stay the same but for rounding. This is for PSID, TIGER, Latte and
        models over items; of others nothing is compiled, which is logged.

        Returns:
            [`Recommender`]: itself.

        Raises:
            RuntimeError: If torch cannot compile, as without a C++ compiler; the recommender is to be loaded again.
        """
        if compile_networks(self.model):
            answer_made_up_requests(self)
        else:
            logger.warning("Nothing of a %s is compiled: it answers as before.", type(self.model).__name__)
        return self

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, quantizer: str | os.PathLike[str] | None = None
    ) -> Path:
        """
        Write the folder that [`~Recommender.from_pretrained`] reads: weights, code and settings, tokenizer, items.

        [`save_recommender`] writes the same with a card and an evaluation. Files of the folder that are not written
        stay; an evaluation of earlier weights is removed. What changed in the catalog is part of the new folder, in
        which its versions count from 1 again; later changes are written there.

        Args:
            folder (`str` or `Path`): Where to write; created where it is missing. It never holds half of a save.
            quantizer (`str` or `Path`, *optional*):
                The folder that tokenizing wrote, by which new items can get codes; `None` for the one that this
                recommender was loaded with, if any. An item graph that it was loaded with is copied too.
        """
        now = self._now
        codes = now.model.item_codes.cpu().numpy() if now.model.config.has_codes else None
        origin = self._companions()
        if quantizer is None and origin is not None and (origin / QUANTIZER_NAME).is_dir():
            quantizer = origin / QUANTIZER_NAME
        with whole_folder(folder) as partial:
            write_parts(partial, now.model, item_table(now.items, codes), quantizer=quantizer)
            if origin is not None and not self.catalog.has_grown:
                for path in filter(Path.is_file, (origin / name for name in _COMPANIONS)):
                    shutil.copyfile(path, partial / path.name)
                write_manifest(partial, _COMPANIONS)
        self._origin = (os.fspath(folder), {})
        self.catalog = LiveCatalog(self)
        self.catalog.folder = Path(folder)
        return Path(folder)

    def saved_folder(self) -> Path:
        """
        The folder that holds what this recommender serves, to be copied or published: the one it was loaded from; of a
        Hub repository, its files in the cache. A `ValueError` if it differs from these or was built in memory.
        """
        if self._origin is None:
            raise ValueError(
                "This recommender was built in memory, so there is no folder with its files. Write one with "
                "`save_pretrained(folder)`."
            )
        path, where = self._origin
        folder = Path(path) if Path(path).is_dir() else Path(snapshot_download(path, **where))
        check_unchanged(self, folder)
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
    def model(self) -> Any:
        """The model as it serves now; a change of the catalog makes another one with the same parameters."""
        return self._now.model

    @property
    def items(self) -> pa.Table:
        """`pa.Table`: a row per item in the model's order, removed ones too."""
        return self._now.items

    @property
    def item_ids(self) -> list[str]:
        """`list[str]`: the ids of `items`."""
        return self._now.item_ids

    @property
    def decoding(self) -> str:
        """`str`: how items are found: `"exact"`, `"graph"` or `"beam"`."""
        return self.config.decoding or self.model.default_decoding

    @property
    def num_beams(self) -> int:
        """`int`: width of the search, unless a call says otherwise."""
        return self.config.num_beams

    @property
    def search_options(self) -> dict[str, Any]:
        """`dict`: the options that differ from the defaults of [`RecommendConfig`]."""
        return self.config.changed() | self._tensors

    def titles(self, item_ids: Sequence[str]) -> list[str]:
        """
        Titles of items, for people, or their ids where the table has none.

        Args:
            item_ids (`Sequence[str]`): Ids of the catalog.
        """
        now = self._now
        if "title" not in now.items.column_names:
            return list(item_ids)
        column = now.items["title"]
        return [column[now.index_of[item_id]].as_py() or item_id for item_id in item_ids]

    def recommend(
        self,
        histories: Sequence[Sequence[str]] | Sequence[str],
        *,
        times: Times | None = None,
        exclude_seen: bool | None = None,
        exclude_items: ItemRule = None,
        allow_items: ItemRule = None,
        show_progress: bool | None = None,
        config: RecommendConfig | None = None,
        **options: Any,
    ) -> Recommendations:
        """
        The best next items for one history or a batch of histories.

        Args:
            histories (`list[str]` or `list[list[str]]`):
                Item ids, oldest first. A list of ids is one history, answered by flat lists; a list of lists is a
                batch, answered by a list for each; an empty list is a batch of no users. The model reads the latest
                `config.max_history_length`. Unknown ids are left out, counted and logged.
            times (`list[int]` or `list[list[int]]`, *optional*):
                When each item of the histories was taken, in milliseconds since the epoch, for a model with
                `history_gap_buckets`; others do not read them. `None`, for all or a user: unknown.
            exclude_seen (`bool`, *optional*):
                Whether items of the history (all of it) may not be recommended. `None` for that of the config, `True`
                unless the model was trained on a log in which users often take an item again: shops rarely recommend
                what somebody has just bought. The evaluation measures both.
            exclude_items (`list[str]` or `list[list[str]]`, *optional*):
                Ids that may not be recommended, for all users or a list per user; what is out of stock, say. Unknown
                ids are ignored, counted and logged.
            allow_items (`list[str]` or `list[list[str]]`, *optional*):
                The only ids that may be, less those excluded; a category, say. `None` for all, an empty list for
                none. Unknown ids are ignored likewise, unless no other is left.
            show_progress (`bool`, *optional*):
                Whether a long call shows a bar; `None` for on terminals. Users are computed `batch_size` at a time.
            config ([`RecommendConfig`], *optional*): Options of this call; `None` for those of the recommender.
            **options:
                Fields of [`RecommendConfig`] for this call, such as `top_k=20`; lists are shorter only where the
                catalog has no more items to offer. A `sample_seed` is that of the first batch of users; those of the
                others are derived from it.

        Returns:
            [`Recommendations`]: ids and log-probabilities, best first unless an option says otherwise.

        Raises:
            ValueError: If an option is out of range, a rule has lists for another number of users, or `allow_items`
                holds unknown ids only.
            TypeError: If an id is no string or there is no such option.

        Example:

        ```python
        >>> import pyarrow as pa
        >>> from hf_genrec import SASRecConfig, SASRecForItemGeneration
        >>> model = SASRecForItemGeneration(SASRecConfig(num_items=3, d_model=8, num_heads=1))
        >>> shop = Recommender(model, pa.table({"item_id": ["tea", "cup", "pot"]}))
        >>> sorted(shop.recommend(["tea"]).item_ids)
        ['cup', 'pot']

        ```
        """
        asked, tensors = self._asked(config, options)
        if isinstance(asked.top_k, bool) or not isinstance(asked.top_k, Integral) or asked.top_k < 1:
            raise ValueError(f"`top_k` must be a whole number of at least 1, got {asked.top_k!r}.")
        now = self._now
        asked = asked.updated(top_k=min(asked.top_k, now.num_open))
        batch, is_one = batch_of(histories)
        excluded = now.rule("exclude_items", exclude_items, num_users=len(batch))
        allowed = now.rule("allow_items", allow_items, num_users=len(batch))
        indices, num_unknown = now.look_up(batch)
        masks = mask_values(batch, times, is_one=is_one, known=now.index_of) if self.reads_times else None
        if asked.exclude_seen if exclude_seen is None else exclude_seen:
            shared = excluded if excluded is None or len(excluded) == len(batch) else excluded * len(batch)
            excluded = indices if shared is None else [[*a, *b] for a, b in zip(indices, shared, strict=True)]
        lists = self._in_batches(now, indices, masks, excluded, allowed, asked, tensors, show_progress)
        found = Recommendations(num_unknown=num_unknown, catalog_version=now.number, **lists)
        return found.of_one_user() if is_one else found

    def _in_batches(
        self,
        now: Snapshot,
        indices: list[list[int]],
        masks: list[list[int]] | None,
        excluded: list[list[int]] | None,
        allowed: list[list[int]] | None,
        asked: RecommendConfig,
        tensors: dict[str, Any],
        show_progress: bool | None,
    ) -> dict[str, Any]:
        """Fields of [`Recommendations`]; users whose histories are about as long share a batch, for less padding."""
        num_users = len(indices)
        order = np.argsort([len(history) for history in indices], kind="stable")
        item_ids: list[list[str]] = [[]] * num_users
        scores: list[list[float]] = [[]] * num_users
        counts: dict[str, dict[int, int]] = {"num_visited": {}, "num_distinct": {}}
        starts = range(0, num_users, self.batch_size)
        hidden = None if show_progress is None else not show_progress  # `None`: shown on terminals
        for start in tqdm(starts, "Recommending", delay=PROGRESS_DELAY, disable=hidden):
            users = order[start : start + self.batch_size].tolist()
            output = now.model.recommend(
                now.history_tokens([indices[user] for user in users]),
                None if masks is None else now.history_mask([masks[user] for user in users]),
                exclude_items=now.rule_tokens(excluded, users, num_users=num_users),
                allow_items=now.rule_tokens(allowed, users, num_users=num_users),
                config=_of_batch(asked, start // self.batch_size),
                **tensors,
            )
            items = (output.item_tokens - now.model.config.first_item_token).tolist()
            for user, row, row_scores in zip(users, items, output.scores.tolist(), strict=True):
                item_ids[user] = [now.item_ids[item] for item in row if item >= 0]
                scores[user] = row_scores[: len(item_ids[user])]
            for name, of_user in counts.items():
                if output.get(name) is not None:
                    of_user |= dict(zip(users, output[name].tolist(), strict=True))
        counted = {name: [of_user[user] for user in range(num_users)] for name, of_user in counts.items() if of_user}
        return {"item_ids": item_ids, "scores": scores, **counted}

    def _asked(
        self, config: RecommendConfig | None, options: Mapping[str, Any]
    ) -> tuple[RecommendConfig, dict[str, Any]]:
        """The config of a call and its other options, the recommender's own first."""
        owner, known = type(self.model).__name__, (*self.model.recommend_options, *_TENSORS)
        check_names(options, known=known, owner=owner)
        fields = {name: value for name, value in options.items() if name not in _TENSORS}
        if fields.get("num_beams", 1) is None:  # as calls did that left it to the recommender
            del fields["num_beams"]
        tensors = self._tensors | {name: value for name, value in options.items() if name in _TENSORS}
        return (config or self.config).updated(**fields), tensors

    @property
    def reads_times(self) -> bool:
        """`bool`: whether the model reads when the items of a history were taken."""
        return has_times(self.model.config)

    def score_items(
        self, histories: Sequence[Sequence[str]] | Sequence[str], *, times: Times | None = None
    ) -> NDArray[np.float32]:
        """
        Exact log-probabilities of all items, which a search with beams approximates; for small catalogs or few users.

        Args:
            histories (`list[list[str]]` or `list[str]`):
                Item ids per user, oldest first; as in `recommend`, unknown ids are ignored.
            times (`list[list[int]]` or `list[int]`, *optional*): As in `recommend`.

        Returns:
            `np.ndarray` of shape `(num_users, num_items)`, float32: columns in the order of `item_ids`.
        """
        now, options = self._now, {}
        if "latent_aggregation" in inspect.signature(now.model.score_items).parameters:
            options["latent_aggregation"] = self.config.latent_aggregation
        batch, is_one = batch_of(histories)
        indices, _ = now.look_up(batch)
        masks = mask_values(batch, times, is_one=is_one, known=now.index_of) if self.reads_times else None
        parts = []
        for start in range(0, len(indices), self.batch_size):
            some = slice(start, start + self.batch_size)
            inputs = (now.history_tokens(indices[some]), None if masks is None else now.history_mask(masks[some]))
            parts.append(now.model.score_items(*inputs, **options).float().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, len(now.item_ids)), dtype=np.float32)

    def similar_items(self, item_id: str, k: int = 10) -> list[tuple[str, float]]:
        """
        The items that are most like another one, best first, with the cosines of their vectors, see `item_vectors`.

        Args:
            item_id (`str`): An item of the catalog.
            k (`int`, *optional*, defaults to 10): How many.
        """
        return similar_items(self._now, item_id, k)

    def item_vectors(self, item_ids: Sequence[str] | None = None) -> NDArray[np.float32]:
        """
        Vectors of items, `(num_items, dimension)`, for a downstream ranker.

        Of models that score items by vectors (a dense head, SASRec) those that histories are compared with, so
        `encode_users(...) @ item_vectors().T` are its scores up to a constant per user; of other models with semantic
        IDs the embeddings of their codes; of a sum the unit vectors of its members side by side.

        Args:
            item_ids (`list[str]`, *optional*): Which items, in this order; `None` for all in the order of `item_ids`.
        """
        return item_vectors(self._now, item_ids)

    def encode_users(self, histories: Sequence[Sequence[str]] | Sequence[str]) -> NDArray[np.float32]:
        """
        The state behind each history, `(num_users, d_model)`, for a downstream ranker.

        Args:
            histories (`list[list[str]]` or `list[str]`): As in `recommend`; unknown ids are ignored.
        """
        now = self._now
        return user_vectors(now, now.look_up(batch_of(histories)[0])[0], batch_size=self.batch_size)

    def explain(self, history: Sequence[str], item_id: str) -> list[Reason]:
        """
        Which items of a history speak for an item: a [`Reason`] for each that is read, the strongest first.

        Args:
            history (`list[str]`): Item ids, oldest first.
            item_id (`str`): An item that may be recommended.
        """
        return reasons(self._now, history, item_id, dense_weight=self.config.dense_weight)


def _of_batch(config: RecommendConfig, number: int) -> RecommendConfig:
    """The options of a batch: users of two batches must not be drawn with the same noise."""
    if not number or config.sample_seed is None:
        return config
    seeds = np.random.SeedSequence([config.sample_seed, number]).generate_state(1, np.uint64)
    return config.updated(sample_seed=int(seeds[0] >> np.uint64(1)))


def check_model_name(name: str) -> None:
    """
    Whether a name can be a model's: a misspelt folder should not be looked up on the Hub.

    Args: a folder or `user/repository`.
    """
    if not Path(name).is_dir() and (name.count("/") != 1 or name.startswith((".", "/", "~")) or Path(name).exists()):
        raise FileNotFoundError(f"There is no run folder {name}; a Hub repository is named user/repository.")
