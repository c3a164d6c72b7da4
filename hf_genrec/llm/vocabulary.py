"""
Semantic IDs as tokens of a language model: a tokenizer and a causal LM come in, both with a token per code go out.

The names are those that OneRec-Think and OpenOneRec use: `<|sid_begin|><s_a_3><s_b_7><|sid_end|>`, a letter per level.
What belongs to the codes is found again by these names, so a folder needs no file of its own for it.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AddedToken

from hf_genrec.llm.initial_rows import Rows, mean_rows, rows_of_centroids, rows_of_words


BEGIN, END = "<|sid_begin|>", "<|sid_end|>"
INITS = ("mean", "words", "codebook")


class SidVocabulary:
    """
    The token map of a catalog's codes in the vocabulary of any language model.

    Code `c` of level `l` is token `code_token_ids[l, c]`; `begin_id` and `end_id` stand before and behind an item. A
    collision code is one level more.

    Args:
        code_token_ids (`torch.LongTensor` of shape `(num_levels, codebook_size)`): Token of each code.
        begin_id (`int`): Token before the first code of an item.
        end_id (`int`): Token behind the last one.

    Example:

    ```python
    >>> import torch
    >>> vocabulary = SidVocabulary(torch.tensor([[10, 11, 12], [13, 14, 15]]), begin_id=9, end_id=16)
    >>> vocabulary.item_text([2, 0])
    '<|sid_begin|><s_a_2><s_b_0><|sid_end|>'
    >>> vocabulary.item_tokens(torch.tensor([[2, 0], [1, 1]])).tolist()
    [[9, 12, 13, 16], [9, 11, 14, 16]]

    ```
    """

    def __init__(self, code_token_ids: torch.Tensor, *, begin_id: int, end_id: int) -> None:
        self.code_token_ids = code_token_ids.long()
        self.begin_id = begin_id
        self.end_id = end_id
        self._added_rows: list[int] = []  # rows that `resize` added and no token has

    @classmethod
    def add_to(cls, tokenizer: Any, *, num_levels: int, codebook_size: int) -> SidVocabulary:
        """
        Add the tokens of all codes to a tokenizer; then call `resize` with the model.

        Args:
            tokenizer: A tokenizer of transformers, of any kind; it is changed.
            num_levels (`int`): Number of codes of an item, at most 26.
            codebook_size (`int`): Number of codes per level.

        Raises:
            ValueError: If a size is out of range, or the tokenizer has tokens of other codes.
        """
        if not 1 <= num_levels <= len(string.ascii_lowercase):
            raise ValueError(f"`num_levels` must lie in [1, 26], a letter per level, got {num_levels}.")
        if codebook_size < 1:
            raise ValueError(f"`codebook_size` must be at least 1, got {codebook_size}.")
        names = [code_name(level, code) for level in range(num_levels) for code in range(codebook_size)]
        others = (code_name(num_levels, 0), code_name(0, codebook_size))  # of a larger vocabulary
        if any(_token_id(tokenizer, name) is not None for name in others):
            raise ValueError(
                f"`tokenizer` has tokens of more codes than {num_levels} levels of {codebook_size}. Use the tokenizer "
                "of the base model, or `SidVocabulary.from_tokenizer`."
            )
        # Not special: text that is decoded for people keeps them. Not normalised: found in any text as they are.
        tokenizer.add_tokens([AddedToken(name, normalized=False) for name in (BEGIN, *names, END)])
        return cls.from_tokenizer(tokenizer)

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> SidVocabulary:
        """
        The token map of a tokenizer that `add_to` has changed, found by the names of the tokens.

        Args:
            tokenizer: A tokenizer of transformers.

        Raises:
            ValueError: If it has no tokens of codes, or some are missing.
        """
        begin_id, end_id = _token_id(tokenizer, BEGIN), _token_id(tokenizer, END)
        num_levels = _number(tokenizer, lambda level: code_name(level, 0) if level < 26 else BEGIN + END)
        codebook_size = _number(tokenizer, lambda code: code_name(0, code))
        if begin_id is None or end_id is None or not num_levels:
            raise ValueError(
                f"`tokenizer` has no tokens of semantic IDs ({BEGIN}, {code_name(0, 0)}, ..., {END}). Add them with "
                "`SidVocabulary.add_to`, or use the tokenizer that was saved beside the model."
            )
        names = [code_name(level, code) for level in range(num_levels) for code in range(codebook_size)]
        found = [_token_id(tokenizer, name) for name in names]
        missing = [name for name, number in zip(names, found, strict=True) if number is None]
        if missing:
            raise ValueError(
                f"`tokenizer` lacks {len(missing)} of {num_levels} x {codebook_size} tokens of codes, the first is "
                f"{missing[0]}. Use the tokenizer that was saved beside the model."
            )
        table = torch.tensor(found).view(num_levels, codebook_size)
        return cls(table, begin_id=begin_id, end_id=end_id)

    @property
    def num_levels(self) -> int:
        """`int`: number of codes of an item."""
        return self.code_token_ids.shape[0]

    @property
    def codebook_size(self) -> int:
        """`int`: number of codes per level."""
        return self.code_token_ids.shape[1]

    @property
    def new_token_ids(self) -> list[int]:
        """
        `list[int]`: rows of the embeddings that must be trained or stored, rising: all tokens of semantic IDs, and
        after `resize` those it drew to fill up, which a reload would draw anew.
        """
        return sorted([*self._own, *self._added_rows])

    @property
    def _own(self) -> list[int]:
        return [self.begin_id, self.end_id, *self.code_token_ids.flatten().tolist()]

    def trainable_token_indices(self, model: Any) -> dict[str, list[int]]:
        """
        What peft's `LoraConfig(trainable_token_indices=...)` takes, so that all new rows are trained and stored.

        Where input and output embeddings are tied the head follows the input, with `ensure_weight_tying=True`; where
        they are two matrices both are named.

        Args:
            model: The causal LM, after `resize`.
        """
        modules = [model.get_input_embeddings()]
        if not _is_tied(model):
            modules.append(model.get_output_embeddings())
        names = {module: name for name, module in model.named_modules()}
        return {names[module].rpartition(".")[2]: self.new_token_ids for module in modules}

    def item_text(self, codes: Sequence[int]) -> str:
        """
        An item as text, for prompts.

        Args:
            codes (`Sequence[int]` of length `num_levels`): The item's codes.
        """
        if len(codes) != self.num_levels:
            raise ValueError(f"`codes` must hold {self.num_levels} codes, got {len(codes)}.")
        return "".join([BEGIN, *(code_name(level, int(code)) for level, code in enumerate(codes)), END])

    def item_tokens(self, codes: Any) -> torch.LongTensor:
        """
        Items as tokens, what the tokenizer makes of `item_text`.

        Args:
            codes (`torch.Tensor` or `np.ndarray` of shape `(..., num_levels)`): Codes of items.

        Returns:
            `torch.LongTensor` of shape `(..., num_levels + 2)`: begin, codes, end.
        """
        codes = torch.as_tensor(np.asarray(codes) if not torch.is_tensor(codes) else codes).long()
        if codes.shape[-1] != self.num_levels:
            raise ValueError(f"`codes` must have {self.num_levels} columns, got shape {tuple(codes.shape)}.")
        table = self.code_token_ids.to(codes.device)
        tokens = table[torch.arange(self.num_levels, device=codes.device), codes]
        padded = torch.nn.functional.pad(tokens, (1, 0), value=self.begin_id)
        return torch.nn.functional.pad(padded, (0, 1), value=self.end_id)  # type: ignore[return-value]

    def resize(
        self,
        model: Any,
        tokenizer: Any,
        *,
        init: str = "mean",
        codes: Any = None,
        texts: Sequence[str] | None = None,
        centroids: Any = None,
        pad_to_multiple_of: int = 64,
        seed: int = 0,
    ) -> None:
        """
        Grow the embeddings of a causal LM to the tokenizer and start the new rows, input and output alike.

        Rows that no token has fill up to the multiple; they get the mean of all, so a reload that resizes the base in
        the same way has the same. A model that has enough rows, as some are published with, keeps its size.

        Args:
            model: A causal LM of transformers, with tied or untied embeddings; it is changed.
            tokenizer: The tokenizer that `add_to` changed.
            init (`str`, defaults to `"mean"`):
                How the row of a code starts. `"mean"`: drawn around the mean of all rows with a billionth of their
                covariance, as transformers does. `"words"`: the mean of the rows of the words in the texts of the
                items that have the code. `"codebook"`: a linear map (ridge regression) from the code's centroid to
                those means, so codes that are near in the quantizer are near here, codes without items too.
            codes (`np.ndarray` of shape `(num_items, num_levels)`, *optional*): For `"words"` and `"codebook"`.
            texts (`list[str]`, *optional*): A text per item, such as its title; likewise.
            centroids (`np.ndarray` of shape `(levels, codebook_size, dimension)`, *optional*):
                For `"codebook"`: `Quantizer.codebooks`. Levels beyond it, of collision codes, start from words.
            pad_to_multiple_of (`int`, defaults to 64): The number of rows is a multiple of it.
            seed (`int`, defaults to 0): Of the draws.

        Raises:
            ValueError: If `init` is unknown, or what it needs is missing or does not fit.
        """
        self._check(init, codes, texts, centroids)
        num_old = model.get_input_embeddings().weight.shape[0]
        wanted = max(num_old, 1 + max(self.new_token_ids), len(tokenizer))
        num_rows = num_old if wanted == num_old else -(-wanted // pad_to_multiple_of) * pad_to_multiple_of
        if num_rows > num_old:
            model.resize_token_embeddings(num_rows, mean_resizing=False)
        own = set(self._own)
        self._added_rows = [row for row in range(num_old, num_rows) if row not in own]
        num_known = min(num_old, *own)  # rows of the old tokens
        heads = [model.get_input_embeddings()] + ([] if _is_tied(model) else [model.get_output_embeddings()])
        words = None if texts is None else tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        for number, head in enumerate(heads):
            with torch.no_grad():
                rows = Rows(head.weight.detach()[:num_known].float().cpu(), seed=seed + number)
                self._start(head, rows, init, codes, words, centroids)

    def _start(self, head: Any, rows: Rows, init: str, codes: Any, words: Any, centroids: Any) -> None:
        """Write the new rows of one matrix."""
        weight = head.weight
        bias = getattr(head, "bias", None)
        own = self._own
        if self._added_rows:
            weight[self._added_rows] = rows.mean.to(weight)
        weight[own] = mean_rows(rows, len(own)).to(weight)
        if init != "mean":
            found = rows_of_words(rows, words, torch.as_tensor(np.asarray(codes)).long(), self.codebook_size)
            if init == "codebook":
                found = rows_of_centroids(rows, found, torch.as_tensor(np.asarray(centroids)).double())
            is_found = found.isfinite().all(-1)  # codes without any item keep their draw
            weight[self.code_token_ids[is_found].to(weight.device)] = found[is_found].to(weight)
        if bias is not None:
            bias[own + self._added_rows] = bias[: rows.values.shape[0]].mean()

    def _check(self, init: str, codes: Any, texts: Any, centroids: Any) -> None:
        if init not in INITS:
            raise ValueError(f"`init` must be one of {', '.join(map(repr, INITS))}, got {init!r}.")
        needed = {"mean": {}, "words": {"codes": codes, "texts": texts}}
        needed["codebook"] = needed["words"] | {"centroids": centroids}
        missing = [name for name, value in needed[init].items() if value is None]
        if missing:
            raise ValueError(f"`init={init!r}` needs {' and '.join(f'`{name}`' for name in missing)}.")
        if init != "mean" and np.shape(codes) != (len(texts), self.num_levels):
            raise ValueError(
                f"`codes` must have shape (num_items, num_levels) = ({len(texts)}, {self.num_levels}), got "
                f"{np.shape(codes)}."
            )
        if init == "codebook" and (np.ndim(centroids) != 3 or np.shape(centroids)[1] != self.codebook_size):
            raise ValueError(
                f"`centroids` must have shape (levels, {self.codebook_size}, dimension), got {np.shape(centroids)}."
            )


def code_name(level: int, code: int) -> str:
    """
    The text of a code's token.

    Args: level from 0, and code.

    >>> code_name(1, 7)
    '<s_b_7>'
    """
    letter = string.ascii_lowercase[level] if level < 26 else f"_{level}"
    return f"<s_{letter}_{code}>"


def _token_id(tokenizer: Any, name: str) -> int | None:
    number = tokenizer.convert_tokens_to_ids(name)
    return number if number is not None and tokenizer.convert_ids_to_tokens(number) == name else None


def _number(tokenizer: Any, name_of: Any) -> int:
    """How many of the names `name_of(0)`, `name_of(1)`, ... a tokenizer has."""
    number = 0
    while _token_id(tokenizer, name_of(number)) is not None:
        number += 1
    return number


def _is_tied(model: Any) -> bool:
    output = model.get_output_embeddings()
    return output is None or output.weight is model.get_input_embeddings().weight
