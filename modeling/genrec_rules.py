"""
Rules of a request: which items may be recommended, as one mask over the items.

Lists of item tokens or masks come in, for all users or per user. A boolean mask `(batch_size or 1, num_items)` goes
out; the search closes every prefix that holds no allowed item, so no beam is spent on it.
"""

import torch


def rule_rows(rule: torch.Tensor | None, users: torch.Tensor | slice) -> torch.Tensor | None:
    """
    A rule for some of the users.

    Args:
        rule (`torch.Tensor`, *optional*): As in `allowed_items`.
        users (`torch.LongTensor` or `slice`): Rows.

    Returns:
        `torch.Tensor`, *optional*: their rows; the rule itself if it is one for all users.
    """
    return rule if rule is None or rule.ndim == 1 or len(rule) == 1 else rule[users]


def check_rule(name: str, rule: torch.Tensor | None, *, config, batch_size: int) -> None:
    """
    Whether a rule has a shape and a content that can be read.

    Args:
        name (`str`): Name of the argument, for the message.
        rule (`torch.Tensor`, *optional*): As in `allowed_items`.
        config: The model's config.
        batch_size (`int`): Number of users.

    Raises:
        ValueError: If it has not.
    """
    if rule is None:
        return
    width = config.num_items if rule.dtype == torch.bool else rule.shape[-1] if rule.ndim else None
    if rule.ndim not in (1, 2) or rule.shape[-1] != width or (rule.ndim == 2 and len(rule) not in (1, batch_size)):
        raise ValueError(
            f"`{name}` must hold item tokens, of shape (n,) or (batch_size, n) = ({batch_size}, n), or be a boolean "
            f"mask over the {config.num_items} items, of shape (num_items,) or (batch_size, num_items); got "
            f"{rule.dtype} of shape {tuple(rule.shape)}."
        )
    if rule.is_floating_point():
        raise ValueError(f"`{name}` must hold integers (item tokens) or booleans, got {rule.dtype}.")
    if rule.dtype != torch.bool and rule.numel():
        is_special = (rule >= 0) & (rule < config.first_latent_token)
        is_item = (rule >= config.first_item_token) & (rule < config.first_item_token + config.num_items)
        wrong = rule[~(is_special | is_item)]
        if len(wrong):
            shown = ", ".join(map(str, wrong[:5].tolist())) + (
                f", ... ({len(wrong)} in all)" if len(wrong) > 5 else ""
            )
            raise ValueError(
                f"`{name}` must hold item tokens in [{config.first_item_token}, "
                f"{config.first_item_token + config.num_items}), padded with the pad token; got {shown}."
            )


def item_mask(rule: torch.Tensor, *, config, device: torch.device) -> torch.BoolTensor:
    """
    The items that a rule names.

    Args:
        rule (`torch.Tensor`): Item tokens `(n,)` or `(batch_size, n)`, or a mask over items; special tokens name none.
        config: The model's config.
        device (`torch.device`): Where the mask is needed.

    Returns:
        `torch.BoolTensor` of shape `(batch_size or 1, num_items)`
    """
    rule = torch.atleast_2d(rule.to(device))
    if rule.dtype == torch.bool:
        return rule
    item = rule.long() - config.first_item_token
    spare = torch.where(item >= 0, item, config.num_items)  # special tokens fall into an extra column
    mask = torch.zeros(len(item), config.num_items + 1, dtype=torch.bool, device=device)
    return mask.scatter_(1, spare, True)[:, :-1]


def allowed_items(
    config,
    exclude_items: torch.Tensor | None,
    allow_items: torch.Tensor | None,
    *,
    device: torch.device,
) -> torch.BoolTensor | None:
    """
    Both rules as one mask: allowed is what `allow_items` names (everything without it) and `exclude_items` does not.

    Args:
        config: The model's config.
        exclude_items (`torch.Tensor`, *optional*):
            Item tokens `(n,)` for all users or `(batch_size, n)`, padded with the pad token; or a boolean mask
            `(num_items,)` or `(batch_size, num_items)`. `None` for none.
        allow_items (`torch.Tensor`, *optional*): In the same forms; `None` for all. Only padding allows nothing.
        device (`torch.device`): Where the mask is needed.

    Returns:
        `torch.BoolTensor` of shape `(batch_size or 1, num_items)`, or `None` without rules. One row is for all users.

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_genrec import GenRecConfig
    >>> config = GenRecConfig(num_items=3)
    >>> first = config.first_item_token
    >>> exclude, allow = torch.tensor([[first], [0]]), torch.tensor([first, first + 2])
    >>> allowed_items(config, exclude, allow, device=torch.device("cpu")).int().tolist()
    [[0, 0, 1], [1, 0, 1]]

    ```
    """
    excluded = None if exclude_items is None else ~item_mask(exclude_items, config=config, device=device)
    allowed = None if allow_items is None else item_mask(allow_items, config=config, device=device)
    if excluded is None or allowed is None:
        return allowed if excluded is None else excluded
    return allowed & excluded


__all__ = ["allowed_items", "check_rule", "item_mask", "rule_rows"]
