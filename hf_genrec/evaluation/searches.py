"""
What a model's search means for its evaluation: how long its lists may be, and what they can be compared with.
"""

from __future__ import annotations

from typing import Any


# Options of `recommend()` that rank by something else than `score_items()` says, with the values that turn them off.
_OTHER_ORDERS: dict[str, Any] = {
    "prior_correction": 0, "item_prior": None, "diversity": 0, "num_groups": 1, "sample_seed": None
}  # fmt: skip
# Options under which the first items of a longer list need not be those of a shorter one.
_BY_LENGTH: dict[str, Any] = {"diversity": 0, "num_rescored": 0, "num_groups": 1, "sample_seed": None}


def check_beams(recommender: Any, top_k: int) -> None:
    """
    Whether a search is as wide as its lists are long: a narrower one is widened for some users, and its numbers
    belong to no width.

    Args:
        recommender: A recommender; a model has `decoding`, `num_beams` and `search_options`, a baseline none of them.
        top_k (`int`): Items that the lists shall have.

    Raises:
        ValueError: If there are fewer beams.
    """
    num_beams = _num_beams(recommender)
    if num_beams is not None and num_beams < top_k:
        raise ValueError(
            f"The recommender searches with {num_beams} beams, fewer than the {top_k} items that `ks` asks for: "
            f"`recommend` would widen the search, and the numbers would not be those of {num_beams} beams. Give it at "
            f"least {top_k} (`num_beams`, `--beams`), or smaller `ks`."
        )


def check_exact_order(recommender: Any) -> None:
    """
    Whether exact scores say what the lists of a search should be.

    Args:
        recommender: A recommender; a model has `search_options`.

    Raises:
        ValueError: If a search option ranks by something else.
    """
    others = _set_of(_OTHER_ORDERS, recommender)
    if others:
        raise ValueError(
            f"`exact_sample` compares the lists with exact scores, and {', '.join(f'`{name}`' for name in others)} of "
            "the search options rank by something else: the gap would not be the search's. Leave out one or the other."
        )


def length_to_ask_for(recommender: Any, top_k: int) -> int:
    """
    Lists as long as they may be without another search: the first `top_k` distinct ids need more items than `top_k`.

    Beams without latents are as many ids; with latents several may be one id, and longer lists would widen the search.
    Diverse lists, groups, samples and re-scored items depend on the length, so with these no more than `top_k` items
    are asked for, and more users have fewer distinct ids than that.

    Args:
        recommender: A model's recommender, with `items` and `model`.
        top_k (`int`): Items that are looked at.

    Returns:
        `int`: from `top_k` to the size of the catalog.
    """
    if _set_of(_BY_LENGTH, recommender):
        return top_k
    num_beams = _num_beams(recommender)
    if num_beams is not None:
        length = top_k if getattr(recommender.model.config, "num_latent_tokens", 0) else num_beams
    else:
        length = 5 * top_k if getattr(recommender, "decoding", None) == "exact" else top_k
    return max(top_k, min(length, recommender.items.num_rows))


def _num_beams(recommender: Any) -> int | None:
    """Width of a model's beam search; `None` for other recommenders."""
    if getattr(recommender, "decoding", None) != "beam":
        return None
    return recommender.search_options.get("num_beams", recommender.num_beams)


def _set_of(neutral: dict[str, Any], recommender: Any) -> list[str]:
    """Which of these options differ from the values that turn them off."""
    options = getattr(recommender, "search_options", None) or {}
    given = {name: options[name] for name in neutral if options.get(name) is not None}
    return [name for name, value in given.items() if neutral[name] is None or value != neutral[name]]
