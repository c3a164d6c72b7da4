"""
Histories, titles and search texts in, prompts and answers out: every text that a language model is trained with.

A user's history is a list of items, each behind a begin token, and a begin token at the end:

    Items that a user chose, oldest first, and the next one:
    <|sid_begin|><s_a_3><s_b_7><|sid_begin|><s_a_0><s_b_5><|sid_begin|>

so what comes next are the codes of the next item, serving builds the prompt from token ids alone, and every item of
the list is an answer to the ones before it. Chat models get the sentence as the user's turn, and the list as the
beginning of their own. In sentences an item stands between begin and end token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


SEQUENTIAL = "sequential"
QUESTIONS = {
    SEQUENTIAL: "Items that a user chose, oldest first, and the next one:",
    "title_to_id": "The item with the title {title}:",
    "id_to_title": "The title of the item {item}:",
    "ids_to_title": "The title of the item that a user chose after {items}:",
    "titles_to_id": "The item that a user chose after those with the titles {titles}:",
    "search_to_id": "An item for the search {search}:",
}
TO_TITLE = ("id_to_title", "ids_to_title")  # the other tasks are answered by codes
DEFAULT_MIX = {SEQUENTIAL: 1.0} | {name: 0.1 for name in QUESTIONS if name != SEQUENTIAL}
MAX_WORDS = 16  # of a title or a search text


def is_chat(tokenizer: Any) -> bool:
    """Whether a tokenizer is that of a chat model. Args: a tokenizer of transformers."""
    return getattr(tokenizer, "chat_template", None) is not None


def prompt_text(tokenizer: Any, question: str, *, chat: bool) -> str:
    """
    What stands before an answer, as text.

    Args: the tokenizer, the question, and whether it is asked with the tokenizer's chat template.
    """
    if chat:
        turn = [{"role": "user", "content": question}]
        return tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    start = tokenizer.bos_token if _begins_with_bos(tokenizer) else ""
    return f"{start}{question}\n"


def sequence_prefix(tokenizer: Any, *, chat: bool) -> str:
    """
    What stands before the list of the sequential task, as text. Args: see [`prompt_text`].
    """
    return prompt_text(tokenizer, QUESTIONS[SEQUENTIAL], chat=chat)


def tokens_of(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of whole texts, nothing added to them. Args: the tokenizer, and the texts."""
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []


def first_words(text: str, number: int = MAX_WORDS) -> str:
    """The first words of a text on one line. Args: the text, and how many."""
    return " ".join(text.split()[:number])


def check_mix(mix: Mapping[str, float]) -> dict[str, float]:
    """
    The tasks of a mix with their weights, those of weight 0 left out.

    Args:
        mix (`dict[str, float]`): Rows of each task for each row of the sequential one, which has the weight 1 unless
            the mix says otherwise.

    Raises:
        ValueError: If a task is unknown, a weight is negative or no number, or nothing is left of the sequential task.
    """
    if unknown := sorted(set(mix) - set(QUESTIONS)):
        raise ValueError(f"`mix` has no task {', '.join(map(repr, unknown))}; there are {', '.join(QUESTIONS)}.")
    weights = {SEQUENTIAL: 1.0} | dict(mix)
    for name, weight in weights.items():
        if isinstance(weight, (bool, str)) or not 0 <= weight < float("inf"):
            raise ValueError(f"The weight of {name!r} in `mix` must be a number from 0, got {weight!r}.")
    if not weights[SEQUENTIAL]:
        raise ValueError(f"`mix` must keep the task {SEQUENTIAL!r}: it is what serving asks.")
    return {name: float(weights[name]) for name in QUESTIONS if weights.get(name)}


def _begins_with_bos(tokenizer: Any) -> bool:
    """Whether texts of this tokenizer begin with a token of their own."""
    found = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and found[:1] == [tokenizer.bos_token_id]
