"""
The loss of models that predict every code of a semantic ID at once: states and codes in, a scalar out, the gradients
ready with it.

There is one head per level and cosine logits against a table of code embeddings. Written with separate operations,
tensors of `num_positions * num_levels * d_model` and `num_positions * num_levels * codebook_size` elements go through
memory a dozen times each; here one level after the other is computed forward and backward while it is in the cache. On
an accelerator the loop is the same, some twenty kernels per level.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.autograd.function import once_differentiable


def code_loss(
    states: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    table: torch.Tensor,
    codes: torch.LongTensor,
    *,
    temperature: float,
) -> torch.Tensor:
    """
    Cross-entropy of parallel code predictions, summed over positions and averaged over levels.

    A head turns the state `h` into `g = h + SiLU(W h + b)`; the logits of a level are the cosines of `g` and the rows
    of the level's table over the temperature. Under autocast the matrix products run in its dtype, else in that of
    `states`; sums over many terms and the softmax are in float32 at least.

    Takes `states` `(num_positions, d_model)`, `table` `(num_levels, codebook_size, d_model)`, `codes`
    `(num_positions, num_levels)`.
    - `weight` `(num_levels, d_model, d_model)` or `(1, d_model, d_model)`: a matrix per level, or one for all levels;
      `None` for no head (`g = h`).
    - `bias` `(num_levels, d_model)` or `(1, d_model)`: goes with `weight`.
    - `temperature`: positive; cosines are divided by it.
    Returns a scalar, float32 (float64 for float64 states), differentiable once with respect to `states`, `weight`,
    `bias` and `table`.
    Raises `ValueError` if `temperature` is not positive, or `codes` or `weight` does not fit `states` and `table`.

    Source: Hou et al. 2025 (RPG), section 3.2 (https://huggingface.co/papers/2506.05781).

    Example:

    ```python
    >>> states, table = torch.tensor([[3.0, 0.0]]), torch.tensor([[[1.0, 0.0], [0.0, 5.0]]])
    >>> loss = code_loss(states, None, None, table, torch.tensor([[0]]), temperature=0.5)
    >>> round(loss.item(), 4)  # -log(e^2 / (e^2 + e^0))
    0.1269

    ```
    """
    num_levels = table.shape[0]
    if not temperature > 0:
        raise ValueError(f"`temperature` must be positive, got {temperature}.")
    if codes.shape != (states.shape[0], num_levels):
        raise ValueError(
            f"`codes` must have a row per position and a column per level, {(states.shape[0], num_levels)}, got "
            f"{tuple(codes.shape)}."
        )
    if (weight is None) != (bias is None):
        raise ValueError("`weight` and `bias` must both be given or both be `None`.")
    if weight is not None and weight.shape[0] not in (1, num_levels):
        raise ValueError(f"`weight` must have 1 or {num_levels} matrices, got {weight.shape[0]}.")
    device_type = states.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else states.dtype
    inputs = (states, weight, bias, table)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        return _CodeLoss.apply(*inputs, codes, temperature, dtype)
    with torch.autocast(device_type, enabled=False):
        return _loss(*inputs, codes, temperature, dtype)


def _loss(
    states: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    table: torch.Tensor,
    codes: torch.Tensor,
    temperature: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The loss alone."""
    wide = torch.promote_types(dtype, torch.float32)
    states = states.to(dtype)
    loss = states.new_zeros((), dtype=wide)
    for head, levels in _heads(weight, bias, len(table), dtype):
        _, outputs = _apply(head, states)
        scale = _inverse_norm(outputs, wide) / temperature
        for rows, targets in zip(table[levels], codes[:, levels].unbind(1), strict=True):
            units = (rows * _inverse_norm(rows, wide)).to(dtype)
            loss += nn.functional.cross_entropy(torch.mm(outputs, units.t()) * scale, targets, reduction="sum")
    return loss / len(table)


def _heads(
    weight: torch.Tensor | None, bias: torch.Tensor | None, num_levels: int, dtype: torch.dtype
) -> Iterator[tuple[tuple[torch.Tensor, torch.Tensor] | None, slice]]:
    """Matrix and bias of each head (`None` without heads) for the matrix products, and the levels that read it."""
    if weight is None or bias is None:
        yield None, slice(None)
    else:
        per_head = num_levels // len(weight)
        for index in range(len(weight)):
            yield (weight[index].to(dtype), bias[index].to(dtype)), slice(index * per_head, (index + 1) * per_head)


def _apply(head: tuple[torch.Tensor, torch.Tensor] | None, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into SiLU (unused without a head) and the head's output."""
    if head is None:
        return states, states
    inner = torch.addmm(head[1], states, head[0].t())
    return inner, nn.functional.silu(inner).add_(states)


def _inverse_norm(rows: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    """One over the length of each row, with a last dimension of 1."""
    return torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=wide).clamp_min_(1e-12).reciprocal_()


class _CodeLoss(torch.autograd.Function):
    """Computes the gradients with the loss; `backward` only scales them."""

    @staticmethod
    def forward(ctx, states, weight, bias, table, codes, temperature, dtype):
        ctx.save_for_backward(states, weight, bias, table, codes)
        ctx.settings = temperature, dtype
        with torch.autocast(states.device.type, enabled=False):
            loss, ctx.gradients = _loss_and_gradients(states, weight, bias, table, codes, temperature, dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss):
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # backward for a second time: the first gave the gradients away
            with torch.autocast(d_loss.device.type, enabled=False):
                _, gradients = _loss_and_gradients(*ctx.saved_tensors, *ctx.settings)
        scale = d_loss / (len(ctx.saved_tensors[3]) * ctx.settings[0])
        inputs = zip(gradients, ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        scaled = [gradient.mul_(scale).to(old.dtype) if needed else None for gradient, old, needed in inputs]
        return *scaled, None, None, None


def _loss_and_gradients(
    states: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    table: torch.Tensor,
    codes: torch.Tensor,
    temperature: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """
    The loss, and `num_levels * temperature` times its gradients with respect to states, weight, bias and table, in
    float32 at least.
    """
    wide = torch.promote_types(dtype, torch.float32)
    states = states.to(dtype)
    d_states = torch.zeros_like(states, dtype=wide)
    d_weight, d_bias, d_table = (
        torch.empty_like(states[:0] if old is None else old, dtype=wide) for old in (weight, bias, table)
    )
    loss = states.new_zeros((), dtype=wide)
    for index, (head, levels) in enumerate(_heads(weight, bias, len(table), dtype)):
        inner, outputs = _apply(head, states)
        levels_loss, d_outputs = _score(outputs, table[levels], codes[:, levels], temperature, d_table[levels])
        loss += levels_loss
        if head is not None:
            d_inner = torch.ops.aten.silu_backward(d_outputs, inner)
            d_weight[index] = torch.mm(d_inner.t(), states)
            d_bias[index] = d_inner.sum(0)
            d_outputs = torch.addmm(d_outputs, d_inner, head[0])
        torch.add(d_states, d_outputs, out=d_states)  # twice as fast as `+=` where the types differ
    return loss / len(table), [d_states, d_weight, d_bias, d_table]


def _score(
    outputs: torch.Tensor, table: torch.Tensor, codes: torch.Tensor, temperature: float, d_table: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The loss of the levels that read the same `outputs`, and its gradient with respect to those; that with respect to
    the rows of the table is written into `d_table`.

    With `u = g / |g|` of the output `g`, unit rows `t` and `e = softmax(u t / temperature) - target`, the gradient of
    `t` is `sum e u` and that of `g` is `(sum e t - u (u . sum e t)) / |g|`, both over `num_levels * temperature`, by
    which the caller divides. Both products take `e / |g|`, and `u . sum e t` is the sum of errors times cosines.
    """
    wide, dtype = d_table.dtype, outputs.dtype
    inverse = _inverse_norm(outputs, wide)
    loss, radial = outputs.new_zeros((), dtype=wide), torch.zeros_like(inverse)
    d_outputs = torch.empty_like(outputs)
    for level, (rows, d_rows) in enumerate(zip(table, d_table, strict=True)):
        inverse_rows = _inverse_norm(rows, wide)
        wide_units = rows * inverse_rows
        units, targets = wide_units.to(dtype), codes[:, level, None]
        logits = torch.mm(outputs, units.t()).to(wide).mul_(inverse / temperature)
        errors = torch.softmax(logits, dim=1)  # (num_positions, codebook_size), float32; becomes softmax - target
        # the largest probability is at least 1 / codebook_size, so it has a logarithm where the target's may not
        loss += (logits.amax(1) - errors.amax(1).log_()).sum() - logits.gather(1, targets).sum()
        errors.scatter_add_(1, targets, errors.new_full((1, 1), -1.0).expand_as(targets))
        radial.addcmul_(logits.mul_(errors).sum(1, keepdim=True), inverse, value=temperature)
        errors = errors.mul_(inverse).to(dtype)  # e / |g|, which both products below take
        d_level = torch.mm(errors, units)
        d_outputs = d_level if level == 0 else d_level.to(wide).add_(d_outputs)
        d_units = torch.mm(errors.t(), outputs).to(wide)
        d_units.addcmul_(wide_units, (wide_units * d_units).sum(1, keepdim=True), value=-1)
        torch.mul(d_units, inverse_rows, out=d_rows)
    radial = (radial * inverse).neg_().to(dtype)
    return loss, d_outputs.to(dtype).addcmul_(outputs, radial)


__all__ = ["code_loss"]
