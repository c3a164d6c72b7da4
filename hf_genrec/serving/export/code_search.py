"""
The search of a model that was exported as two graphs: beams over the trie in NumPy, the networks in onnxruntime.

It finds what `recommend()` finds with its default search, with the dense head's scores added where there is one. Code
for engines in other languages can follow it; `README.md` in the exported folder has the loop in short.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class CodeSearch:
    """
    Lists of item rows for histories of item rows.

    Args:
        folder (`Path`): What `export_onnx` wrote.
        config (`dict`): Its `onnx_config.json`.
        session (`Callable`): Opens the graph of a name.
    """

    def __init__(self, folder: Path, config: dict[str, Any], session: Callable[[str], Any]) -> None:
        self.config = config
        self.encoder, self.decoder = session("encoder"), session("decoder")
        with np.load(folder / "trie.npz") as arrays:
            self._arrays: dict[str, Ints] = dict(arrays)
        self.items = self._arrays["items"]
        self._place_of = np.full(len(self._arrays["item_codes"]), -1)  # in the order of the trie
        self._place_of[self.items] = np.arange(len(self.items))

    def find(self, history: Ints, excluded: Ints, *, top_k: int) -> tuple[Ints, Floats]:
        """
        Search, then again with twice the beams for users whose lists are still short.

        Args:
            history (`np.ndarray` of shape `(num_users, history_length)`): Item rows, padded with -1.
            excluded (`np.ndarray` of shape `(num_users, n)`): Item rows that may not be listed, padded with -1.
            top_k (`int`): Items of a list.

        Returns:
            `(np.ndarray, np.ndarray)`, both `(num_users, top_k)`: item rows, best first, and their scores; -1 and
            `-inf` where there are fewer items.
        """
        memory = self.encoder.run(None, {"history": history})
        is_open = np.ones((len(history), len(self._place_of) + 1), bool)  # one place more: for no item
        is_open[np.arange(len(history))[:, None], excluded] = False
        is_open = is_open[:, :-1] & (self._place_of >= 0)
        wanted = np.minimum(top_k, is_open.sum(1))
        items = np.full((len(history), top_k), -1)
        scores = np.full((len(history), top_k), -np.inf, np.float32)
        pending = np.arange(len(history))
        num_beams = min(self.config["num_beams"], self.config["num_paths"])
        while len(pending):
            part = [values[pending] for values in memory]
            found = self._once(part, is_open[pending], top_k=top_k, num_beams=num_beams)
            items[pending], scores[pending] = found
            is_short = np.isfinite(found[1]).sum(1) < wanted[pending]
            pending = pending[is_short] if num_beams < self.config["num_paths"] else pending[:0]
            num_beams = min(2 * num_beams, self.config["num_paths"])
        return items, scores

    def _once(
        self, memory: list[Any], is_open: NDArray[np.bool_], *, top_k: int, num_beams: int
    ) -> tuple[Ints, Floats]:
        dense_weight = self.config["dense_weight"]
        leaves, scores = self._by_id(*self._beams(memory, self._open_nodes(is_open), num_beams))
        items, scores = self._items_of(leaves, scores, is_open, most=num_beams if dense_weight else top_k)
        if not dense_weight:
            return _first(items, scores, top_k)
        dense = memory[4]
        ranked = np.where(is_open, dense, -np.inf)
        best = _best(ranked, num_beams)
        exact = self._path_scores(memory, best)
        exact[np.take_along_axis(ranked, best, 1) == -np.inf] = -np.inf
        generated = np.full((len(dense), dense.shape[1] + 1), -np.inf, np.float32)
        np.put_along_axis(generated, items, scores, 1)  # -1 is the place more
        np.put_along_axis(generated, best, exact, 1)
        both = generated[:, :-1] + dense_weight * np.where(np.isfinite(generated[:, :-1]), dense, 0)
        best = _best(both, top_k)
        scores = np.take_along_axis(both, best, 1)
        return _first(np.where(np.isfinite(scores), best, -1), scores, top_k)

    # --- the search -------------------------------------------------------------------------------------------------

    def _beams(self, memory: list[Any], open_nodes: list[NDArray[np.bool_]], num_beams: int) -> tuple[Ints, Floats]:
        """Leaves `(num_users, W)`, -1 for none, and log-probabilities."""
        num_users = len(memory[0])
        tokens = np.full((num_users, 1), self.config["decoder_start_token_id"])
        parents, nodes = np.zeros_like(tokens), np.zeros_like(tokens)
        scores, cache = np.zeros((num_users, 1), np.float32), self._empty_cache(num_users)
        for start, level in self._steps():
            logits, cache = self._step(tokens, parents, cache, memory)
            codes, children, log_probs = self._continuations(logits, start, level, nodes)
            candidates = scores[..., None] + log_probs
            if level >= 0:
                is_open = open_nodes[level + 1][np.arange(num_users)[:, None, None], children]
                candidates[~is_open | (children < 0)] = -np.inf
            width = candidates.shape[2]
            best = _best(candidates.reshape(num_users, -1), num_beams)
            scores = np.take_along_axis(candidates.reshape(num_users, -1), best, 1)
            parents, tokens = best // width, start + np.take_along_axis(codes.reshape(num_users, -1), best, 1)
            nodes = np.take_along_axis(children.reshape(num_users, -1), best, 1)
            nodes[scores == -np.inf] = -1
        return nodes, scores

    def _steps(self) -> list[tuple[int, int]]:
        """First token and level of each step; level -1 for that of the latents."""
        config = self.config
        levels = [(config["first_code_token"] + n * config["codebook_size"], n) for n in range(config["num_levels"])]
        return [(config["first_latent_token"], -1), *levels] if config["num_latent_tokens"] else levels

    def _step(self, tokens: Ints, parents: Ints, cache: Floats, memory: list[Any]) -> tuple[Floats, Floats]:
        names = ("keys", "values", "mask", "state")
        named = dict(zip(names, memory, strict=False)) | {"tokens": tokens, "parents": parents, "cache": cache}
        logits, cache = self.decoder.run(None, named)
        return logits, cache

    def _empty_cache(self, num_users: int) -> Floats:
        return np.zeros((num_users, 1, 0, self.config["cache_width"]), np.float32)

    def _continuations(self, logits: Floats, start: int, level: int, nodes: Ints) -> tuple[Ints, Ints, Floats]:
        """
        What may follow each beam: codes, the nodes that they lead to (-1 behind the last one) and log-probabilities,
        `(num_users, num_beams, most children)`.
        """
        if level < 0:
            block = logits[..., start : start + self.config["num_latent_tokens"]]
            codes = np.broadcast_to(np.arange(block.shape[2]), block.shape)
            return codes, np.zeros_like(codes), self._normalized(block)
        first_child, safe = self._arrays[f"first_child_{level}"], np.maximum(nodes, 0)
        first = first_child[safe]
        end = np.where(nodes < 0, first, first_child[safe + 1])
        children = first[..., None] + np.arange(max(1, int((end - first).max())))
        is_child = children < end[..., None]
        codes = np.where(is_child, self._arrays[f"codes_{level}"][np.where(is_child, children, 0)], 0)
        block = np.take_along_axis(logits, start + codes, 2)
        block = np.where(is_child, block, np.float32(-np.inf))
        return codes, np.where(is_child, children, -1), self._normalized(block)

    def _normalized(self, block: Floats) -> Floats:
        """Log-probabilities of what the catalog allows, unless the logits are log-probabilities already."""
        if self.config["normalization"] == "vocabulary":
            return block
        most = block.max(2, keepdims=True)
        shifted = block - np.where(np.isfinite(most), most, 0)
        return shifted - np.log(np.maximum(np.exp(shifted).sum(2, keepdims=True), np.finfo(np.float32).tiny))

    def _open_nodes(self, is_open: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
        """Which nodes of each depth from 0 lead to an open item, `(num_users, number of nodes)`."""
        before = np.pad(is_open[:, self.items].cumsum(1), ((0, 0), (1, 0)))
        firsts = [self._arrays[f"first_item_{depth + 1}"] for depth in range(self.config["num_levels"])]
        return [np.ones((len(is_open), 1), bool), *(np.diff(before[:, first], axis=1) > 0 for first in firsts)]

    def _by_id(self, leaves: Ints, scores: Floats) -> tuple[Ints, Floats]:
        """Several latents may lead to one id: each id once, best first."""
        order = np.argsort(leaves, axis=1, kind="stable")
        leaves, scores = np.take_along_axis(leaves, order, 1), np.take_along_axis(scores, order, 1)
        is_first = np.pad(np.diff(leaves, axis=1) != 0, ((0, 0), (1, 0)), constant_values=True)
        at = np.arange(len(leaves))[:, None], is_first.cumsum(1) - 1
        best = np.full_like(scores, -np.inf)
        np.maximum.at(best, at, scores)
        if self.config["latent_aggregation"] == "sum":
            excess = np.exp(
                np.where(np.isfinite(scores), scores - np.where(np.isfinite(scores), best[at], 0), -np.inf)
            )
            total = np.zeros_like(scores)
            np.add.at(total, at, excess)
            best += np.log(np.maximum(total, 1))
        ids = np.full_like(leaves, -1)
        ids[at] = leaves
        best[ids < 0] = -np.inf
        order = np.argsort(-best, axis=1, kind="stable")
        return np.take_along_axis(ids, order, 1), np.take_along_axis(best, order, 1)

    def _items_of(self, leaves: Ints, scores: Floats, is_open: NDArray[np.bool_], *, most: int) -> tuple[Ints, Floats]:
        """The open items of ranked ids, at most `most`: those that share an id stand together and have its score."""
        first = self._arrays[f"first_item_{self.config['num_levels']}"]
        begin, end = first[leaves], np.where(leaves < 0, first[leaves], first[leaves + 1])
        places = begin[..., None] + np.arange(max(1, int((end - begin).max())))  # (B, W, most items of an id)
        items = self.items[np.minimum(places, len(self.items) - 1)]
        is_listed = (places < end[..., None]) & is_open[np.arange(len(leaves))[:, None, None], items]
        of_items = np.broadcast_to(scores[..., None], items.shape)
        shape = (len(leaves), -1)
        items = np.where(is_listed, items, -1).reshape(shape)
        of_items = np.where(is_listed, of_items, np.float32(-np.inf)).reshape(shape)
        order = np.argsort(items < 0, axis=1, kind="stable")  # what is listed in front, in its order
        return _first(np.take_along_axis(items, order, 1), np.take_along_axis(of_items, order, 1), most)

    # --- exact scores -----------------------------------------------------------------------------------------------

    def _path_scores(self, memory: list[Any], items: Ints) -> Floats:
        """Log-probabilities of some items of each user, over all latents, `(num_users, n)`."""
        num_users, num_latents = len(items), max(1, self.config["num_latent_tokens"])
        codes = np.tile(self._arrays["item_codes"][items], (1, num_latents, 1))  # (B, num_latents * n, num_levels)
        latents = np.tile(np.repeat(np.arange(num_latents), items.shape[1]), (num_users, 1))
        scores, nodes = np.zeros(codes.shape[:2], np.float32), np.zeros(codes.shape[:2], np.int64)
        tokens = np.full((num_users, 1), self.config["decoder_start_token_id"])
        parents, cache = np.zeros_like(tokens), self._empty_cache(num_users)
        for number, (start, level) in enumerate(self._steps()):
            logits, cache = self._step(tokens, parents, cache, memory)
            logits = np.broadcast_to(logits, (*scores.shape, logits.shape[2]))
            options, children, log_probs = self._continuations(logits, start, level, nodes)
            written = latents if level < 0 else codes[..., level]
            place = (np.where(children < 0, -1, options) == written[..., None]).argmax(2)[..., None]
            scores = scores + np.take_along_axis(log_probs, place, 2)[..., 0]
            nodes = np.take_along_axis(children, place, 2)[..., 0]
            tokens = start + written
            parents = np.zeros_like(tokens) if not number else np.tile(np.arange(tokens.shape[1]), (num_users, 1))
        paths = scores.reshape(num_users, num_latents, -1)
        if self.config["latent_aggregation"] == "max":
            return paths.max(1)
        return np.logaddexp.reduce(paths, axis=1)


def _best(values: Floats, number: int) -> Ints:
    """Places of the largest values of each row, largest first; of equal ones the first."""
    number = min(number, values.shape[1])
    if number < values.shape[1]:
        places = np.sort(np.argpartition(-values, number - 1, axis=1)[:, :number], axis=1)
    else:
        places = np.tile(np.arange(number), (len(values), 1))
    order = np.argsort(-np.take_along_axis(values, places, 1), axis=1, kind="stable")
    return np.take_along_axis(places, order, 1)


def _first(items: Ints, scores: Floats, number: int) -> tuple[Ints, Floats]:
    """Lists of a length."""
    missing = ((0, 0), (0, max(0, number - items.shape[1])))
    items, scores = items[:, :number], scores[:, :number]
    return np.pad(items, missing, constant_values=-1), np.pad(scores, missing, constant_values=-np.inf)
