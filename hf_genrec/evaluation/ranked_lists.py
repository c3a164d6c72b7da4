"""
Recommenders and histories in, ranked lists out: with items of the history allowed and with them excluded.

Where the ranking is exact, the lists without seen items are longer lists from which these are dropped, so one pass
gives both. A beam search runs twice: left-out items leave it other beams.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm


_LONGEST = 200  # items of a history up to which both kinds of lists come from one pass
# Options of `recommend()` that rank by something else than `score_items()`, with the values that turn them off.
_OTHER_ORDERS: dict[str, Any] = {
    "prior_correction": 0, "item_prior": None, "diversity": 0, "num_groups": 1, "sample_seed": None, "dense_weight": 0
}  # fmt: skip
# Options under which the first items of a longer list need not be those of a shorter one.
_BY_LENGTH: dict[str, Any] = {"diversity": 0, "num_rescored": 0, "num_groups": 1, "sample_seed": None}


@dataclass
class RankedLists:
    """The lists of all users, and what the recommender reported about them."""

    item_ids: list[list[str]] = field(default_factory=list)
    num_unknown: int = 0  # history entries that are no items
    seconds: float = 0.0
    num_visited: list[int] = field(default_factory=list)  # items that were scored, per user; empty where not reported
    num_distinct: list[int] = field(default_factory=list)  # distinct items among the beams, per user; likewise

    def means(self) -> dict[str, float]:
        """What the search did, where the recommender reports it."""
        reported = {"num_visited": self.num_visited, "distinct_items": self.num_distinct}
        return {name: float(np.mean(counts)) for name, counts in reported.items() if counts}

    def _add(self, item_ids: Sequence[list[str]], found: Any, *, length: int, seconds: float) -> None:
        self.item_ids += [row[:length] for row in item_ids]
        self.num_unknown += found.num_unknown
        self.num_visited += found.num_visited or []
        self.num_distinct += found.num_distinct or []
        self.seconds += seconds

    def _join(self, other: RankedLists) -> None:
        self.item_ids += other.item_ids
        self.num_unknown += other.num_unknown
        self.num_visited += other.num_visited
        self.num_distinct += other.num_distinct
        self.seconds += other.seconds


def rank_both_ways(
    systems: Mapping[bool, Any],
    histories: Sequence[list[str]],
    lengths: Mapping[bool, int],
    *,
    times: Sequence[list[int] | None] | None = None,
    batch_size: int,
    show_progress: bool,
    accelerator: Accelerator | None = None,
) -> dict[bool, RankedLists]:
    """
    Lists by whether seen items are excluded.

    Args: recommenders and lengths, by the same; item ids per user, and their times where the recommenders read them;
    users at a time; whether a bar is shown; and the processes that take batches in turn, after which each has the
    lists of all.
    """
    turn, number = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    starts = range(0, len(histories), batch_size)[turn::number]
    parts: list[Any] = []
    try:
        for start in tqdm(starts, desc="Evaluating", disable=not show_progress or turn > 0):
            some = slice(start, start + batch_size)
            more = {} if times is None else {"times": list(times[some])}
            parts.append((start, _rank_batch(systems, list(histories[some]), lengths, more)))
    except (MemoryError, RuntimeError, ValueError) as error:
        if number == 1:
            raise
        parts.append((-1, error))  # the others wait for this process, and raise it too
    if number > 1:
        parts = sorted(gather_object(parts), key=itemgetter(0))
        if parts and parts[0][0] < 0:
            raise parts[0][1]
    lists = {False: RankedLists(), True: RankedLists()}
    for _, part in parts:
        for exclude_seen, found in part.items():
            lists[exclude_seen]._join(found)
    return lists


def _rank_batch(
    systems: Mapping[bool, Any], batch: list[list[str]], lengths: Mapping[bool, int], more: Mapping[str, Any]
) -> dict[bool, RankedLists]:
    lists = {False: RankedLists(), True: RankedLists()}
    longest = max(map(len, batch))
    in_one_pass = systems[False] is systems[True] and _is_exact(systems[False]) and longest <= _LONGEST
    asked = {False: max(lengths[False], lengths[True] + longest)} if in_one_pass else lengths
    for exclude_seen, top_k in asked.items():
        began = time.perf_counter()
        found = systems[exclude_seen].recommend(batch, top_k=top_k, exclude_seen=exclude_seen, **more)
        seconds = time.perf_counter() - began
        lists[exclude_seen]._add(found.item_ids, found, length=lengths[exclude_seen], seconds=seconds)
        if in_one_pass:
            rows = zip(found.item_ids, map(set, batch), strict=True)
            unseen = [[item for item in row if item not in seen] for row, seen in rows]
            lists[True]._add(unseen, found, length=lengths[True], seconds=seconds)
    return lists


def check_search(recommender: Any, top_k: int, *, is_exact: bool) -> None:
    """Refuse a search with the numbers of another one. Args: `top_k` of the lists; if exact scores are compared."""
    num_beams = _num_beams(recommender)
    if num_beams is not None and num_beams < top_k:
        # the search would be widened for some users, and its numbers would belong to no width
        raise ValueError(
            f"The recommender searches with {num_beams} beams, fewer than the {top_k} items that `ks` asks for: "
            f"`recommend` would widen the search, and the numbers would not be those of {num_beams} beams. Give it at "
            f"least {top_k} (`num_beams`, `--beams`), or smaller `ks`."
        )
    others = _set_of(_OTHER_ORDERS, recommender) if is_exact else []
    if others:
        raise ValueError(
            f"`exact_sample` compares the lists with exact scores, and {', '.join(f'`{name}`' for name in others)} of "
            "the search options rank by something else: the gap would not be the search's. Leave out one or the other."
        )


def length_for_shared_ids(recommender: Any, top_k: int) -> int:
    """
    Lists as long as they may be without another search: the first `top_k` distinct ids need more items than `top_k`.

    Beams without latents are as many ids; with latents several may be one id, and longer lists would widen the search.
    Where the lists depend on their length (`_BY_LENGTH`), `top_k` items are asked for, and more users have fewer ids.

    Args: a model whose items share ids, and the number of items that are counted.
    """
    if _set_of(_BY_LENGTH, recommender):
        return top_k
    num_beams = _num_beams(recommender)
    if num_beams is not None:
        length = top_k if getattr(recommender.model.config, "num_latent_tokens", 0) else num_beams
    else:
        length = 5 * top_k if _is_exact(recommender) else top_k
    return max(top_k, min(length, recommender.items.num_rows))


def _is_exact(recommender: Any) -> bool:
    """Whether the first items of a longer list are the shorter list, and left-out items change nothing else."""
    model = getattr(recommender, "model", None)
    if getattr(getattr(model, "config", None), "weights_with_seen", None) is not None:
        return False  # an ensemble that weighs by what is left out
    if getattr(model, "default_decoding", None) == "beam" and recommender.decoding == "exact":
        return False  # a drafted list, which costs in proportion to its length
    return getattr(recommender, "decoding", None) in ("exact", "dense") and not _set_of(_BY_LENGTH, recommender)


def _num_beams(recommender: Any) -> int | None:
    """Width of a model's beam search; `None` for other recommenders."""
    return recommender.num_beams if getattr(recommender, "decoding", None) == "beam" else None


def _set_of(neutral: Mapping[str, Any], recommender: Any) -> list[str]:
    """Which of these options differ from the values that turn them off."""
    options = getattr(recommender, "search_options", None) or {}
    given = {name: options[name] for name in neutral if options.get(name) is not None}
    return [name for name, value in given.items() if neutral[name] is None or value != neutral[name]]
