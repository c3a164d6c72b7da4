"""
The routes that ask something else than a list: like items, vectors for a downstream ranker, and why an item is listed.

They wait in the queue of the recommendations and are computed between its batches, each alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field, create_model

from hf_genrec.serving.recommender import Recommender
from hf_genrec.serving.server.bodies import ItemId, Problem, _Body


if TYPE_CHECKING:
    from hf_genrec.serving.server.app import ServerState

_REFUSED: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem} for code in (400, 404, 413, 422, 429, 500, 503, 504)
}


class SimilarItems(BaseModel):
    """Items by the cosine of their vectors, best first."""

    item_ids: list[str]
    similarities: list[float]


class Vectors(BaseModel):
    """A vector for each item or user, in the order in which they were asked for."""

    vectors: list[list[float]]


class ReasonOfItem(BaseModel):
    """What an item of the history has to do with the listed one."""

    item_id: str
    effect: float = Field(description="What the score loses without this item.")
    similarity: float | None = Field(description="Cosine of the two items' vectors, where the model has some.")
    shared_codes: list[int] = Field(description="The codes of both before the first that differs.")


class Explanation(BaseModel):
    """The items of the history that the model reads, the strongest first."""

    reasons: list[ReasonOfItem]


def add_question_routes(app: FastAPI, state: ServerState) -> None:
    """
    Add `POST /similar_items`, `/item_vectors`, `/encode_users` and `/explain`.

    Args:
        app (`FastAPI`): The application.
        state ([`ServerState`]): What its routes share.
    """
    settings = state.settings
    history: Any = Annotated[list[ItemId], Field(max_length=settings.max_history_length)]
    histories: Any = Annotated[list[history], Field(max_length=settings.max_histories)]
    ids: Any = Annotated[list[ItemId], Field(max_length=settings.max_ids)]
    many: Any = Annotated[int, Field(ge=1, le=settings.max_top_k)]

    async def similar_items(body: Any) -> SimilarItems:
        """The items that are most like another one."""
        found = await _answer(state, lambda shop: shop.similar_items(body.item_id, body.top_k))
        return SimilarItems(item_ids=[item_id for item_id, _ in found], similarities=[cosine for _, cosine in found])

    async def item_vectors(body: Any) -> Vectors:
        """Vectors of some items, removed ones too, for a downstream ranker."""
        return Vectors(vectors=await _answer(state, lambda shop: shop.item_vectors(body.item_ids).tolist()))

    async def encode_users(body: Any) -> Vectors:
        """The state behind each history, for a downstream ranker."""
        num_users = len(body.histories)
        found = await _answer(state, lambda shop: shop.encode_users(body.histories).tolist(), num_users=num_users)
        return Vectors(vectors=found)

    async def explain(body: Any) -> Explanation:
        """Which items of a history speak for an item."""
        num_scores = min(1 + len(body.history), settings.max_histories)
        found = await _answer(state, lambda shop: shop.explain(body.history, body.item_id), num_users=num_scores)
        return Explanation(
            reasons=[
                ReasonOfItem(
                    item_id=reason.item_id,
                    effect=reason.effect,
                    similarity=None if math.isnan(reason.similarity) else reason.similarity,
                    shared_codes=list(reason.shared_codes),
                )
                for reason in found
            ]
        )

    bodies: dict[Callable[..., Any], dict[str, Any]] = {
        similar_items: {"item_id": (ItemId, ...), "top_k": (many, 10)},
        item_vectors: {"item_ids": (ids, ...)},
        encode_users: {"histories": (histories, ...)},
        explain: {"history": (history, ...), "item_id": (ItemId, ...)},
    }
    for route, fields in bodies.items():
        name = "".join(word.title() for word in route.__name__.split("_")) + "Request"
        route.__annotations__["body"] = create_model(name, __base__=_Body, **fields)
        app.post(f"/{route.__name__}", tags=["questions"], responses=_REFUSED)(route)


async def _answer(state: ServerState, ask: Callable[[Recommender], Any], *, num_users: int = 1) -> Any:
    """What the recommender says, when its turn comes; 404 for an item that is not there."""
    try:
        return await state.answer(ask, None, num_users=num_users)
    except KeyError as error:
        raise HTTPException(404, str(error.args[0])) from error
