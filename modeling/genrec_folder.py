"""
What a model shares with the other files of its folder: digests of all files, item ids and their tokens, the pipeline.

A folder or the name of a repository comes in; a model whose weights are those that its config describes goes out, or
an error that names both sides. `manifest.json` holds a SHA-256 of each file as it was saved, compared when the file is
read: a flipped bit in weights, titles or settings would give other items without any error. Folders saved before there
was a manifest have nothing to compare, which a warning says. Saving takes the code of the pipeline along.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers.utils import cached_file


if TYPE_CHECKING:  # not needed at run time: saving and loading follow this line and so carry the file of the pipeline
    from .pipeline_genrec import NextItemPipeline  # noqa: F401

logger = logging.getLogger(__name__)

TASK = "next-item-recommendation"
# what `transformers.pipeline` reads in the config of a repository to find the class of a task that it does not know
CUSTOM_PIPELINES = {TASK: {"impl": "pipeline_genrec.NextItemPipeline", "pt": ["AutoModel"]}}
MANIFEST_FILE = "manifest.json"
_MODEL_FILES = ("config.json", "generation_config.json", "recommend_config.json", "model*.safetensors*", "*.py")
_KEPT_ARGUMENTS = ("revision", "cache_dir", "local_files_only")  # not the token: a model may be pickled
_HUB_ARGUMENTS = (*_KEPT_ARGUMENTS, "force_download", "token", "proxies", "subfolder")


def hub_arguments(kwargs: dict[str, Any], config=None) -> dict[str, Any]:
    """What of the arguments of `from_pretrained` says where files are; all are of the commit that `config` is of."""
    where = {name: kwargs[name] for name in _HUB_ARGUMENTS if kwargs.get(name) is not None}
    commit = getattr(config, "_commit_hash", None)
    return where | {"revision": commit} if commit else where


def optional_file(source, name: str, **where) -> str | None:
    """
    Path of a file of a folder or repository, `None` where it has none or cannot be asked; `where` is `revision`,
    `cache_dir`, `token`, ... as in `transformers.utils.cached_file`.
    """
    kinds = ("missing_entries", "gated_repo", "connection_errors")
    return cached_file(str(source), name, **where, **{f"_raise_exceptions_for_{kind}": False for kind in kinds})


# --- manifest.json: what the files held when they were saved -------------------------------------------------------


def write_manifest(folder: str | Path, patterns: Iterable[str] = _MODEL_FILES) -> None:
    """Record the files of a folder that fit one of the `patterns` (of a model by default); other entries stay."""
    folder, patterns = Path(folder), list(patterns)
    files = _entries_without(folder, patterns)
    for found in (found for entry in patterns for found in folder.glob(entry) if found.is_file()):
        files[found.relative_to(folder).as_posix()] = _sha256_of(found)
    _write_entries(folder, files)


@contextmanager
def recorded(folder: str | Path, *names: str) -> Iterator[None]:
    """
    Files of a folder that are written anew in the block; its manifest, if there is one, records them afterwards. Until
    then it has no entry for them: a process killed in between leaves no file that would be refused.
    """
    folder = Path(folder)
    has_manifest = (folder / MANIFEST_FILE).is_file()
    if has_manifest:
        _write_entries(folder, _entries_without(folder, names))
    yield
    if has_manifest:
        write_manifest(folder, names)


def manifest_of(contents: dict[str, Path | bytes], manifest: Path) -> bytes:
    """The manifest of some of the files that `manifest` records, of which a few may have another content."""
    recorded_files = _entries(manifest)
    return _as_json({name: _sha256_of(content) for name, content in contents.items() if name in recorded_files})


def check_manifest(source: str | Path, is_read: Callable[[str], bool], **where) -> bool:
    """
    Compare the files whose names `is_read` with the manifest, fetching those of a repository; `where` is as in
    [`optional_file`]. Returns whether there is a manifest. Raises `ValueError` for the first file that differs,
    `OSError` for a missing one.
    """
    manifest = optional_file(source, MANIFEST_FILE, **where)
    if manifest is None:
        return False
    for name, expected in _entries(Path(manifest)).items():
        if is_read(name):
            path = cached_file(str(source), name, **where)
            if path is None:  # transformers' answer for a missing config.json
                raise FileNotFoundError(f"{source} has no {name}, which {manifest} records. Fetch the folder again.")
            found = _sha256_of(path)
            if found != expected:
                raise ValueError(
                    f"{path} is not the file that was saved: its SHA-256 begins with {found[:12]}, {manifest} records "
                    f"{expected[:12]}. It is damaged, or of another save: write or fetch the folder again. If it was "
                    f"edited on purpose, pass `check_files=False`, or delete {MANIFEST_FILE} to compare nothing."
                )
    return True


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, entry) and name.count("/") == entry.count("/") for entry in patterns)


def _entries(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = {str(name): str(digest) for name, digest in content["files"].items()}
        is_whole = content["digest"] == _sha256_of_entries(files)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{path} is damaged: it must be the one that was saved. Write or fetch the folder again.")
    return files


def _entries_without(folder: Path, patterns: Iterable[str]) -> dict[str, str]:
    path = folder / MANIFEST_FILE
    files = _entries(path) if path.is_file() else {}
    return {name: digest for name, digest in files.items() if not _fits(name, patterns)}


def _write_entries(folder: Path, files: dict[str, str]) -> None:
    """In one step: a reader finds the old manifest or the new one."""
    partial = folder / f".{MANIFEST_FILE}-{os.getpid()}"
    partial.write_bytes(_as_json(files))
    partial.replace(folder / MANIFEST_FILE)


def _as_json(files: dict[str, str]) -> bytes:
    content = {"files": dict(sorted(files.items())), "digest": _sha256_of_entries(files)}
    return (json.dumps(content, indent=2) + "\n").encode()


def _sha256_of(content: str | Path | bytes) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with open(content, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of_entries(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


# --- items and codes: all files are about the same ones ------------------------------------------------------------


def items_fingerprint(item_ids: Iterable[str]) -> str:
    """
    Fingerprint of item ids and their order: the first 16 hex digits of the SHA-256 of the ids as a JSON list.

    >>> items_fingerprint(["a", "b"]) == items_fingerprint(["b", "a"])
    False
    """
    return hashlib.sha256(json.dumps(list(item_ids)).encode()).hexdigest()[:16]


def catalog_fingerprint(item_codes: torch.Tensor) -> str:
    """
    Fingerprint of a semantic-ID table `(num_items, num_levels)`: 16 hex digits of a SHA-256 of int16 codes and shape.

    >>> catalog_fingerprint(torch.tensor([[0, 1], [2, 0]]))
    '3d9c5bb3f8a2b241'
    """
    codes = item_codes.detach().to(device="cpu", dtype=torch.int16).contiguous().numpy().astype("<i2")
    return hashlib.sha256(codes.tobytes() + str(tuple(codes.shape)).encode()).hexdigest()[:16]


def item_ids_of(tokenizer, config) -> list[str]:
    """
    The item ids that a tokenizer holds, in row order: item `i` is token `config.first_item_token + i`. A `ValueError`
    if they are not those of the model.
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


