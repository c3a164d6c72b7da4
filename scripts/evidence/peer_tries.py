"""
Tries of other libraries and ours behind the interface of one search, for `benchmark_peers.py`.

A search keeps some beams per user, takes the best continuations of all beams together and carries a trie's own node
with each. The loop is the same for all; what differs is how a trie is built and how it finds legal codes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Protocol

import torch

from hf_genrec.modeling.genrec_catalog import Catalog


class PeerTrie(Protocol):
    """What a search asks of a trie."""

    def candidates(self, depth: int, nodes: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Scores of continuations, -inf where none is legal, and what `chosen` needs to know of them."""

    def chosen(
        self, depth: int, state: Any, nodes: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and nodes of the continuations in some columns of some rows."""


def search(trie: PeerTrie, log_probabilities: torch.Tensor, num_beams: int) -> torch.Tensor:
    """
    The best semantic IDs of each user, best first; the root of every trie is node 0.

    Args:
        trie (`PeerTrie`): Which ids there are.
        log_probabilities (`torch.Tensor` of shape `(num_levels, num_users, codebook_size)`): Of each level alone.
        num_beams (`int`): Beams of each user; at most as many as there are first codes.

    Returns:
        `torch.Tensor` of shape `(num_users, num_beams, num_levels)`
    """
    num_levels, num_users, _ = log_probabilities.shape
    users = torch.arange(num_users).unsqueeze(1)
    nodes, totals = torch.zeros(num_users, dtype=torch.long), torch.zeros(num_users, 1)
    codes = torch.zeros(num_users, 1, 0, dtype=torch.long)
    for depth in range(num_levels):
        beams = totals.shape[1]
        scores = log_probabilities[depth].unsqueeze(1).expand(-1, beams, -1).flatten(0, 1)
        found, state = trie.candidates(depth, nodes, scores)
        width = found.shape[1]
        totals, places = (totals.unsqueeze(2) + found.view(num_users, beams, width)).flatten(1).topk(num_beams)
        parents = places // width
        picked, nodes = trie.chosen(
            depth, state, nodes, (users * beams + parents).flatten(), (places % width).flatten()
        )
        codes = torch.cat([codes[users, parents], picked.view(num_users, num_beams, 1)], dim=2)
    return codes


class OurTrie:
    """[`Catalog`] with a row of the codebook for each beam."""

    def __init__(self, codes: torch.Tensor, codebook_size: int, static: Path | None = None):
        self.catalog = Catalog(codes, codebook_size)

    def candidates(self, depth: int, nodes: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return torch.where(self.catalog.child_mask(depth, nodes), scores, -torch.inf), None

    def chosen(
        self, depth: int, state: Any, nodes: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return columns, self.catalog.child(depth, nodes[rows], columns)


class OurLists(OurTrie):
    """[`Catalog`] with lists of the children, from the level on at which nodes have few."""

    def candidates(self, depth: int, nodes: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, Any]:
        if 2 * self.catalog.max_children[depth] > self.catalog.codebook_size:
            return super().candidates(depth, nodes, scores)
        codes, following, is_child = self.catalog.children(depth, nodes, width=self.catalog.max_children[depth])
        return torch.where(is_child, scores.gather(1, codes), -torch.inf), (codes, following)

    def chosen(
        self, depth: int, state: Any, nodes: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if state is None:
            return super().chosen(depth, state, nodes, rows, columns)
        codes, following = state
        return codes[rows, columns], following[rows, columns]


class RecTokensTrie:
    """rectokens: `CompactCSRTrie`, two dense levels, then `vtnk_pytorch`; its other functions need CUDA."""

    def __init__(self, codes: torch.Tensor, codebook_size: int, static: Path | None = None):
        from rectokens.schemas.compact_csr_trie import CompactCSRTrie

        self.trie = CompactCSRTrie.from_sorted_batch(in_order(codes, codebook_size), codebook_size)
        # it reads as many children behind a node's first as any node has: the last nodes would read beyond the end
        padding = torch.full((2, codebook_size), -1)
        self.trie = self.trie._replace(stacked_cols_vals=torch.cat([self.trie.stacked_cols_vals, padding], dim=1))
        self.codebook_size = codebook_size

    def candidates(self, depth: int, nodes: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, Any]:
        from rectokens.decoding.vntk import vtnk_pytorch

        if depth < len(self.trie.dense_mask_by_layer):
            mask = self.trie.dense_mask_by_layer[depth]
            return torch.where(mask if depth == 0 else mask[nodes], scores, -torch.inf), None
        following, legal, scores = vtnk_pytorch(scores, nodes, self.trie, depth)
        return scores, (following, legal)

    def chosen(
        self, depth: int, state: Any, nodes: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if depth == 0:
            return columns, columns  # the first code stands for its node until the dense levels end
        if state is None:
            return columns, self.trie.dense_states[nodes[rows], columns]
        following, legal = state
        return columns, following[rows][legal[rows] == columns.unsqueeze(1)]


class StaticTrie:
    """The official code of STATIC in PyTorch, from a checkout: `build_static_index` and the step of its decoder."""

    def __init__(self, codes: torch.Tensor, codebook_size: int, static: Path | None = None):
        if str(static) not in sys.path:
            sys.path.insert(0, str(static))
        from static_decoding.csr_utils import build_static_index

        tables = build_static_index(in_order(codes, codebook_size).numpy(), vocab_size=codebook_size)
        self.max_branches = tables[2]
        self.tables = [torch.from_numpy(table) for table in (*tables[:2], *tables[3:])]
        self.codebook_size = codebook_size

    def candidates(self, depth: int, nodes: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, Any]:
        from static_decoding.decoding_pt import generate_and_apply_logprobs_mask

        packed, pointers, start_mask, dense_mask, _ = self.tables
        if depth < 2:
            mask = start_mask if depth == 0 else dense_mask[nodes - 1]
            return torch.where(mask, scores, -torch.inf), None
        found, codes, following = generate_and_apply_logprobs_mask(
            scores, nodes, packed, pointers, self.max_branches[depth], self.codebook_size, scores.device
        )
        return found, (codes, following)

    def chosen(
        self, depth: int, state: Any, nodes: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if depth == 0:
            return columns, columns + 1
        if state is None:
            return columns, self.tables[4][nodes[rows] - 1, columns]
        codes, following = state
        return codes[rows, columns].long(), following[rows, columns]


def in_order(codes: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Rows in ascending order, which both others ask for; a part of their building, by a key of 63 bits at most."""
    key = torch.zeros(len(codes), dtype=torch.long)
    for level in range(codes.shape[1]):
        key.mul_(codebook_size).add_(codes[:, level])
    return codes[key.argsort()].long()


TRIES = {"hf_genrec": OurTrie, "hf_genrec, lists": OurLists, "rectokens": RecTokensTrie, "STATIC": StaticTrie}

__all__ = ["TRIES", "OurLists", "OurTrie", "PeerTrie", "RecTokensTrie", "StaticTrie", "in_order", "search"]
