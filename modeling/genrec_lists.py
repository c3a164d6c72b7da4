"""
What makes a list of scores: which items are open, rules, diversity, and the best of some scores or a sample.

Scores stay log-probabilities of the model; only which items come and in what order changes. Choices come out the same
in whatever pieces and on whatever device they are made. `torch.topk` leaves open which of several equal values it
takes; here the first wins. A generator gives a user other numbers when users or items are computed in other pieces;
here each number is a hash of the seed, a number of the user and a number of the item.
"""

import hashlib
import json
import math
from pathlib import Path

import torch

from .genrec_folder import optional_file


VERSIONS_FILE = "catalog/versions.json"  # in which a folder keeps the versions of its catalog


# --- items that are closed -------------------------------------------------------------------------------------
#
# A removed item keeps its row, token and semantic ID, so that histories with it stay readable; it is closed: no list
# holds it and no probability is left to it. Which rows are closed stands in the config as ranges such as `"3,7-9"`.


def ranges_of(rows: torch.BoolTensor) -> str:
    """
    The places of `True` in `(num_items,)` as ranges.

    >>> ranges_of(torch.tensor([False, True, False, True, True, True]))
    '1,3-5'
    """
    places = rows.nonzero()[:, 0].tolist()
    parts: list[str] = []
    start = 0
    for end in range(1, len(places) + 1):
        if end == len(places) or places[end] != places[end - 1] + 1:
            first, last = places[start], places[end - 1]
            parts.append(str(first) if first == last else f"{first}-{last}")
            start = end
    return ",".join(parts)


def rows_of(ranges: str | None, num_items: int) -> torch.BoolTensor:
    """
    What `ranges_of` wrote as a mask `(num_items,)`; places from `num_items` on are left out.

    >>> rows_of("1,3-5,9", 6).int().tolist()
    [0, 1, 0, 1, 1, 1]
    """
    rows = torch.zeros(num_items, dtype=torch.bool)
    set_rows(rows, ranges, True)
    return rows


def set_rows(rows, ranges: str | None, value: bool) -> None:
    """Write `value` at the places of `ranges` into a mask `(num_items,)`, a tensor or an array."""
    try:
        for part in ranges.split(",") if ranges else ():
            first, _, last = part.partition("-")
            rows[int(first) : int(last or first) + 1] = value
    except ValueError as error:
        raise ValueError(f"`closed_items` must be rows and ranges such as '3,7-9', got {ranges[:50]!r}.") from error