def check_parts(config, item_ids: Sequence[str], *, codes=None) -> None:
    """
    Whether an item table, its columns `item_id` and `codes` (an array `(num_items, num_levels)`), is of one folder
    with a model: else right codes would get wrong items. The `ValueError` says which side differs.
    """
    item_ids = list(item_ids)
    _check_items(config, item_ids, "item table", "items.parquet")
    if len(item_ids) != config.num_items:
        raise ValueError(f"The item table has {len(item_ids)} rows, the model's catalog {config.num_items} items.")
    if codes is not None:
        is_table = codes.shape[1] == config.num_levels
        found = catalog_fingerprint(torch.tensor(codes)) if is_table else f"none: not {config.num_levels} codes each"
        if found != config.catalog_fingerprint:
            raise ValueError(
                f"The codes of the item table (items.parquet, fingerprint {found}) are not those in the weights "
                f"(config.json, fingerprint {config.catalog_fingerprint}). Use the items.parquet that was written "
                "beside these weights."
            )


# --- weights ------------------------------------------------------------------------------------------------------


class CheckpointMixin:
    """Loading that refuses what does not belong together, and saving that takes the pipeline along."""

    _checks_files = False  # whether files that are read later, such as titles, are compared with the manifest
    _hub_arguments: dict[str, Any] = {}  # where they are: the name of a repository does not say at which revision

    def register_items_digest(self) -> None:
        """
        Reserve a buffer `items_digest`, 8 bytes: the items fingerprint as it was when the weights were saved. For a
        model without semantic IDs it does what their table does for others: weights whose rows mean other items than
        those of the item table are refused.
        """
        self.register_buffer("items_digest", torch.zeros(8, dtype=torch.uint8))

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
            # code counts only where it is not imported from a package
            read = list(_MODEL_FILES if cls.__module__.startswith("transformers_modules") else _MODEL_FILES[:-1])
            if Path(pretrained_model_name_or_path).is_dir():  # a pipeline reads these next
                read += ["tokenizer*", "tokenizer*/*"]
            where = hub_arguments(kwargs, kwargs.get("config"))
            if not check_manifest(pretrained_model_name_or_path, lambda name: _fits(name, read), **where):
                logger.warning(
                    "%s has no %s: a changed bit in its weights or settings would give other items without an error. "
                    "Once its answers are those expected, save it again: `save_pretrained` of the model or of a "
                    "`Recommender` writes one.", pretrained_model_name_or_path, MANIFEST_FILE
                )  # fmt: skip
        wants_info = kwargs.pop("output_loading_info", False)
        own = {"use_safetensors": True, "output_loading_info": True}
        try:
            model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **(kwargs | own))
        except SafetensorError as error:
            raise ValueError(
                f"The weights of {pretrained_model_name_or_path} (model.safetensors) are damaged: {error}. Write or "
                "fetch the file again."
            ) from error
        for name in ("items_digest", "item_counts"):
            if name in info["missing_keys"]:  # saved before there was one
                getattr(model, name).zero_()
        may_differ = bool(kwargs.get("ignore_mismatched_sizes"))
        _check_weights(model, pretrained_model_name_or_path, info, may_differ=may_differ)
        _check_digest(model, pretrained_model_name_or_path)
        check_finite(model, pretrained_model_name_or_path)
        model._checks_files = checks_files
        where = hub_arguments(kwargs, model.config)
        model._hub_arguments = {name: where[name] for name in _KEPT_ARGUMENTS if name in where}
        model._finish_loading(pretrained_model_name_or_path, where)
        return (model, info) if wants_info else model

    def _finish_loading(self, source, where: dict[str, Any]) -> None:
        """What is checked or read once the weights are there; mixins add to it."""

    def companion_file(self, name: str, **where) -> str | None:
        """
        Path of another file of the folder or repository that the model was loaded from, after comparing it with the
        manifest; `None` where there is none, or the model was made in this process.
        """
        source, where = self.config.name_or_path, {**self._hub_arguments, **where}
        if not source or (Path(source).is_absolute() and not Path(source).is_dir()):  # a folder that is gone
            return None
        path = optional_file(source, name, **where)
        if path is not None:
            self.check_files(name, **where)
        return path

    def check_files(self, *names: str, **where) -> None:
        """Compare files with the manifest beside them, unless the model was loaded with `check_files=False`."""
        if self._checks_files:
            check_manifest(self.config.name_or_path, names.__contains__, **{**self._hub_arguments, **where})

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
        digest, recorded = getattr(self, "items_digest", None), self.config.items_fingerprint
        if digest is not None and recorded is not None:
            digest.copy_(torch.tensor(list(bytes.fromhex(recorded)), dtype=torch.uint8))
        super().save_pretrained(save_directory, *args, **kwargs)


