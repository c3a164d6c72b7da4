"""
The networks behind `recommend()` through `torch.compile`: minutes at the start, then less time for each list.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_genrec.serving.catalog.learned_rows import parts_of


if TYPE_CHECKING:
    from hf_genrec.serving.recommender import Recommender


# Variants that torch keeps of a network: one user and several, one beam and several, with padding and without, each
# step of a search. Sizes are free in each.
RECOMPILE_LIMIT = 32


def compile_networks(model: Any) -> list[str]:
    """
    Have torch compile what the class of a model, or of the members of a sum, names in `compiled_parts`: for batches of
    any size, when it is first called. Twins for later catalogs share it.

    Args:
        model: A model of the library.

    Returns:
        `list[str]`: the classes of which something is compiled.

    Raises:
        RuntimeError: If this torch knows no `isolate_recompiles`.
    """
    if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
        raise RuntimeError(
            f"`torch.compile` must know `isolate_recompiles`, torch {torch.__version__} does not: update it."
        )
    # each model has variants of its own, else those of all in a process would count against one limit
    how: dict[str, Any] = {"dynamic": True, "recompile_limit": RECOMPILE_LIMIT, "isolate_recompiles": True}
    parts = [part for _, part in parts_of(model) if part.compiled_parts]
    for part in parts:
        for name in part.compiled_parts:
            network = getattr(part, name)
            if isinstance(network, nn.Module):
                network.compile(**how)
            else:
                setattr(part, name, torch.compile(network, **how))
    return [type(part).__name__ for part in parts]


def answer_made_up_requests(recommender: Recommender) -> None:
    """
    Have torch compile for one user and several, with padding and without, before somebody waits.

    Args:
        recommender ([`Recommender`]): Of a model whose networks are to be compiled.

    Raises:
        RuntimeError: If torch cannot compile.
    """
    histories = [list(recommender.item_ids[:length]) for length in (3, 1, 7, 0)]
    try:
        for batch in (*([history] for history in histories), histories[:1] * 2, histories):
            recommender.recommend(batch, show_progress=False)
    except RuntimeError as error:
        raise RuntimeError(
            f"torch cannot compile here: {str(error).partition(chr(10))[0]}. On a CPU it needs a C++ compiler, "
            "g++ say; without one, load the recommender again and do not compile it."
        ) from error
