"""
Models that predict every code of a semantic ID at once: their loss, and the scores of all items by table look-up.

Log-probabilities per level `(B, L, K)` and the codes of all items `(N, L)` come in; the score of an item, the sum of
the log-probabilities of its codes, goes out: for all items, for some, or as the best `top_k` of each user. Codes count
from 0 at every level. Two items may have the same codes; equal scores are ranked by the lower item index.

For the loss there is one head per level and cosine logits against a table of code embeddings. Written with separate
operations, tensors of `num_positions * num_levels * d_model` and `num_positions * num_levels * codebook_size` elements
go through memory a dozen times each; here one level after the other is computed forward and backward while it is in
the cache. On an accelerator the loop is the same, some twenty kernels per level.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .genrec_lists import first_of_the_best, numbered


# On the CPU a table of 64 users and a piece of the scores stay in the cache of a core: measured on two cores at 32
# levels of 256 codes, 7 microseconds per user and 12,101 items, where a table of 256 users takes 65.
USERS_PER_TABLE = 64
SCORES_AT_A_TIME = 1 << 19
# An accelerator wants large pieces.
ACCELERATOR_USERS_PER_TABLE = 1024
ACCELERATOR_SCORES_AT_A_TIME = 1 << 24
ACCELERATOR_PAIRS_AT_A_TIME = 1 << 20
PAIRS_AT_A_TIME = 1 << 13
SCORING_BYTES = 24  # per score that is held at a time: itself, transposed, ranked, and its place while it is sorted


def item_scores(log_probs: torch.Tensor, item_codes: torch.Tensor) -> torch.FloatTensor:
    """
    Scores of all items `(B, N)`, float32, for catalogs that are small enough to hold them.

    >>> log_probs = torch.tensor([[[-1.0, -2.0], [-0.5, -8.0]]])  # one user, two levels of two codes
    >>> item_scores(log_probs, torch.tensor([[0, 0], [1, 0], [1, 1]])).tolist()
    [[-1.5, -2.5, -10.0]]
    """
    scores = torch.empty(len(log_probs), len(item_codes), device=log_probs.device)
    for users, items, part in _pieces(log_probs, item_codes):
        scores[users, items] = part.t()
    return scores


def candidate_scores(log_probs: torch.Tensor, item_codes: torch.Tensor, items: torch.LongTensor) -> torch.FloatTensor:
    """
    Scores of some items `(B, n)` of each user; bit for bit those of `item_scores`.

    >>> log_probs = torch.tensor([[[-1.0, -2.0], [-0.5, -8.0]]])
    >>> candidate_scores(log_probs, torch.tensor([[0, 0], [1, 0], [1, 1]]), torch.tensor([[2, 0]])).tolist()
    [[-10.0, -1.5]]
    """
    users = torch.arange(len(items), device=items.device).repeat_interleave(items.shape[1])
    return pair_scores(log_probs, item_codes, users, items.flatten()).view(items.shape)


def pair_scores(
    log_probs: torch.Tensor, item_codes: torch.Tensor, users: torch.LongTensor, items: torch.LongTensor
) -> torch.FloatTensor:
    """
    Scores `(n,)` of any pairs of a user, a row of `log_probs`, and an item; bit for bit those of `item_scores`.

    >>> log_probs = torch.tensor([[[-1.0, -2.0]], [[-3.0, -4.0]]])
    >>> pair_scores(log_probs, torch.tensor([[1], [0]]), torch.tensor([1, 1, 0]), torch.tensor([0, 1, 0])).tolist()
    [-4.0, -3.0, -2.0]
    """
    _, num_levels, codebook_size = log_probs.shape
    table = log_probs.float().reshape(-1, 1)
    row_type = torch.int32 if len(table) < 1 << 31 else torch.int64
    levels = torch.arange(num_levels, dtype=row_type, device=items.device) * codebook_size
    first_row = (users * (num_levels * codebook_size)).to(row_type).unsqueeze(1)
    size = PAIRS_AT_A_TIME if items.device.type == "cpu" else ACCELERATOR_PAIRS_AT_A_TIME
    scores = [torch.zeros(0, device=log_probs.device)]
    for some_items, some_rows in zip(items.split(size), first_row.split(size), strict=True):
        rows = item_codes.index_select(0, some_items) + levels
        scores.append(torch.nn.functional.embedding_bag(rows.add_(some_rows), table, mode="sum")[:, 0])
    return torch.cat(scores)


def code_scores(log_probs: torch.Tensor, codes: torch.Tensor) -> torch.FloatTensor:
    """
    Log-probability of each code of some semantic IDs `(B, n, L)`; their sum is the score.

    >>> code_scores(torch.tensor([[[-1.0, -2.0], [-0.5, -8.0]]]), torch.tensor([[[1, 0]]])).tolist()
    [[[-2.0, -0.5]]]
    """
    return log_probs.float().gather(2, codes.long().transpose(1, 2)).transpose(1, 2)


def best_items(
    log_probs: torch.Tensor,
    item_codes: torch.Tensor,
    *,
    top_k: int,
    allowed: torch.BoolTensor | None = None,
    penalty: torch.Tensor | None = None,
    noise: Callable[[slice, slice], torch.Tensor] | None = None,
    memory_budget: int = 2 << 30,
) -> tuple[torch.LongTensor, torch.FloatTensor]:
    """
    The best items of each user, exactly, in memory that does not grow with the catalog: items are scored piece by
    piece, and what is kept is the best so far.

    The tables of a few users stand side by side, `(num_levels * codebook_size, users)`, and an item is a bag of
    `num_levels` rows of it, so each look-up reads the numbers of all these users in a row.

    - `allowed` `(B or 1, N)`: items that may be listed; `None` for all.
    - `penalty` `(N,)`: what is subtracted from the score of each item in ranking, not in the scores returned.
    - `noise`: from a range of users and one of items to what is added in ranking, `(users, items)`.
    - `memory_budget`: bytes by which pieces are made smaller than they would be.
    Returns item indices and scores, both `(B, top_k)`, best first; -1 and `-inf` where fewer items are
    allowed. Where two rank equally the lower index stands first, and neither the other users nor the size of the
    pieces change a list.

    >>> log_probs = torch.tensor([[[-1.0, -2.0], [-0.5, -8.0]]])
    >>> codes = torch.tensor([[1, 1], [0, 0], [1, 0], [0, 0]])
    >>> [values.tolist() for values in best_items(log_probs, codes, top_k=3)]
    [[[1, 3, 2]], [[-1.5, -1.5, -2.5]]]
    """
    infinity = float("inf")
    shape, device = (len(log_probs), top_k), log_probs.device
    best = torch.full(shape, -1, device=device)
    best_scores, best_ranked = torch.full(shape, -infinity, device=device), torch.full(shape, -infinity, device=device)
    pieces = _pieces(
        log_probs,
        item_codes,
        least_items=2 * top_k,
        most_scores=memory_budget // SCORING_BYTES,
    )
    for users, items, scores in pieces:
        ranked = scores  # (items, users)
        if penalty is not None:
            ranked = ranked - penalty[items].unsqueeze(1)
        if noise is not None:
            ranked = ranked + noise(users, items).t()
        if allowed is not None:
            rows = allowed if len(allowed) == 1 else allowed[users]
            ranked = ranked.masked_fill(~rows[:, items].t(), -infinity)
        index, part = _candidates(ranked, best_ranked[users], is_first=items.start == 0)
        found = scores.t().gather(1, index)
        # behind the best of earlier pieces, whose indices are lower
        ranked = torch.cat([best_ranked[users], part], dim=1)
        kept = ranked.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
        best_ranked[users] = ranked.gather(1, kept)
        best[users] = torch.cat([best[users], index + items.start], dim=1).gather(1, kept)
        best_scores[users] = torch.cat([best_scores[users], found], dim=1).gather(1, kept)
    is_none = best_ranked == -infinity
    return best.masked_fill_(is_none, -1), best_scores.masked_fill_(is_none, -infinity)


def users_per_table(device: torch.device) -> int:
    """Users whose scores are computed together."""
    return USERS_PER_TABLE if device.type == "cpu" else ACCELERATOR_USERS_PER_TABLE


def _candidates(
    ranked: torch.FloatTensor, best_ranked: torch.FloatTensor, *, is_first: bool
) -> tuple[torch.LongTensor, torch.FloatTensor]:
    """
    What of a piece `(items, users)` may come into the lists of the users: positions and values `(users, n)`, in an
    order in which a stable sort puts equal ones as they should stand. Few items are better than the last of a list
    that earlier pieces left, so a comparison finds them, in less time than a search for the best of the piece.
    """
    num_users, top_k = best_ranked.shape
    place = user = None
    if not is_first:
        place, user = (ranked > best_ranked[:, -1]).nonzero(as_tuple=True)
    if user is None or len(user) > 4 * num_users * top_k:
        values = ranked.t().contiguous()
        index = first_of_the_best(values, top_k)
        return index, values.gather(1, index)
    user, order = user.sort(stable=True)
    counts = user.bincount(minlength=num_users)
    _, column = numbered(counts)  # of each candidate among those of its user
    shape = (num_users, int(counts.max()))
    index = torch.zeros(shape, dtype=torch.long, device=user.device)
    values = torch.full(shape, -float("inf"), device=user.device)
    index[user, column] = place[order]
    values[user, column] = ranked[place[order], user]
    return index, values


def _pieces(
    log_probs: torch.Tensor,
    item_codes: torch.Tensor,
    *,
    least_items: int = 1,
    most_scores: int = 1 << 62,
) -> Iterator[tuple[slice, slice, torch.FloatTensor]]:
    """Ranges of users and of items with their scores `(items, users)`, the items of each user in ascending order."""
    if not len(log_probs):
        return
    is_cpu = log_probs.device.type == "cpu"
    codebook_size = log_probs.shape[-1]
    first_rows = codebook_size * torch.arange(item_codes.shape[1], dtype=torch.int32, device=item_codes.device)
    groups = log_probs.float().flatten(1).split(users_per_table(log_probs.device))
    # rows that hold all users; a clone, since of one user the transpose counts as contiguous with strides that take a
    # slow path
    tables = [group.t().clone(memory_format=torch.contiguous_format) for group in groups]
    num_scores = SCORES_AT_A_TIME if is_cpu else ACCELERATOR_SCORES_AT_A_TIME
    num_together = max(least_items, min(num_scores, most_scores) // len(groups[0]))
    for first_item in range(0, len(item_codes), num_together):
        items = slice(first_item, min(len(item_codes), first_item + num_together))
        rows = item_codes[items] + first_rows
        first_user = 0
        for group, table in zip(groups, tables, strict=True):
            users = slice(first_user, first_user + len(group))
            yield users, items, torch.nn.functional.embedding_bag(rows, table, mode="sum")
            first_user = users.stop


# --- the loss ----------------------------------------------------------------------------------------------------


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
    `(num_positions, num_levels)`, and a `weight` `(num_levels or 1, d_model, d_model)` and `bias` per level or one for
    all levels; `None` for no head (`g = h`). Returns a scalar, float32 at least, differentiable once with respect to
    all but `codes`.

    Source: Hou et al. 2025 (RPG), section 3.2 (https://huggingface.co/papers/2506.05781).

    >>> states, table = torch.tensor([[3.0, 0.0]]), torch.tensor([[[1.0, 0.0], [0.0, 5.0]]])
    >>> loss = code_loss(states, None, None, table, torch.tensor([[0]]), temperature=0.5)
    >>> round(loss.item(), 4)  # -log(e^2 / (e^2 + e^0))
    0.1269
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


def _loss(states, weight, bias, table, codes, temperature: float, dtype: torch.dtype) -> torch.Tensor:
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
    states, weight, bias, table, codes, temperature: float, dtype: torch.dtype
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
