"""
The same as `served_model.py` where the lists come from a server that `hf-genrec serve` runs: this process reads the
repository's items, settings and evaluation, and loads no weights.
"""

import json
import os
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import httpx
import torch
from neighbors import NEIGHBORS_NAME, read_neighbors
from served_model import DIVERSE_POOL, MAX_HISTORY, Answer, Reason, ServedModel, Settings, source_of


SECONDS = 30


class ServerError(RuntimeError):
    """The server cannot be reached, or refuses a request."""


class RemoteModel(ServedModel):
    """
    A model behind HTTP, with the files of its repository that say what it is.

    Args:
        address (`str`): Of the server, such as `http://127.0.0.1:8000`.
        repo_or_folder (`str` or `Path`): The repository or folder that it serves.
    """

    def __init__(self, address: str, repo_or_folder: str | os.PathLike[str]) -> None:
        self.address = address.rstrip("/")
        self.client = httpx.Client(base_url=self.address, timeout=SECONDS)
        info = self._ask("GET", "/info")
        source = source_of(repo_or_folder)
        items, saved = source.items(), source.optional("recommend_config.json")
        evaluation, neighbors = source.optional("evaluation.json"), source.optional(NEIGHBORS_NAME)
        self.version = info["catalog_version"]
        self.describe(
            source,
            items,
            evaluation and json.loads(evaluation.read_text(encoding="utf-8")),
            neighbors and read_neighbors(neighbors, items["item_id"].to_pylist()),
            saved=json.loads(saved.read_text(encoding="utf-8")) if saved else {},
            has_beams=info["decoding"] == "beam",
            codes=torch.tensor(items["codes"].to_pylist()) if "codes" in items.column_names else None,
        )

    @cached_property
    def can_compare(self) -> bool:
        """See [`ServedModel`]; the server is asked for one vector."""
        if self.codes is not None:
            return True
        try:
            return bool(len(self.vectors(torch.tensor([0]))))
        except ServerError:
            return False

    @property
    def facts(self) -> list[str]:
        """What is said of it beside its config."""
        return [f"served by {self.address}, version {self.version} of its catalog"]

    def recommend(self, history: Sequence[int], settings: Settings) -> Answer:
        """See [`ServedModel`]; items that the server has and the repository does not are counted."""
        history = list(history)[-MAX_HISTORY:]
        options: dict[str, Any] = {"num_beams": DIVERSE_POOL * settings.top_k}
        if self.can_compare:
            options["diversity"] = settings.diversity
        if self.has_beams:
            options |= {"num_beams": settings.num_beams, "latent_aggregation": settings.latent_aggregation}
        body = {"history": [self.item_ids[item] for item in history], "top_k": settings.top_k, "options": options}
        start = time.perf_counter()
        found = self._ask("POST", "/recommend", body | {"exclude_seen": settings.exclude_seen and bool(history)})
        seconds = time.perf_counter() - start
        self.version = found["catalog_version"]
        known = [place for place, item_id in enumerate(found["item_ids"]) if item_id in self.index_of]
        items = [self.index_of[found["item_ids"][place]] for place in known]
        return Answer(
            items=items,
            scores=[found["scores"][place] for place in known],
            seconds=seconds,
            settings=settings,
            reasons=self.reasons(items, history[-self.config.max_history_length :]),
            by_neighbors=self.neighbors
            and self.neighbors.recommend(history, top_k=settings.top_k, exclude_seen=settings.exclude_seen),
            num_unknown=len(found["item_ids"]) - len(known),
        )

    def reasons(self, items: Sequence[int], history: Sequence[int]) -> list[list[Reason]]:
        """See [`ServedModel`]; models that have no vectors of items give none."""
        try:
            return super().reasons(items, history)
        except ServerError:
            return [[] for _ in items]

    def vectors(self, items: torch.Tensor) -> torch.Tensor:
        """Vectors of some items, by the server."""
        asked = {"item_ids": [self.item_ids[item] for item in items.tolist()]}
        return torch.tensor(self._ask("POST", "/item_vectors", asked)["vectors"])

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            answer = self.client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ServerError(f"{self.address} does not answer ({type(error).__name__}).") from error
        if answer.status_code != 200:
            raise ServerError(f"{self.address} answers {answer.status_code}: {answer.text[:200]}")
        return answer.json()
