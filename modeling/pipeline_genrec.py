"""
`pipeline("next-item-recommendation", model=REPO, trust_remote_code=True)`: item ids in, ranked items with titles out.

The file is shipped beside the weights, so it works without the package; importing the package registers the task, and
then nothing has to be trusted. Titles come from `items.parquet`, fetched when the first list is shown.
"""

import importlib
import importlib.util
import logging
import types
from functools import cached_property
from typing import Any

import torch
from transformers import Pipeline

from .genrec_folder import batch_of, item_ids_of, look_up
from .genrec_recommend_config import check_names


logger = logging.getLogger(__name__)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


class NextItemPipeline(Pipeline):
    """
    Recommends the next items for histories of item ids.

    Options, at construction for all calls or in one call: `top_k` (length of the lists, 10 by default),
    `exclude_seen` (whether items of the history are left out, which they are by default), `exclude_items` and
    `allow_items` (lists of ids for all histories), and every option of the model's `recommend()` such as `num_beams`.

    Args:
        model: A model with `recommend()`.
        tokenizer: The tokenizer of its folder.
        batch_size (`int`, defaults to 64): Histories that are computed at a time.
        local_files_only (`bool`, defaults to `False`): Whether titles are looked for on this machine only.
        **kwargs: `device` and what else transformers hands to a pipeline; options for all calls.

    Raises:
        ValueError: If the tokenizer is missing or does not hold the items of the model in their order, or an option
            is out of range.
        TypeError: If there is no such option.
    """

    model: Any  # a model with `recommend()`, which transformers' own type has not
    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def __init__(self, model, tokenizer=None, *, batch_size: int = 64, local_files_only: bool = False, **kwargs):
        self._item_ids = getattr(model, "item_ids", None)  # around a language model, whose tokenizer has no items
        if self._item_ids is None:
            if tokenizer is None:
                raise ValueError("`tokenizer` is needed: it holds the item ids. Give the one of the model's folder.")
            if tokenizer.name_or_path == model.name_or_path:
                model.check_files(*_TOKENIZER_FILES)
            self._item_ids = item_ids_of(tokenizer, model.config)
        if model.num_unread_items:
            logger.warning(
                "%d items that were added to this catalog after training are not recommended by the pipeline, which "
                "reads the weights alone: `hf_genrec.Recommender` knows them. Removed items are left out.",
                model.num_unread_items,
            )
        first = model.config.first_item_token
        self._token_of = {item_id: token for token, item_id in enumerate(self._item_ids, first)}
        self._local_files_only = local_files_only
        super().__init__(model=model, tokenizer=tokenizer, batch_size=batch_size, **kwargs)

    def check_files(self, *names: str) -> None:
        """
        Compare files with the manifest of the folder that the model was loaded from, as its own were then.

        Args:
            *names: Such as `"items.parquet"`; `ValueError` for one that is not the file that was saved.
        """
        self.model.check_files(*names)

    def __call__(self, histories, **options):
        """
        The best next items.

        Args:
            histories (`list[str]` or `list[list[str]]`):
                Item ids, oldest first. A list of strings is one history; a list of lists is a batch, an empty one of
                no users. Also a generator of histories or a `torch.utils.data.Dataset`, answered one by one. Unknown
                ids are left out and counted in a warning; a history without any known id is an empty one.
            **options: See the class; `batch_size` too.

        Returns:
            `list[dict]` for one history, best first: `item_id`, `score` (a log-probability) and, where the folder has
            an `items.parquet` with titles, `title`. `list[list[dict]]` for a batch, an iterator for a generator.

        Raises:
            ValueError: If an option is out of range or `allow_items` holds unknown ids only.
            TypeError: If ids are no strings or there is no such option.
        """
        if isinstance(histories, types.GeneratorType | torch.utils.data.Dataset):
            return super().__call__(histories, **options)
        batch, is_one = batch_of(histories)
        if not batch:
            return []
        tokens, _ = look_up(batch, self._token_of, name="histories")  # unknown ids are logged once for the whole batch
        first = self.model.config.first_item_token
        answers = super().__call__([[self._item_ids[token - first] for token in row] for row in tokens], **options)
        return answers[0] if is_one else answers

    def _sanitize_parameters(
        self, *, top_k=None, exclude_seen=None, exclude_items=None, allow_items=None, **search_options
    ):
        own = ("exclude_seen", "exclude_items", "allow_items", "item_prior", "item_embeddings")
        check_names(search_options, known=(*self.model.recommend_options, *own), owner=type(self.model).__name__)
        forward = dict(search_options)
        if top_k is not None:
            if top_k < 1:
                raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
            forward["top_k"] = min(top_k, len(self._item_ids))
        for name, rule in (("exclude_items", exclude_items), ("allow_items", allow_items)):
            if rule is not None:
                forward[name] = self._rule(name, rule)
        return ({} if exclude_seen is None else {"exclude_seen": exclude_seen}), forward, {}

    def _rule(self, name: str, item_ids) -> torch.LongTensor:
        if isinstance(item_ids, str) or not all(isinstance(item_id, str) for item_id in item_ids):
            raise TypeError(
                f"`{name}` must be one list of item ids, which holds for all histories of the call, got {item_ids!r}."
            )
        (tokens,), _ = look_up([list(item_ids)], self._token_of, name=name)
        return torch.tensor(tokens, dtype=torch.long)

    def preprocess(self, history, *, exclude_seen: bool | None = None) -> dict[str, torch.Tensor]:
        """
        Tokens of the latest items of one history `(1, history_length)`, at least a pad token.

        Args:
            history (`list[str]`): Item ids, oldest first.
            exclude_seen (`bool`, *optional*):
                Whether all of them are handed over as `seen_items` too; `None` for the model's `recommend_config`.

        """
        if exclude_seen is None:
            exclude_seen = self.model.recommend_config.exclude_seen
        batch, is_flat = batch_of([history])
        if is_flat:
            raise TypeError(f"A generator or data set must hold histories, lists of item ids, got {history!r}.")
        (known,), _ = look_up(batch, self._token_of, name="histories")
        tokens = torch.tensor([known or [self.model.config.pad_token_id]], dtype=torch.long)
        inputs = {"input_ids": tokens[:, -self.model.config.max_history_length :]}
        return inputs | ({"seen_items": tokens} if exclude_seen else {})

    def _forward(self, model_inputs, *, exclude_items=None, **options) -> dict[str, torch.Tensor]:
        seen = model_inputs.get("seen_items")
        if seen is not None and exclude_items is not None:
            shared = exclude_items.to(seen.device).expand(len(seen), -1)
            exclude_items = torch.cat([seen, shared], dim=1)
        elif seen is not None:
            exclude_items = seen
        output = self.model.recommend(model_inputs["input_ids"], exclude_items=exclude_items, **options)
        return {"item_tokens": output.item_tokens, "scores": output.scores}

    def postprocess(self, model_outputs) -> list[dict]:
        """
        One list as people read it.

        Args:
            model_outputs (`dict[str, torch.Tensor]`): `item_tokens` and `scores`, `(1, top_k)`.

        Returns:
            `list[dict]`: see `__call__`; shorter than `top_k` where the rules left fewer items.
        """
        titles = self._titles
        items = (model_outputs["item_tokens"][0] - self.model.config.first_item_token).tolist()
        answer: list[dict] = []
        for item, score in zip(items, model_outputs["scores"][0].tolist(), strict=True):
            if item >= 0:
                entry = {"item_id": self._item_ids[item], "score": score}
                answer.append(entry if titles is None else entry | {"title": titles[item] or self._item_ids[item]})
        return answer

    @cached_property
    def _titles(self) -> list[str] | None:
        """Titles in the order of the items; `None` where there are none, or pyarrow is not installed."""
        offline = {"local_files_only": True} if self._local_files_only else {}
        path = self.model.companion_file("items.parquet", **offline)
        if path is None:
            return None
        if importlib.util.find_spec("pyarrow") is None:
            logger.warning("Titles are left out: reading %s needs `pip install pyarrow`.", path)
            return None
        # by name, since a plain import would make pyarrow a requirement of everybody who loads the model
        parquet = importlib.import_module("pyarrow.parquet")
        try:
            table = parquet.read_table(path, page_checksum_verification=True)
        except (ValueError, OSError) as error:  # pyarrow's own errors are of these two kinds
            raise ValueError(f"{path} is no readable Parquet file: {error}. Fetch or write it again.") from error
        if "item_id" not in table.column_names or table["item_id"].to_pylist() != self._item_ids:
            raise ValueError(
                f"The item table ({path}, {table.num_rows} rows) does not list the {len(self._item_ids)} items of the "
                "tokenizer (tokenizer.json) in their order. Use the items.parquet that was written beside these "
                "weights."
            )
        return table["title"].to_pylist() if "title" in table.column_names else None


__all__ = ["NextItemPipeline"]
