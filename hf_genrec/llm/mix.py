"""
A prepared data set and semantic IDs in, the training rows of all tasks out: token ids and labels as `datasets`.

Labels stand at the tokens they name and are -100 wherever nothing is asked: in prompts, in the first item of a list.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.data.sequences import IGNORED_LABEL, Windows, make_examples, make_windows
from hf_genrec.llm.prompts import (
    QUESTIONS,
    SEQUENTIAL,
    TO_TITLE,
    check_mix,
    first_words,
    prompt_text,
    sequence_prefix,
    tokens_of,
)
from hf_genrec.llm.vocabulary import BEGIN, SidVocabulary


logger = logging.getLogger(__name__)

_OF_ITEMS = ("title_to_id", "id_to_title", "search_to_id")  # the other tasks are about histories
TEXT_HISTORY = 5  # items of a history whose titles, or whose codes for a title, are read


def sequence_rows(
    windows: Windows, blocks: np.ndarray, prefix_ids: Sequence[int], *, all_items: bool = True
) -> datasets.Dataset:
    """
    Rows of the sequential task: the items of a window as a list, the last one included.

    Args:
        windows ([`Windows`]): Pieces of histories.
        blocks (`np.ndarray` of shape `(num_items, 1 + num_levels)`): Begin token and codes of each item as tokens.
        prefix_ids (`Sequence[int]`): Tokens before the list.
        all_items (`bool`, defaults to `True`):
            Whether every target of a window is an answer to the items before it, or the last item only.
    """
    prefix = np.array(prefix_ids, dtype=np.int64)
    inputs, labels = [], []
    for start, end, target in zip(windows.starts, windows.ends, windows.first_targets, strict=True):
        items = blocks[windows.values[start:end]]
        asked = np.full_like(items, IGNORED_LABEL)
        first = target - start if all_items else len(items) - 1
        asked[first:, 1:] = items[first:, 1:]
        inputs.append(np.concatenate([prefix, items.ravel()]))
        labels.append(np.concatenate([np.full(len(prefix), IGNORED_LABEL), asked.ravel()]))
    return _rows(SEQUENTIAL, inputs, labels)


@dataclass(frozen=True)
class Texts:
    """
    What the tasks with texts are made of.

    Args: titles and search texts per item (empty where an item has none), codes `(num_items, num_levels)`, the
    vocabulary, the tokenizer, and whether its chat template is used.
    """

    titles: Sequence[str]
    searches: Sequence[str]
    codes: np.ndarray
    vocabulary: SidVocabulary
    tokenizer: Any
    chat: bool

    @classmethod
    def of(
        cls, prepared: PreparedDataset, codes: np.ndarray, vocabulary: SidVocabulary, tokenizer: Any, *, chat: bool
    ) -> Texts:
        """The titles of a data set, and what its texts say beyond them. Args: see [`training_mix`]."""
        titles = [first_words(title or "") for title in prepared.items["title"].to_pylist()]
        searches = [
            first_words((text or "").removeprefix(title or ""))
            for title, text in zip(*(prepared.items[name].to_pylist() for name in ("title", "text")), strict=True)
        ]
        return cls(titles, searches, codes, vocabulary, tokenizer, chat)

    def rows(self, task: str, windows: Windows, number: int, random: np.random.Generator) -> datasets.Dataset:
        """
        So many rows of a task, of items or of windows in random order, each as often as any other; none if the data
        has no texts for it.

        Args: the task, examples with one target each, the number of rows, and random numbers.
        """
        pool = self._pool(task, windows)
        if not len(pool):
            logger.warning("The data has no texts for the task %s: it is left out.", task)
            return _rows(task, [], [])
        rounds = [random.permutation(pool) for _ in range(-(-number // len(pool)))]
        chosen = np.concatenate([*rounds, pool[:0]])[:number]
        pairs = [self._pair(task, int(place), windows) for place in chosen]
        prompts = [prompt_text(self.tokenizer, question, chat=self.chat) for question, _ in pairs]
        if task in TO_TITLE:
            end = self.tokenizer.eos_token or ""
            asked = tokens_of(self.tokenizer, prompts)
            answers = tokens_of(self.tokenizer, [self.titles[item] + end for _, item in pairs])
        else:
            asked = tokens_of(self.tokenizer, [prompt + BEGIN for prompt in prompts])
            blocks = item_blocks(self.vocabulary, self.codes)
            answers = [blocks[item, 1:].tolist() for _, item in pairs]
        inputs = [np.array([*prompt, *answer]) for prompt, answer in zip(asked, answers, strict=True)]
        labels = [
            np.array([IGNORED_LABEL] * len(prompt) + list(answer))
            for prompt, answer in zip(asked, answers, strict=True)
        ]
        return _rows(task, inputs, labels)

    def _pool(self, task: str, windows: Windows) -> np.ndarray:
        """The items or the windows that have the texts a task needs."""
        has_title = np.array([bool(title) for title in self.titles])
        if task in _OF_ITEMS:
            return np.flatnonzero([bool(text) for text in self.searches] if task == "search_to_id" else has_title)
        if task == "ids_to_title":
            return np.flatnonzero(has_title[windows.targets])
        return np.flatnonzero([has_title[self._history(place, windows)].any() for place in range(len(windows))])

    @staticmethod
    def _history(place: int, windows: Windows) -> np.ndarray:
        """The latest items before the target of a window, few enough for a line of text."""
        start, target = windows.starts[place], windows.ends[place] - 1
        return windows.values[max(start, target - TEXT_HISTORY) : target]

    def _pair(self, task: str, place: int, windows: Windows) -> tuple[str, int]:
        """The question of an item or a window, and the item it asks for."""
        question = QUESTIONS[task]
        if task in _OF_ITEMS:
            item = self.vocabulary.item_text(self.codes[place].tolist())
            return question.format(title=self.titles[place], search=self.searches[place], item=item), place
        history = self._history(place, windows).tolist()
        titles = "; ".join(self.titles[item] for item in history if self.titles[item])
        items = "".join(self.vocabulary.item_text(self.codes[item].tolist()) for item in history)
        return question.format(items=items, titles=titles), int(windows.targets[place])


def training_mix(
    prepared: PreparedDataset,
    codes: np.ndarray,
    vocabulary: SidVocabulary,
    tokenizer: Any,
    *,
    mix: Mapping[str, float],
    chat: bool,
    max_history_length: int = 20,
    stride: int = 10,
    loss_on: Literal["items", "answer"] = "items",
    targets: Literal["all", "last"] = "all",
    seed: int = 0,
) -> datasets.Dataset:
    """
    The training rows of all tasks, one after the other: columns `task`, `input_ids` and `labels`.

    Args:
        prepared ([`PreparedDataset`]): The data set.
        codes (`np.ndarray` of shape `(num_items, num_levels)`): Codes of its items.
        vocabulary ([`SidVocabulary`]): Their tokens.
        tokenizer: The tokenizer that has them.
        mix (`dict[str, float]`):
            Rows of each task for each row of the sequential one (of a weight of 1); see [`check_mix`].
        chat (`bool`): Whether questions are asked with the tokenizer's chat template.
        max_history_length (`int`, defaults to 20): Latest items of a history.
        stride (`int`, defaults to 10): Items between two windows of a long history, see [`make_windows`].
        loss_on (`str`, defaults to `"items"`):
            `"items"`: one row per window, in which every item is an answer to those before it; `"answer"`: one row
            per target, in which that one is.
        targets (`str`, defaults to `"all"`): All items of a history but the first, or the `"last"` one.
        seed (`int`, defaults to 0): Which items and histories the tasks with texts take.
    """
    weights = check_mix(mix)
    split, item_ids = prepared.split("train"), prepared.item_ids
    examples = make_examples(split, item_ids, max_history_length=max_history_length, targets=targets)
    windows = examples
    if loss_on == "items" and targets == "all":
        windows = make_windows(split, item_ids, max_history_length=max_history_length, stride=stride)
    texts = Texts.of(prepared, codes, vocabulary, tokenizer, chat=chat)
    random = np.random.default_rng([seed, len(QUESTIONS)])
    prefix_ids = tokens_of(tokenizer, [sequence_prefix(tokenizer, chat=chat)])[0]
    parts = [sequence_rows(windows, item_blocks(vocabulary, codes), prefix_ids, all_items=loss_on == "items")]
    for task, weight in weights.items():
        if task != SEQUENTIAL:
            number = round(weight / weights[SEQUENTIAL] * len(windows))
            parts.append(texts.rows(task, examples, number, random))
    return datasets.concatenate_datasets([part for part in parts if len(part)] or parts[:1])


def item_blocks(vocabulary: SidVocabulary, codes: np.ndarray) -> np.ndarray:
    """
    Items of a list as tokens, `(num_items, 1 + num_levels)`: begin and codes. Args: the vocabulary, and codes
    `(num_items, num_levels)`.
    """
    return vocabulary.item_tokens(np.array(codes))[:, :-1].numpy()


def _rows(task: str, inputs: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> datasets.Dataset:
    """Arrays of any lengths as a data set, without a Python object per token."""
    offsets = pa.array(np.cumsum([0, *map(len, inputs)]).astype(np.int32))
    columns: dict[str, pa.Array] = {"task": pa.array([task] * len(inputs), pa.string())}
    for name, rows in (("input_ids", inputs), ("labels", labels)):
        values = np.concatenate([*rows, np.array([], np.int64)]).astype(np.int32)
        columns[name] = pa.ListArray.from_arrays(offsets, pa.array(values))
    return datasets.Dataset(pa.table(columns))
