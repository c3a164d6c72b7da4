"""
From requests of the HTTP server to one call of `Recommender.recommend`, and back to an answer for each.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

from hf_genrec.serving.recommender import Recommender
from hf_genrec.serving.server.bodies import RecommendRequest, RecommendResponse


class Options(NamedTuple):
    """What requests of a batch have in common."""

    top_k: int
    exclude_seen: bool | None
    allow_items: tuple[Any, ...] | None
    options: str  # JSON
    alone: Hashable  # not equal to that of any other request, where the answer depends on who else is in the batch


@dataclass(frozen=True, eq=False)
class Asked:
    """A request: its histories, what each may not be recommended, and the rest."""

    histories: list[list[str]]
    exclude_items: list[list[str]] | None
    request: RecommendRequest

    @classmethod
    def of(cls, request: RecommendRequest) -> Asked:
        """A request from its body. Args: the body."""
        histories, rule = request.users(), request.exclude_items
        excluded: Any = None
        if rule:
            excluded = rule if isinstance(rule[0], list) else [rule] * len(histories)
        return cls(histories, excluded, request)

    def key(self) -> Options:
        """What a request must have in common with others to be computed with them."""
        request, allowed = self.request, self.request.allow_items
        options = request.asked_options()
        is_alone = options.get("sample_seed") is not None or bool(allowed and isinstance(allowed[0], list))
        return Options(
            request.top_k,
            request.exclude_seen,
            None if allowed is None else tuple(map(_hashable, allowed)),
            json.dumps(options, sort_keys=True),
            id(self) if is_alone else None,
        )


def _hashable(ids: str | list[str]) -> Hashable:
    return ids if isinstance(ids, str) else tuple(ids)


def answers_of(recommender: Recommender, key: Options, requests: list[Asked]) -> list[RecommendResponse]:
    """
    One call for several requests.

    Args:
        recommender ([`Recommender`]): What answers.
        key ([`Options`]): What the requests have in common.
        requests (`list[Asked]`): The requests.

    Returns:
        `list[RecommendResponse]`: an answer for each.
    """
    histories = [history for asked in requests for history in asked.histories]
    more: dict[str, Any] = json.loads(key.options)
    if any(asked.request.times is not None for asked in requests):
        more["times"] = [row for asked in requests for row in asked.request.users_times()]
    excluded = None
    if any(asked.exclude_items for asked in requests):
        excluded = [ids for asked in requests for ids in asked.exclude_items or [[]] * len(asked.histories)]
    allowed = None if key.allow_items is None else [_listed(ids) for ids in key.allow_items]
    found = recommender.recommend(
        histories,
        top_k=key.top_k,
        exclude_seen=key.exclude_seen,
        exclude_items=excluded,
        allow_items=allowed,
        **more,
    )
    known = recommender._now.index_of  # only grows
    answers, first = [], 0
    for asked in requests:
        last = first + len(asked.histories)
        item_ids, scores = found.item_ids[first:last], found.scores[first:last]
        if asked.request.history is not None:
            item_ids, scores = item_ids[0], scores[0]
        num_unknown = sum(item_id not in known for history in asked.histories for item_id in history)
        answers.append(
            RecommendResponse(
                item_ids=item_ids, scores=scores, num_unknown=num_unknown, catalog_version=found.catalog_version
            )
        )
        first = last
    return answers


def _listed(ids: Any) -> Any:
    return list(ids) if isinstance(ids, tuple) else ids