def read_versions(path: str | Path) -> dict:
    """What a file of versions holds, after comparing it with its own digest; `ValueError` if it is damaged."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        is_whole = content.pop("digest") == digest_of(content)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{path} is damaged: it must be the one that was saved. Write or fetch the folder again.")
    return content


def digest_of(content: dict) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class LiveItemsMixin:
    """What of a model's items is open; for every model whose config has `closed_items`."""

    num_unread_items = 0  # added after training, in a file that `from_pretrained` of a model does not read
    _open_items: tuple[str, torch.Tensor] | None = None

    @property
    def open_items(self) -> torch.BoolTensor | None:
        """Which items may be recommended, `(num_items,)`; `None` where all may."""
        ranges = self.config.closed_items
        if not ranges:
            return None
        if self._open_items is None or self._open_items[0] != ranges or self._open_items[1].device != self.device:
            self._open_items = ranges, (~rows_of(ranges, self.config.num_items)).to(self.device)
        return self._open_items[1]

    @property
    def new_items(self) -> torch.BoolTensor | None:
        """Which open items came after training, `(num_items,)`; `None` where none did."""
        ranges, is_open = self.config.new_items, self.open_items
        is_new = rows_of(ranges, self.config.num_items).to(self.device) if ranges else None
        return is_new if is_new is None or is_open is None else is_new & is_open

    def only_open(self, logits: torch.Tensor) -> torch.Tensor:
        """Scores of all items `(..., num_items)` with `-inf` for those that are closed."""
        is_open = self.open_items
        return logits if is_open is None else logits.masked_fill(~is_open, -float("inf"))

    def allowed_and_open(self, allowed: torch.BoolTensor | None) -> torch.BoolTensor | None:
        """Of the items that rules allow `(batch_size or 1, num_items)`, `None` for all, those that are open."""
        is_open = self.open_items
        if is_open is None or allowed is None:
            return allowed if is_open is None else is_open.unsqueeze(0)
        return allowed & is_open

    def close_items(self, closed: torch.BoolTensor) -> None:
        """
        Say which items are closed, `(num_items,)`; others are open. Raises `ValueError` for another shape, or if none
        were left.
        """
        if closed.dtype != torch.bool or tuple(closed.shape) != (self.config.num_items,) or bool(closed.all()):
            raise ValueError(
                f"`closed` must be a mask over the {self.config.num_items} items that leaves one open, got "
                f"{closed.dtype} of shape {tuple(closed.shape)} with {int((closed == 0).sum())} open."
            )
        self.config.closed_items = ranges_of(closed) or None
        self._open_items = self._catalog = None

    def read_removals(self, source, where: dict) -> None:
        """
        Close what the current version of the catalog of a folder or repository has removed of the items that these
        weights know; `where` is as in `optional_file`.
        """
        path = optional_file(source, VERSIONS_FILE, **where)
        if path is not None:
            content = read_versions(path)
            self.close_items(rows_of(content["closed"], self.config.num_items))
            self.num_unread_items = max(0, content["num_rows"] - self.config.num_items)


# --- rules: which items may be recommended -----------------------------------------------------------------------


def rule_rows(rule: torch.Tensor | None, users: torch.Tensor | slice) -> torch.Tensor | None:
    """The rows of a rule, see `allowed_items`, for some of the users; the rule itself if it is one for all."""
    return rule if rule is None or rule.ndim == 1 or len(rule) == 1 else rule[users]


def check_rule(name: str, rule: torch.Tensor | None, *, config, batch_size: int) -> None:
    """Whether a rule, see `allowed_items`, has a shape and a content that can be read."""
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
            shown = ", ".join(map(str, wrong[:5].tolist()))
            shown += f", ... ({len(wrong)} in all)" if len(wrong) > 5 else ""
            raise ValueError(
                f"`{name}` must hold item tokens in [{config.first_item_token}, "
                f"{config.first_item_token + config.num_items}), padded with the pad token; got {shown}."
            )


def item_mask(rule: torch.Tensor, *, config, device: torch.device) -> torch.BoolTensor:
    """
    The items that a rule names.

    `rule`: item tokens `(n,)` or `(batch_size, n)`, or a mask over items; special tokens name none. Returns
    `(batch_size or 1, num_items)`.
    """
    rule = torch.atleast_2d(rule.to(device))
    if rule.dtype == torch.bool:
        return rule
    item = rule.long() - config.first_item_token
    spare = torch.where(item >= 0, item, config.num_items)  # special tokens fall into an extra column
    mask = torch.zeros(len(item), config.num_items + 1, dtype=torch.bool, device=device)
    return mask.scatter_(1, spare, True)[:, :-1]


def allowed_items(
    config, exclude_items: torch.Tensor | None, allow_items: torch.Tensor | None, *, device: torch.device
) -> torch.BoolTensor | None:
    """
    Both rules as one mask: allowed is what `allow_items` names (everything without it) and `exclude_items` does not.

    - `exclude_items`: item tokens `(n,)` for all users or `(batch_size, n)`, padded with the pad token; or a boolean
      mask `(num_items,)` or `(batch_size, num_items)`. `None` for none.
    - `allow_items`: in the same forms; `None` for all. Only padding allows nothing.
    Returns `(batch_size or 1, num_items)`, or `None` without rules. One row is for all users.

    >>> from hf_genrec.modeling.configuration_genrec import GenRecConfig
    >>> config = GenRecConfig(num_items=3)
    >>> first = config.first_item_token
    >>> exclude, allow = torch.tensor([[first], [0]]), torch.tensor([first, first + 2])
    >>> allowed_items(config, exclude, allow, device=torch.device("cpu")).int().tolist()
    [[0, 0, 1], [1, 0, 1]]
    """
    excluded = None if exclude_items is None else ~item_mask(exclude_items, config=config, device=device)
    allowed = None if allow_items is None else item_mask(allow_items, config=config, device=device)
    if excluded is None or allowed is None:
        return allowed if excluded is None else excluded
    return allowed & excluded