def check_finite(model: torch.nn.Module, source: str | Path) -> None:
    """Whether all weights are numbers: `ValueError` for NaN or infinity, which `source` holds or would hold."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.device.type != "meta" and not bool(tensor.isfinite().all()):
            count = int((~tensor.isfinite()).sum())
            raise ValueError(
                f"The weights of {source} (model.safetensors) must be finite; `{name}` holds {count} NaN or infinite "
                "values. The training broke down: train again with a smaller learning rate or in float32, or use an "
                "earlier checkpoint."
            )


def _check_weights(model, source, info, *, may_differ: bool) -> None:
    """That all weights were there and none was left over; `item_codes` and the digest have checks of their own."""
    own = {"item_codes", "items_digest", "item_counts"}
    found = {
        "lack": [] if may_differ else sorted(set(info["missing_keys"]) - own),
        "hold what the model has no place for:": sorted(info["unexpected_keys"]),
    }
    problems = [f"{what} {_shown(names, '`{}`')}" for what, names in found.items() if names]
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


def _shown(names: list[str], form: str = "{!r}") -> str:
    return ", ".join(map(form.format, names[:5])) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")


# --- histories ----------------------------------------------------------------------------------------------------


def as_histories(histories: Iterable, *, name: str = "histories") -> list[list[str]]:
    """A batch of histories, whether one flat history or a batch was given; see [`batch_of`]."""
    return batch_of(histories, name=name)[0]


def batch_of(histories: Iterable, *, name: str = "histories") -> tuple[list[list[str]], bool]:
    """
    A batch of lists of item ids, oldest first, and whether one flat list was given; `name` is for errors.

    Tuples, arrays and generators are read as lists. An empty list is a batch of no users; one user without a history
    is `[[]]`. A `TypeError` for a string, which would be read letter by letter, a set or dictionary, which has no
    order, a mixture of ids and lists, and ids that are no strings.

    >>> batch_of(["soap", "brush"]), batch_of([["soap"], []])
    (([['soap', 'brush']], True), ([['soap'], []], False))
    >>> batch_of(item_id for item_id in ["soap"]), batch_of([])
    (([['soap']], True), ([], False))
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


