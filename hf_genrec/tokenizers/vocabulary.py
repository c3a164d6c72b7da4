"""
Item ids and a token layout in, a Hub tokenizer out: one id, one token.

The tokenizer is a `tokenizers` WordLevel model over the whole vocabulary of a checkpoint (special tokens, latents,
codes, items), so it reads histories and prints everything that a model generates. It needs no package of ours to load.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from hf_genrec.files import read_json, reading
from hf_genrec.modeling.configuration_genrec import GenRecConfig
from tokenizers import Tokenizer


def vocabulary(item_ids: Sequence[str], config: GenRecConfig) -> list[str]:
    """
    The string of every token in the order of the tokens: special ones, latents, codes level by level, items. Ids must
    be distinct, not empty, and no other token's string. Args: see [`build_tokenizer`].
    """
    if len(item_ids) != config.num_items:
        raise ValueError(f"`item_ids` must hold {config.num_items} ids (`config.num_items`), got {len(item_ids)}.")
    tokens = ["<pad>", "<unk>", "<eos>", "<user>"]
    tokens += [f"<latent_{latent}>" for latent in range(config.num_latent_tokens)]
    tokens += [f"<code_{level}_{code}>" for level in range(config.num_levels) for code in range(config.codebook_size)]
    taken = {"", *tokens}
    refused = [item_id for item_id in item_ids if item_id in taken]
    if refused:
        raise ValueError(
            f"{len(refused)} item ids are empty or the name of a special token: {', '.join(map(repr, refused[:5]))}. "
            "Rename these items."
        )
    if len(set(item_ids)) < len(item_ids):
        raise ValueError(f"{len(item_ids) - len(set(item_ids))} item ids occur twice; every item needs its own.")
    return [*tokens, *item_ids]


def build_tokenizer(
    item_ids: Sequence[str], config: GenRecConfig, *, max_history_length: int = 20
) -> PreTrainedTokenizerFast:
    """
    The tokenizer of a checkpoint. Histories are truncated and padded on the left, so the latest items stay; unknown
    ids become `<unk>`.

    Call it with lists of ids and `is_split_into_words=True`; a bare string is one id, spaces and all.

    Args: item ids in row order, see [`vocabulary`]; the token layout; and the items kept by `truncation=True`.

    >>> tokenizer = build_tokenizer(["soap", "tooth brush"], GenRecConfig(num_items=2, num_levels=1, codebook_size=2))
    >>> tokenizer(["tooth brush", "comb", "soap"], is_split_into_words=True).input_ids
    [7, 1, 6]
    >>> tokenizer.decode([0, 5, 7])
    '<pad> <code_0_1> tooth brush'
    """
    tokens = vocabulary(item_ids, config)
    # no pre-tokenizer: an id is one word, with any characters
    backend = Tokenizer(WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        truncation_side="left",
        model_max_length=max_history_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # an id that holds "<pad>" or "<unk>" stays one word
    )


def check_vocabulary(path: Path, item_ids: Sequence[str], config: GenRecConfig) -> None:
    """
    Whether a `tokenizer.json` holds these items, in their order, behind the other tokens; a `ValueError` if not.

    The file is read as JSON: for a million items that takes a third of what building the tokenizer does, which is
    needed by those alone who ask `AutoTokenizer` for it. Args: the file; for the others see [`vocabulary`].
    """
    content = read_json(path)
    with reading(path, "tokenizer of this library"):
        number_of: dict[str, int] = content["model"]["vocab"]
        added = {token["content"] for token in content["added_tokens"]}
        numbers, tokens = list(number_of.values()), list(number_of)
        if numbers != list(range(len(numbers))):  # as we write them they stand in their order
            numbers, tokens = sorted(numbers), sorted(number_of, key=number_of.__getitem__)
        is_whole = numbers == list(range(len(numbers))) and added <= number_of.keys()
    if not is_whole or tokens[config.first_item_token :] != list(item_ids):
        raise ValueError(
            f"The tokenizer (tokenizer.json) does not hold the items of {path.with_name('items.parquet')} in their "
            "order. Use the tokenizer that was written beside these weights."
        )