# --- diversity ---------------------------------------------------------------------------------------------------


def mmr(scores: torch.Tensor, similarity: torch.Tensor, *, top_k: int, diversity: float) -> torch.LongTensor:
    """
    Maximal marginal relevance: pick items one after the other, good ones that are unlike those already picked.

    The next item is the one with the largest `(1 - diversity) * relevance - diversity * (similarity to the most
    similar item picked)`; relevance is the item's probability divided by that of the user's best item, so it lies in
    [0, 1] like the similarity. Equal ones are taken in the order of their scores, then of the pool. It cannot bring in
    an item that is not in the pool, so make the pool several times `top_k`.

    - `scores` `(batch_size, num_pooled)`: log-probabilities; `-inf` where there is no item.
    - `similarity` `(batch_size, num_pooled, num_pooled)`: at most 1, which means the same; see `code_overlap` and
      `embedding_similarity`.
    - `diversity`: from 0, the order of the scores, to 1, the best item and then the least similar ones.
    Returns `(batch_size, top_k)`: positions in the pool, first picked first; places without an item come last.

    Source: Carbonell & Goldstein 1998, section 2; scaling the scores to [0, 1] is ours.

    >>> scores = torch.tensor([[0.5, 0.4, 0.1]]).log()
    >>> similarity = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])  # the first two are alike
    >>> [mmr(scores, similarity, top_k=3, diversity=diversity).tolist() for diversity in (0.0, 0.5)]
    [[[0, 1, 2]], [[0, 2, 1]]]
    """
    scores, order = scores.float().sort(dim=1, descending=True, stable=True)
    if diversity == 0:
        return order[:, :top_k]
    is_item = scores > -math.inf
    relevance = (scores - scores[:, :1]).exp().masked_fill(~is_item, 0)
    users = torch.arange(len(scores), device=scores.device)
    nearest = torch.zeros_like(relevance)
    left = torch.zeros_like(relevance).masked_fill(~is_item, torch.finfo(torch.float32).min)
    picks: list[torch.Tensor] = []
    for _ in range(top_k):
        best = ((1 - diversity) * relevance - diversity * nearest + left).argmax(1)
        pick = order[users, best]
        row = similarity[users, pick].float().gather(1, order)
        nearest = torch.maximum(nearest, row) if picks else row
        left[users, best] = -math.inf
        picks.append(pick)
    return torch.stack(picks, dim=1)


def code_overlap(codes: torch.Tensor, *, has_prefixes: bool = True) -> torch.FloatTensor:
    """
    Similarity of items by their semantic IDs: the share of leading codes that two items have in common; or, where no
    code depends on those before it (`has_prefixes=False`), of levels at which they have the same code.

    From `codes` `(batch_size, num_pooled, num_levels)` to `(batch_size, num_pooled, num_pooled)`, 1 for the same
    semantic ID; level by level, so no tensor is larger than the result.

    >>> codes = torch.tensor([[[7, 1], [7, 2], [0, 1]]])
    >>> code_overlap(codes).tolist()
    [[[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]]]
    >>> code_overlap(codes, has_prefixes=False).tolist()
    [[[1.0, 0.5, 0.5], [0.5, 1.0, 0.0], [0.5, 0.0, 1.0]]]
    """
    batch_size, num_pooled, num_levels = codes.shape
    overlap = torch.zeros(batch_size, num_pooled, num_pooled, device=codes.device)
    is_same = torch.ones_like(overlap, dtype=torch.bool)
    for level in codes.unbind(-1):
        is_equal = level.unsqueeze(2) == level.unsqueeze(1)
        is_same = is_same & is_equal if has_prefixes else is_equal
        overlap += is_same
    return overlap / num_levels


