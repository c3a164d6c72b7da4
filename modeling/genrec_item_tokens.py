"""What a batch says: its histories of item ids; of its tokens, which count as items and which have a target."""

from collections.abc import Sequence

import torch


def as_histories(histories: Sequence[Sequence[str]] | Sequence[str]) -> list[list[str]]:
    """
    A batch of histories, whether one flat history or a batch was given.

    Args:
        histories (`list[list[str]]` or `list[str]`):
            Item ids, oldest first. An empty list is one user without a history.

    Returns:
        `list[list[str]]`: one list per user.

    Raises:
        TypeError: If `histories` is one string, mixes strings and lists, or holds ids that are no strings.

    Example:

    ```python
    >>> as_histories(["soap", "brush"])
    [['soap', 'brush']]
    >>> as_histories([["soap"], []]), as_histories([])
    ([['soap'], []], [[]])

    ```
    """
    if isinstance(histories, str):
        raise TypeError(
            f"`histories` must be a list of item ids or a list of such lists, got the string {histories!r}."
        )
    is_string = [isinstance(entry, str) for entry in histories]
    if any(is_string) and not all(is_string):
        raise TypeError("`histories` must be a list of item ids or a list of such lists, got a mixture of both.")
    if all(is_string):
        return [[str(item_id) for item_id in histories]]
    for history in histories:
        wrong = [item_id for item_id in history if not isinstance(item_id, str)]
        if wrong:
            raise TypeError(f"Item ids must be strings, got {wrong[0]!r} of type {type(wrong[0]).__name__}.")
    return [list(history) for history in histories]


class ItemTokensMixin:
    """Reads the token layout of `config`; for every model whose histories and targets are item tokens."""

    def is_item(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None) -> torch.BoolTensor:
        """
        Which positions hold an item that counts.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, history_length)`): Tokens.
            attention_mask (`torch.Tensor`, same shape, *optional*): 1 at tokens that count; `None` for all.

        Returns:
            `torch.BoolTensor`, same shape: `False` at padding, unknown and special tokens.

        Raises:
            ValueError: If a token lies behind the last item.
        """
        config = self.config
        if input_ids.numel() and int(input_ids.max()) >= config.first_item_token + config.num_items:
            raise ValueError(
                f"`input_ids` holds token {int(input_ids.max())}; the last item token of this catalog is "
                f"{config.first_item_token + config.num_items - 1}."
            )
        is_item = input_ids >= config.first_item_token
        return is_item if attention_mask is None else is_item & attention_mask.bool()

    def is_target(self, input_ids: torch.LongTensor, labels: torch.LongTensor) -> torch.BoolTensor:
        """
        Which positions have a label.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, history_length)`): Tokens.
            labels (`torch.LongTensor`, same shape): At each position the token of the next item, or -100.

        Returns:
            `torch.BoolTensor`, same shape: `False` at -100.

        Raises:
            ValueError: If the shapes differ or a label is neither an item nor -100.
        """
        first, end = self.config.first_item_token, self.config.first_item_token + self.config.num_items
        if labels.shape != input_ids.shape:
            shape, found = tuple(input_ids.shape), tuple(labels.shape)
            raise ValueError(f"`labels` must have the shape of `input_ids`, {shape}, got {found}.")
        is_target = labels != -100
        if bool((is_target & ((labels < first) | (labels >= end))).any()):
            raise ValueError(f"`labels` must be item tokens in [{first}, {end}) or -100.")
        return is_target


__all__ = ["ItemTokensMixin", "as_histories"]