def look_up(rows: list[list[str]], numbers: dict[str, int], *, name: str) -> tuple[list[list[int]], int]:
    """
    The numbers of item ids, and how many ids have none, which are left out and logged; `name` is that of the argument.
    A `ValueError` where `allow_items` holds no other.
    """
    known = [[numbers[item_id] for item_id in row if item_id in numbers] for row in rows]
    unknown = [item_id for row in rows for item_id in row if item_id not in numbers]
    if unknown and name == "allow_items" and not any(known):
        raise ValueError(
            f"`allow_items` holds no id of the catalog: {_shown(unknown)}. Give ids of the catalog's {len(numbers)} "
            "items, or an empty list to allow nothing."
        )
    if unknown:
        what = "history items" if name == "histories" else f"ids in `{name}`"
        num_emptied = sum(bool(row) and not left for row, left in zip(rows, known, strict=True))
        emptied = f" Histories without an item left, answered as empty ones: {num_emptied}." if num_emptied else ""
        message = "%d %s are not in the catalog and are ignored: %s.%s"
        logger.warning(message, len(unknown), what, _shown(unknown), emptied if name == "histories" else "")
    return known, len(unknown)


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
        Which positions hold an item that counts: `False` at padding, unknown and special tokens.

        `input_ids` `(batch_size, history_length)` are item tokens, oldest first, padded on either side;
        `attention_mask` (same shape) is 1 at items that count, `None` for all; with times more, see `genrec_gaps`.
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
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None, *, has_times: bool = False
    ) -> tuple[torch.LongTensor, torch.Tensor]:
        """What is read of histories, at most `max_history_length` columns, with a boolean mask, or with its values."""
        is_read, length = self.is_read(input_ids, attention_mask), self.config.max_history_length
        mask = attention_mask * is_read if has_times and attention_mask is not None else is_read
        if input_ids.shape[1] <= length:
            return input_ids, mask
        order = (~is_read).long().argsort(dim=1, stable=True)[:, :length]  # what is read first, in its order
        return input_ids.gather(1, order), mask.gather(1, order)

    def items_in_front(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.LongTensor, torch.BoolTensor]:
        """Item indices, from 0, those that count first, in their order; and which these are."""
        is_item = self.is_item(input_ids, attention_mask)
        order = (~is_item).long().argsort(dim=1, stable=True)
        return (input_ids.gather(1, order) - self.config.first_item_token).clamp_min(0), is_item.gather(1, order)

    def mask_in_front(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """The mask in the order of [`items_in_front`], see `genrec_gaps`; ones where there is none."""
        is_item = self.is_item(input_ids, attention_mask)
        mask = is_item if attention_mask is None else attention_mask
        return mask.gather(1, (~is_item).long().argsort(dim=1, stable=True))

    def is_target(self, input_ids: torch.LongTensor, labels: torch.LongTensor) -> torch.BoolTensor:
        """Which positions have a label: the token of the next item, or -100 for none, in the shape of `input_ids`."""
        first, end = self.config.first_item_token, self.config.first_item_token + self.config.num_items
        if labels.shape != input_ids.shape:
            shape, found = tuple(input_ids.shape), tuple(labels.shape)
            raise ValueError(f"`labels` must have the shape of `input_ids`, {shape}, got {found}.")
        is_target = labels != -100
        if bool((is_target & ((labels < first) | (labels >= end))).any()):
            raise ValueError(f"`labels` must be item tokens in [{first}, {end}) or -100.")
        return is_target
