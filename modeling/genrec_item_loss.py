"""
The loss of models that score every item: cross-entropy over the catalog, in full or with a sample of the items.
"""

import torch
from torch.autograd.function import once_differentiable


# Logits that exist at a time. With 12,101 items and a width of 64 a core is fastest at this number, by a fifth over a
# quarter or four times as many.
LOGITS_AT_A_TIME = 1 << 21
ACCELERATOR_LOGITS_AT_A_TIME = 1 << 26


def item_loss(states: torch.Tensor, table: torch.Tensor, items: torch.LongTensor) -> torch.Tensor:
    """
    Cross-entropy of items whose logits are the inner products of a state and their rows, summed over targets.

    The logits, a number per target and item, are the largest tensor of such a model by far; here they exist for a few
    targets at a time. Under autocast the matrix products run in its dtype, else in that of `states`; the softmax is
    in float32 at least.

    Args:
        states (`torch.Tensor` of shape `(num_targets, d_model)`): What the encoder says at each target.
        table (`torch.Tensor` of shape `(num_items, d_model)`): Embeddings of the items.
        items (`torch.LongTensor` of shape `(num_targets,)`): Item indices of the targets.

    Returns:
        `torch.Tensor`: a scalar, float32 (float64 for float64 states), differentiable once with respect to `states`
        and `table`.

    Raises:
        ValueError: If there is not one item per state.

    Example:

    ```python
    >>> states, table = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    >>> round(item_loss(states, table, torch.tensor([0])).item(), 4)  # -log(e^2 / (e^2 + e^0))
    0.1269

    ```
    """
    if items.shape != states.shape[:1]:
        raise ValueError(f"`items` must have shape {tuple(states.shape[:1])}, got {tuple(items.shape)}.")
    device_type = states.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else states.dtype
    with torch.autocast(device_type, enabled=False):
        return _ItemLoss.apply(states, table, items, dtype)


def sampled_item_loss(
    states: torch.Tensor,
    target_rows: torch.Tensor,
    drawn_rows: torch.Tensor,
    items: torch.LongTensor,
    drawn: torch.LongTensor,
    *,
    num_items: int,
) -> torch.Tensor:
    """
    An estimate of `item_loss` from some of the items, drawn uniformly without replacement, the same for all targets.

    The drawn items stand for all but the target: each counts `(num_items - 1) / n` times, `n` being the number of
    those that are not the target. With all items drawn it is the full loss.

    Args:
        states (`torch.Tensor` of shape `(num_targets, d_model)`): What the encoder says at each target.
        target_rows (`torch.Tensor` of shape `(num_targets, d_model)`): Embeddings of the targets.
        drawn_rows (`torch.Tensor` of shape `(num_drawn, d_model)`): Embeddings of the drawn items.
        items (`torch.LongTensor` of shape `(num_targets,)`): Item indices of the targets.
        drawn (`torch.LongTensor` of shape `(num_drawn,)`): Item indices of the drawn items.
        num_items (`int`): Size of the catalog.

    Returns:
        `torch.Tensor`: a scalar, float32 at least.

    Source: sampled softmax, Bengio and Senecal 2008, with uniform draws (https://doi.org/10.1109/TNN.2007.912312).

    Example:

    ```python
    >>> states, table = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    >>> items, drawn = torch.tensor([0]), torch.tensor([1, 0])
    >>> round(sampled_item_loss(states, table[items], table[drawn], items, drawn, num_items=2).item(), 4)
    0.1269

    ```
    """
    own = (states * target_rows).sum(-1, keepdim=True)
    others = states @ drawn_rows.t()
    wide = torch.promote_types(others.dtype, torch.float32)
    is_own = items.unsqueeze(1) == drawn
    num_others = len(drawn) - is_own.sum(1, keepdim=True)
    others = others.to(wide).masked_fill(is_own, -float("inf")) + ((num_items - 1) / num_others).log()
    return (torch.cat([own.to(wide), others], dim=1).logsumexp(1) - own.to(wide)[:, 0]).sum()


class _ItemLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, table, items, dtype):
        wide = torch.promote_types(dtype, torch.float32)
        rows, inputs = table.to(dtype), states.to(dtype)
        loss = torch.zeros((), dtype=wide, device=states.device)
        needs_gradient = any(ctx.needs_input_grad)
        if needs_gradient:
            state_gradient = torch.empty_like(inputs)
            table_gradient = torch.zeros(table.shape, dtype=wide, device=table.device)
        num_logits = LOGITS_AT_A_TIME if states.device.type == "cpu" else ACCELERATOR_LOGITS_AT_A_TIME
        size = max(1, num_logits // len(table))
        for start in range(0, len(items), size):
            part, targets = inputs[start : start + size], items[start : start + size].unsqueeze(1)
            log_probs = torch.mm(part, rows.t()).log_softmax(1, dtype=wide)
            target_log_probs = log_probs.gather(1, targets)
            loss -= target_log_probs.sum()
            if needs_gradient:
                error = log_probs.exp_().scatter_(1, targets, target_log_probs.expm1()).to(dtype)
                torch.mm(error, rows, out=state_gradient[start : start + size])
                table_gradient += torch.mm(error.t(), part)
        if needs_gradient:
            ctx.save_for_backward(state_gradient.to(states.dtype), table_gradient.to(table.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        states, table = ctx.saved_tensors
        return states * gradient, table * gradient, None, None


__all__ = ["item_loss", "sampled_item_loss"]