def embedding_similarity(embeddings: torch.Tensor) -> torch.FloatTensor:
    """
    Cosines `(batch_size, num_pooled, num_pooled)` of items, from their embeddings `(batch_size, num_pooled,
    dimension)`; one of zeros, or with a value that is not finite, resembles nothing.

    >>> embedding_similarity(torch.tensor([[[3.0, 4.0], [-4.0, 3.0], [-0.6, -0.8]]])).round().tolist()
    [[[1.0, 0.0, -1.0], [0.0, 1.0, -0.0], [-1.0, -0.0, 1.0]]]
    """
    directions = torch.nn.functional.normalize(embeddings.float(), dim=-1)
    return (directions @ directions.transpose(1, 2)).nan_to_num(nan=0)


def diversify(
    items: torch.LongTensor,
    scores: torch.Tensor,
    *,
    top_k: int,
    diversity: float,
    item_codes: torch.Tensor,
    item_embeddings: torch.Tensor | None = None,
    ranked: torch.Tensor | None = None,
    has_prefixes: bool = True,
) -> tuple[torch.LongTensor, torch.Tensor]:
    """
    The `top_k` of a pool of items `(batch_size, num_pooled)` by `mmr`, with their scores, as from `filled_up`.

    They are compared by `item_embeddings` `(num_items, dimension)`, without these by `item_codes`
    `(num_items, num_levels)`, see `code_overlap`. `ranked`: log of the relevance, where that is not the score.

    >>> items, scores = torch.tensor([[2, 0, 1]]), torch.tensor([[0.5, 0.4, 0.1]]).log()
    >>> codes = torch.tensor([[5, 1], [3, 1], [5, 2]])
    >>> diversify(items, scores, top_k=2, diversity=0.7, item_codes=codes)[0].tolist()
    [[2, 1]]
    """
    pooled = items.clamp_min(0)
    if item_embeddings is None:
        similarity = code_overlap(item_codes[pooled], has_prefixes=has_prefixes)
    else:
        similarity = embedding_similarity(item_embeddings[pooled])
    relevance = scores if ranked is None else ranked
    picks = mmr(relevance, similarity, top_k=min(top_k, items.shape[1]), diversity=diversity)
    return filled_up(items.gather(1, picks), scores.gather(1, picks), top_k)


def check_scores(scores: torch.Tensor, owner: str) -> None:
    """Whether scores can be ranked: `-inf` is that of no item, NaN and `inf` come from damaged weights only."""
    if bool((scores.isnan() | (scores == math.inf)).any()):
        raise ValueError(
            f"The scores of this {owner} are no finite numbers: its weights are damaged, or training went wrong. Load "
            "an earlier checkpoint, or train it again with a lower learning rate."
        )


def check_prior(prior: torch.Tensor, *, num_items: int) -> None:
    """Whether a prior has a positive number for each item."""
    if prior.shape != (num_items,):
        raise ValueError(f"`item_prior` must have shape ({num_items},), got {tuple(prior.shape)}.")
    if not bool((prior > 0).all() & prior.isfinite().all()):
        raise ValueError(
            "`item_prior` must be positive and finite for every item: an item of prior 0 would rank first."
        )


def filled_up(items: torch.LongTensor, scores: torch.Tensor, top_k: int) -> tuple[torch.LongTensor, torch.Tensor]:
    """Lists `(batch_size, n)` as `(batch_size, top_k)`: -1 and `-inf` behind what there is."""
    missing, pad = (0, top_k - items.shape[1]), torch.nn.functional.pad
    return pad(items, missing, value=-1), pad(scores, missing, value=-math.inf)


# --- the best of some numbers, and random numbers ----------------------------------------------------------------


GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64: the increment of SplitMix64
MULTIPLIERS = (-4658895280553007687, -7723592293110705685)  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def with_new_items(old: tuple, new: tuple, *, places: int, margin: float) -> tuple[torch.LongTensor, torch.Tensor]:
    """
    Two lists of the same users as one of their length: an item of the second stands before those that it exceeds by
    `margin`, and `places` at least are from the second, the last ones if need be. Takes items and scores `(B, n)`.

    >>> old, new = torch.tensor([[7, 5, 4], [9, 2, -1]]), torch.tensor([[6, 1, -1], [8, 1, -1]])
    >>> with_new_items((old, old / 1), (new, new / 1), places=1, margin=2.0)[0].tolist()
    [[7, 5, 6], [9, 8, 2]]
    """
    length, infinity = old[0].shape[1], float("inf")
    values = [scores.float().masked_fill(items < 0, -infinity).cummin(1).values for items, scores in (old, new)]
    values[1] -= margin
    num_old, num_new = (value.isfinite().sum(1, keepdim=True) for value in values)
    ranked = torch.cat(values, dim=1).sort(dim=1, descending=True, stable=True).indices[:, :length]
    taken = num_new.minimum((ranked >= length).sum(1, keepdim=True).maximum((length - num_old).clamp_min(places)))
    columns, mosts = torch.arange(length, device=taken.device), (num_old.minimum(length - taken), taken)
    kept = [value.masked_fill(columns >= most, -infinity) for value, most in zip(values, mosts, strict=True)]
    found, source = (part[:, :length] for part in torch.cat(kept, dim=1).sort(dim=1, descending=True, stable=True))
    items, scores = (torch.cat(pair, dim=1).gather(1, source) for pair in zip(old, new, strict=True))
    return items.masked_fill(found.isinf(), -1), scores.masked_fill(found.isinf(), -infinity)


def best_of(
    items: torch.LongTensor,
    scores: torch.FloatTensor,
    *,
    top_k: int,
    allowed: torch.BoolTensor | None = None,
    penalty: torch.Tensor | None = None,
    item_order: torch.LongTensor | None = None,
) -> tuple[torch.LongTensor, torch.FloatTensor]:
    """
    The best of some items of each user whose scores are known; takes and returns the rest as `best_items`.

    `items` and `scores`, `(batch_size, n)`: distinct items in ascending order; -1 for none. `item_order`
    `(num_items,)`: all items in the order in which those of equal scores stand; `None` for ascending order.

    >>> items, scores = torch.tensor([[0, 2, 5, -1]]), torch.tensor([[-3.0, -1.0, -1.0, 0.0]])
    >>> best_of(items, scores, top_k=5)[0].tolist()
    [[2, 5, 0, -1, -1]]
    """
    if item_order is not None:
        places = item_order.argsort()  # of each item in that order
        columns = places[items.clamp_min(0)].masked_fill(items < 0, len(places)).argsort(dim=1)
        items, scores = items.gather(1, columns), scores.gather(1, columns)
    is_counted, listed = items >= 0, items.clamp_min(0)
    if allowed is not None:
        is_counted = is_counted & allowed.expand(len(items), -1).gather(1, listed)
    ranked = scores if penalty is None else scores - penalty[listed]
    index = first_of_the_best(ranked.masked_fill(~is_counted, -float("inf")), top_k)
    is_none = ~is_counted.gather(1, index)
    items = items.gather(1, index).masked_fill(is_none, -1)
    scores = scores.gather(1, index).masked_fill(is_none, -float("inf"))
    return filled_up(items, scores, top_k)


def numbered(counts: torch.LongTensor) -> tuple[torch.LongTensor, torch.LongTensor]:
    """
    Entries of several owners one after the other, as many as `counts` `(n,)` says: the owner of each, and its running
    number there, both `(counts.sum(),)`.

    >>> [values.tolist() for values in numbered(torch.tensor([2, 0, 3]))]
    [[0, 0, 2, 2, 2], [0, 1, 0, 1, 2]]
    """
    owners = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return owners, torch.arange(len(owners), device=counts.device) - (counts.cumsum(0) - counts)[owners]


