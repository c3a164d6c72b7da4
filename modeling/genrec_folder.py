"""
What a model shares with the other files of its folder: the item ids and their tokens, the weights, the pipeline.

A folder or the name of a repository comes in; a model whose weights are those that its config describes goes out, or
an error that names both sides. Histories of item ids come in as a batch; of its tokens the model says here which count
as items and which have a target. Saving takes the code of the pipeline along.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers.utils import cached_file

from .genrec_manifest import check_finite, check_manifest, is_model_file


if TYPE_CHECKING:  # not needed at run time: saving and loading follow this line and so carry the file of the pipeline
    from .pipeline_genrec import NextItemPipeline  # noqa: F401

_HUB_ARGUMENTS = ("revision", "cache_dir", "force_download", "local_files_only", "token", "proxies", "subfolder")
TASK = "next-item-recommendation"
# what `transformers.pipeline` reads in the config of a repository to find the class of a task that it does not know
CUSTOM_PIPELINES = {TASK: {"impl": "pipeline_genrec.NextItemPipeline", "pt": ["AutoModel"]}}


def optional_file(source, name: str, **where) -> str | None:
    """
    Path of a file of a folder or repository; `None` where it has none or cannot be asked.

    `where`: `revision`, `cache_dir`, `token`, ... as in `transformers.utils.cached_file`.
    """
    kinds = ("missing_entries", "gated_repo", "connection_errors")
    return cached_file(str(source), name, **where, **{f"_raise_exceptions_for_{kind}": False for kind in kinds})


def items_fingerprint(item_ids: Iterable[str]) -> str:
    """
    Fingerprint of item ids and their order.

    Returns the first 16 hex digits of the SHA-256 of the ids as a JSON list.

    Example:

    ```python
    >>> items_fingerprint(["a", "b"]) == items_fingerprint(["b", "a"])
    False

    ```
    """
    return hashlib.sha256(json.dumps(list(item_ids)).encode()).hexdigest()[:16]


def catalog_fingerprint(item_codes: torch.Tensor) -> str:
    """
    Fingerprint of a semantic-ID table: the first 16 hex digits of the sha256 of its int16 codes and its shape.

    Takes `item_codes` `(num_items, num_levels)`. Returns 16 hexadecimal digits.

    Example:

    ```python
    >>> catalog_fingerprint(torch.tensor([[0, 1], [2, 0]]))
    '3d9c5bb3f8a2b241'

    ```
    """
    codes = item_codes.detach().to(device="cpu", dtype=torch.int16).contiguous().numpy().astype("<i2")
    return hashlib.sha256(codes.tobytes() + str(tuple(codes.shape)).encode()).hexdigest()[:16]


def item_ids_of(tokenizer, config) -> list[str]:
    """
    The item ids that a tokenizer holds, if they are those of a model.

    Returns ids in row order; item `i` is token `config.first_item_token + i`. Raises `ValueError` if the tokenizer
    holds more or fewer tokens than the model knows, or other items, or these in another order.
    """
    first, end = config.first_item_token, config.first_item_token + config.num_items
    if len(tokenizer) != end:
        raise ValueError(
            f"The tokenizer (tokenizer.json) holds {len(tokenizer)} tokens, the model (config.json) {end}: {first} "
            f"and one for each of {config.num_items} items. Use the tokenizer that was written beside these weights."
        )
    item_ids = tokenizer.convert_ids_to_tokens(range(first, end))
    _check_items(config, item_ids, "tokenizer", "tokenizer.json")
    return item_ids


def _check_items(config, item_ids: list[str], owner: str, file: str) -> None:
    found = items_fingerprint(item_ids)
    if config.items_fingerprint not in (None, found):
        raise ValueError(
            f"The ids of the {owner} ({file}, {len(item_ids)} items, fingerprint {found}) are not those the model was "
            f"saved with, in their order (config.json, {config.num_items} items, fingerprint "
            f"{config.items_fingerprint}). Use the {file} that was written beside these weights."
        )


def check_parts(config, item_ids: Sequence[str], *, codes: Sequence | None = None, tokenizer=None) -> None:
    """
    Whether an item table and a tokenizer are of one folder with a model: else right codes would get wrong items.

    - `item_ids`: `item_id` of the item table, in row order.
    - `codes`: `codes` of the item table, where it has any.
    Raises `ValueError` if they are not; the message says which side differs.
    """
    item_ids = list(item_ids)
    remedy = "Use the {} that was written beside these weights."
    _check_items(config, item_ids, "item table", "items.parquet")
    if len(item_ids) != config.num_items:
        raise ValueError(f"The item table has {len(item_ids)} rows, the model's catalog {config.num_items} items.")
    if codes is not None:
        is_table = all(row is not None and len(row) == config.num_levels and None not in row for row in codes)
        found = catalog_fingerprint(torch.tensor(codes)) if is_table else f"none: not {config.num_levels} codes each"
        if found != config.catalog_fingerprint:
            raise ValueError(
                f"The codes of the item table (items.parquet, fingerprint {found}) are not those in the weights "
                f"(config.json, fingerprint {config.catalog_fingerprint}). " + remedy.format("items.parquet")
            )
    if tokenizer is not None:
        first = config.first_item_token
        tokens = tokenizer.convert_ids_to_tokens(range(first, first + config.num_items))
        if tokens != item_ids or len(tokenizer) != first + config.num_items:
            raise ValueError(
                "The tokenizer (tokenizer.json) does not hold the items of items.parquet in their order. "
                + remedy.format("tokenizer")
            )


class CheckpointMixin:
    """
    Loading that refuses what does not belong together, and saving that takes the pipeline along.

    A model without semantic IDs may have a buffer `items_digest`, 8 bytes: the items fingerprint as it was when the
    weights were saved. It does for these weights what the semantic-ID table does for others: the rows of an item table
    and weights whose rows mean other items are told apart.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """
        As in transformers, with safetensors weights only, which must be those that the config describes: raises
        `ValueError` if some are missing (which `ignore_mismatched_sizes` allows), left over, not finite or of other
        items, or a file is not the one that `manifest.json` records (which `check_files=False` allows).
        """
        if kwargs.get("use_safetensors") is False:
            raise ValueError(
                f"{cls.__name__} reads its weights from safetensors files only: other formats can run code. Leave out "
                "`use_safetensors=False`, and save old weights again with `save_pretrained`."
            )
        checks_files = kwargs.pop("check_files", True)
        if checks_files and pretrained_model_name_or_path is not None:
            where = {name: kwargs[name] for name in _HUB_ARGUMENTS if kwargs.get(name) is not None}
            if getattr(kwargs.get("config"), "_commit_hash", None):  # the commit that the rest is of
                where["revision"] = kwargs["config"]._commit_hash
            has_code = cls.__module__.startswith("transformers_modules")
            also = "tokenizer" if Path(pretrained_model_name_or_path).is_dir() else "\0"  # a pipeline reads it next
            check_manifest(
                pretrained_model_name_or_path,
                lambda name: is_model_file(name, has_code=has_code) or name.startswith(also),
                **where,
            )
        wants_info = kwargs.pop("output_loading_info", False)
        own = {"use_safetensors": True, "output_loading_info": True}
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **(kwargs | own))
        for name in ("items_digest", "item_counts"):
            if name in info["missing_keys"]:  # saved before there was one
                getattr(model, name).zero_()
        _check_weights(
            model, pretrained_model_name_or_path, info, may_differ=bool(kwargs.get("ignore_mismatched_sizes"))
        )
        _check_digest(model, pretrained_model_name_or_path)
        check_finite(model, pretrained_model_name_or_path)
        model._checks_files = checks_files  # for what is read later: titles, an item graph
        # where the table of titles is: the name of a repository alone does not say at which revision
        model._hub_arguments = {
            name: kwargs[name] for name in ("revision", "cache_dir", "local_files_only") if name in kwargs
        }
        return (model, info) if wants_info else model

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs):
        """Not for these models: raises `NotImplementedError` for another size, before anything is replaced."""
        if new_num_tokens not in (None, self.config.vocab_size):
            raise NotImplementedError(
                f"The vocabulary follows from the catalog ({self.config.vocab_size} tokens of items or their codes), "
                f"so it cannot be resized to {new_num_tokens}. For other items make a new model from a config."
            )
        return self.get_input_embeddings()

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers; in addition `pipeline` finds the class of the task in the folder."""
        self.config.custom_pipelines = {task: dict(entry) for task, entry in CUSTOM_PIPELINES.items()}
        digest = getattr(self, "items_digest", None)
        if digest is not None and self.config.items_fingerprint is not None:
            digest.copy_(_digest_of(self.config.items_fingerprint))
        super().save_pretrained(save_directory, *args, **kwargs)


def _digest_of(fingerprint: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(fingerprint)), dtype=torch.uint8)


def _check_weights(model, source, info, *, may_differ: bool) -> None:
    """That all weights were there and none was left over; `item_codes` and the digest have checks of their own."""
    own = {"item_codes", "items_digest", "item_counts"}
    found = {
        "lack": [] if may_differ else sorted(set(info["missing_keys"]) - own),
        "hold what the model has no place for:": sorted(info["unexpected_keys"]),
    }
    problems = [f"{what} {_shown(names)}" for what, names in found.items() if names]
    if problems:
        raise ValueError(
            f"The weights of {source} (model.safetensors) are not those of its config.json: for a "
            f"{type(model).__name__} with these settings they {' and '.join(problems)}. Use both files of one save."
        )


def _check_digest(model, source) -> None:
    digest, recorded = getattr(model, "items_digest", None), model.config.items_fingerprint
    if digest is None or digest.device.type == "meta" or not bool(digest.any()) or recorded is None:
        return
    found = bytes(digest.tolist()).hex()
    if found != recorded:
        raise ValueError(
            f"The weights of {source} (model.safetensors) were saved for items with fingerprint {found}, its "
            f"config.json records `items_fingerprint` {recorded}: the rows of these weights mean other items. Use "
            "both files of one save."
        )


def _shown(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")


def as_histories(histories: Iterable, *, name: str = "histories") -> list[list[str]]:
    """A batch of histories, whether one flat history or a batch was given; see [`batch_of`]."""
    return batch_of(histories, name=name)[0]


def batch_of(histories: Iterable, *, name: str = "histories") -> tuple[list[list[str]], bool]:
    """
    A batch of lists of item ids, and whether one flat list was given.

    `histories`: item ids, oldest first, or such lists; tuples, arrays and generators are read as lists. An empty list
    is a batch of no users; one user without a history is `[[]]`. `name`: of the argument, for errors. Raises
    `TypeError` for a string, which would be read letter by letter, a set or dictionary, which has no order, a mixture
    of ids and lists, and ids that are no strings.

    Example:

    ```python
    >>> batch_of(["soap", "brush"]), batch_of([["soap"], []])
    (([['soap', 'brush']], True), ([['soap'], []], False))
    >>> batch_of(item_id for item_id in ["soap"]), batch_of([])
    (([['soap']], True), ([], False))

    ```
    """
    entries = _listed(histories, name)
    is_string = [isinstance(entry, str) for entry in entries]
    if any(is_string) and not all(is_string):
        raise TypeError(f"`{name}` must be a list of item ids or a list of such lists, got a mixture of both.")
    if entries and all(is_string):
        return [[str(item_id) for item_id in entries]], True
    rows = [_listed(entry, name) for entry in entries]
    for wrong in (item_id for row in rows for item_id in row if not isinstance(item_id, str)):
        raise TypeError(f"Item ids in `{name}` must be strings, got {wrong!r} of type {type(wrong).__name__}.")
    return rows, False


def _listed(entries, name: str) -> list:
    if isinstance(entries, str | bytes | dict | set | frozenset) or not isinstance(entries, Iterable):
        raise TypeError(
            f"`{name}` must be a list of item ids or a list of such lists, got {entries!r} of type "
            f"{type(entries).__name__}."
        )
    return list(entries)


class ItemTokensMixin:
    """Reads the token layout of `config`; for every model whose histories and targets are item tokens."""

    def is_item(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None) -> torch.BoolTensor:
        """
        Which positions hold an item that counts.

        `input_ids` `(batch_size, history_length)` are item tokens, oldest first, padded on either side;
        `attention_mask` (same shape) is 1 at items that count, `None` for all. Returns the same shape: `False` at
        padding, unknown and special tokens. Raises `ValueError` if a token lies behind the last item.
        """
        config = self.config
        if input_ids.numel() and int(input_ids.max()) >= config.first_item_token + config.num_items:
            raise ValueError(
                f"`input_ids` holds token {int(input_ids.max())}; the last item token of this catalog is "
                f"{config.first_item_token + config.num_items - 1}."
            )
        is_item = input_ids >= config.first_item_token
        return is_item if attention_mask is None else is_item & attention_mask.bool()

    def is_read(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None) -> torch.BoolTensor:
        """Which positions hold one of the latest `max_history_length` items that count."""
        is_item = self.is_item(input_ids, attention_mask)
        number = is_item.long().cumsum(1)
        return is_item & (number > is_item.sum(1, keepdim=True) - self.config.max_history_length)

    def latest_items(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.LongTensor, torch.BoolTensor]:
        """Histories cut to what is read, with their mask: at most `max_history_length` columns."""
        is_read, length = self.is_read(input_ids, attention_mask), self.config.max_history_length
        if input_ids.shape[1] <= length:
            return input_ids, is_read
        order = (~is_read).long().argsort(dim=1, stable=True)[:, :length]  # what is read first, in its order
        return input_ids.gather(1, order), is_read.gather(1, order)

    def is_target(self, input_ids: torch.LongTensor, labels: torch.LongTensor) -> torch.BoolTensor:
        """
        Which positions have a label.

        Takes `input_ids` `(batch_size, history_length)`. `labels` (same shape): at each position the token of the next
        item, or -100. Returns the same shape: `False` at -100. Raises `ValueError` if the shapes differ or a label is
        neither an item nor -100.
        """
        first, end = self.config.first_item_token, self.config.first_item_token + self.config.num_items
        if labels.shape != input_ids.shape:
            shape, found = tuple(input_ids.shape), tuple(labels.shape)
            raise ValueError(f"`labels` must have the shape of `input_ids`, {shape}, got {found}.")
        is_target = labels != -100
        if bool((is_target & ((labels < first) | (labels >= end))).any()):
            raise ValueError(f"`labels` must be item tokens in [{first}, {end}) or -100.")
        return is_target


__all__ = [
    "CUSTOM_PIPELINES",
    "TASK",
    "CheckpointMixin",
    "ItemTokensMixin",
    "as_histories",
    "batch_of",
    "catalog_fingerprint",
    "check_parts",
    "item_ids_of",
    "items_fingerprint",
    "optional_file",
]