def first_of_the_best(values: torch.Tensor, top_k: int) -> torch.LongTensor:
    """
    Positions of the largest values of each row, largest first; of equal ones the first. `torch.topk` leaves open which
    of several equal values it takes, and takes others on another device or in another piece.

    >>> first_of_the_best(torch.tensor([[2.0, 5.0, 3.0, 5.0, 3.0]]), 3).tolist()
    [[1, 3, 2]]
    """
    if top_k >= values.shape[1]:
        return values.sort(dim=1, descending=True, stable=True).indices
    largest, index = values.topk(top_k + 1, dim=1)
    last = largest[:, top_k - 1 : top_k]
    is_open = ((largest[:, top_k:] == last) & (last > -float("inf")))[:, 0]  # equal ones stand on both sides
    index = index[:, :top_k]
    if bool(is_open.any()):
        rows, last = values[is_open], last[is_open]
        is_equal = rows == last
        num_left = top_k - (rows > last).sum(1, keepdim=True)  # places for values equal to the last, (num_open, 1)
        is_kept = (rows > last) | (is_equal & (is_equal.cumsum(1, dtype=torch.int32) <= num_left))
        index[is_open] = is_kept.nonzero()[:, 1].view(-1, top_k)
    index = index.sort(dim=1).values
    return index.gather(1, values.gather(1, index).sort(dim=1, descending=True, stable=True).indices)


def hashed(numbers: torch.LongTensor) -> torch.LongTensor:
    """
    Numbers that look random, different ones for different numbers; all 64 bits are used, so half of them are negative.

    Source: the output function of SplitMix64, Steele et al. 2014 (https://doi.org/10.1145/2660193.2660195).

    >>> hashed(torch.tensor([0, 1]) + GOLDEN)[0].item() == -2152535657050944081  # 0xE220A8397B1DCDAF
    True
    """
    numbers = (numbers ^ _shifted(numbers, 30)) * MULTIPLIERS[0]
    numbers = (numbers ^ _shifted(numbers, 27)) * MULTIPLIERS[1]
    return numbers ^ _shifted(numbers, 31)


def user_keys(seed: int, users: torch.LongTensor) -> torch.LongTensor:
    """What the random numbers of each user are made from, with a seed in [0, 2**63)."""
    return hashed(hashed(users * GOLDEN + GOLDEN) ^ seed)


def gumbel_noise(keys: torch.LongTensor, items: torch.LongTensor) -> torch.FloatTensor:
    """
    Standard Gumbel noise `(num_users, n)` from `user_keys` `(num_users,)` and items `(n,)`. Added to scores, it makes
    the items with the largest sums a sample without replacement, in the order drawn.

    Source: Kool et al. 2019, section 2.2 (https://huggingface.co/papers/1903.06059).

    >>> noise = gumbel_noise(user_keys(0, torch.arange(2)), torch.arange(50_000))
    >>> torch.allclose(noise.mean(1), torch.tensor(0.5772), atol=0.02)
    True
    """
    bits = hashed(keys.unsqueeze(-1) + (items + 1) * GOLDEN)
    uniform = (_shifted(bits, 11).double() + 0.5) * 2.0**-53
    return -(-uniform.log()).log().float()


def random_items(keys: torch.LongTensor, num_draws: int, *, num_items: int) -> torch.LongTensor:
    """Items `(num_users, num_draws)` drawn uniformly with replacement, from `user_keys` `(num_users,)`."""
    draws = torch.arange(1, num_draws + 1, device=keys.device)
    return _shifted(hashed(keys.unsqueeze(-1) + draws * GOLDEN), 1) % num_items


def _shifted(numbers: torch.LongTensor, num_bits: int) -> torch.LongTensor:
    """To the right, with zeros coming in: `>>` repeats the sign."""
    return (numbers >> num_bits) & ((1 << (64 - num_bits)) - 1)
