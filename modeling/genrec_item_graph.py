"""
Scores of items for models that predict all codes at once, by table look-up; and graph-constrained decoding: from a few
items along a graph of similar items to the best ones, without scoring them all.

Log-probabilities per level `(B, L, K)`, the codes of all items and the nearest neighbours of each `(N, k)` come in;
the items that were visited and their exact scores go out. The graph is built by `hf_genrec.serving.item_graph` after
training and stands in `item_graph.safetensors` beside the weights; a fingerprint ties it to the codes and the code
embeddings from which it was built.

Source: Hou et al. 2025, section 3.3 (https://huggingface.co/papers/2506.05781).
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from safetensors import safe_open

from .genrec_lists import GOLDEN, best_of, first_of_the_best, hashed, numbered, random_items, rows_of, user_keys


GRAPH_FILE = "item_graph.safetensors"
ITEMS_AT_A_TIME = 256  # whose neighbours are looked for together


# --- scores by table look-up -------------------------------------------------------------------------------------
#
# Log-probabilities per level `(B, L, K)` and the codes of all items `(N, L)` come in; the score of an item, the sum of
# the log-probabilities of its codes, goes out. Two items may have the same codes; the lower index stands first.


# On the CPU a table of 64 users and a piece of the scores stay in the cache of a core: measured on two cores at 32
# levels of 256 codes, 7 microseconds per user and 12,101 items, where a table of 256 users takes 65.
USERS_PER_TABLE = 64
SCORES_AT_A_TIME = 1 << 19
# An accelerator wants large pieces.
ACCELERATOR_USERS_PER_TABLE = 1024
ACCELERATOR_SCORES_AT_A_TIME = 1 << 24
PAIRS_AT_A_TIME = 1 << 13
ACCELERATOR_PAIRS_AT_A_TIME = 1 << 20
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


# --- the graph ---------------------------------------------------------------------------------------------------


def item_graph_fingerprint(item_codes: torch.Tensor, code_embeddings: torch.Tensor, *, num_neighbors: int) -> str:
    """
    Fingerprint of what a graph is built from: 16 hex digits of the sha256 of codes, embeddings and neighbour count.

    Embeddings count as rounded to bfloat16, so a checkpoint in float32 and the same one loaded in bfloat16 agree.

    >>> item_graph_fingerprint(torch.tensor([[0], [1]]), torch.eye(2).unsqueeze(0), num_neighbors=2)
    '102852177f3cbb30'
    """
    codes = item_codes.detach().to(device="cpu", dtype=torch.int16).contiguous()
    embeddings = code_embeddings.detach().to(device="cpu", dtype=torch.bfloat16).contiguous().view(torch.int16)
    digest = hashlib.sha256(json.dumps([*codes.shape, *embeddings.shape, num_neighbors]).encode())
    for values in (codes, embeddings):
        digest.update(values.numpy().astype("<i2").tobytes())
    return digest.hexdigest()[:16]


def code_similarities(code_embeddings: torch.Tensor) -> torch.Tensor:
    """
    What each pair of codes of a level adds to the similarity of two items, `(1 + cosine) / 2 / num_levels`: over all
    levels 1 for items with the same codes, 0 if the embeddings of all codes point in opposite directions. The paper
    has products where this has cosines.

    Args:
        code_embeddings: `(num_levels, codebook_size, d_model)`, to `(num_levels, codebook_size, codebook_size)`.

    >>> code_similarities(torch.tensor([[[3.0, 0.0], [0.0, 2.0]]])).tolist()
    [[[1.0, 0.5], [0.5, 1.0]]]
    """
    directions = torch.nn.functional.normalize(code_embeddings.detach().float(), dim=-1)
    return (1 + directions @ directions.transpose(1, 2)) / (2 * len(directions))


def neighbors_of(
    items: torch.LongTensor, similarities: torch.Tensor, item_codes: torch.Tensor, num_neighbors: int
) -> tuple[torch.LongTensor, torch.FloatTensor]:
    """
    The neighbours of `items` `(n,)` and their similarities, `(n, num_neighbors)`, most similar first: an item is a
    user whose tables hold the similarities of codes to its own, as [`code_similarities`] gives them.
    """
    levels = torch.arange(item_codes.shape[1], device=item_codes.device)
    tables = similarities[levels, item_codes[items].long()]  # (n, L, K)
    return best_items(tables, item_codes, top_k=num_neighbors)


def extended_graph(
    neighbors: torch.Tensor, item_codes: torch.Tensor, code_embeddings: torch.Tensor
) -> torch.IntTensor:
    """
    The graph `(num_items, k)` of a catalog from that of its first items, `neighbors` `(num_old, k)`: the same as one
    built anew. Each new item gets its neighbours, and stands among those of an old one where it is closer.

    >>> codes, embeddings = torch.tensor([[0], [1], [2], [0]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.2]]])
    >>> extended_graph(torch.tensor([[0, 1], [1, 2], [2, 1]]), codes, embeddings).tolist()
    [[0, 3], [1, 2], [2, 1], [0, 3]]
    """
    (num_old, num_neighbors), device = neighbors.shape, item_codes.device
    similarities, fresh = code_similarities(code_embeddings), item_codes[num_old:]
    levels, rows = torch.arange(item_codes.shape[1], device=device), torch.arange(len(item_codes), device=device)
    parts = []
    for some in rows[:num_old].split(ITEMS_AT_A_TIME):
        tables, known = similarities[levels, item_codes[some].long()], neighbors.to(device)[some].long()
        scores = candidate_scores(tables, item_codes, known)
        closest, closeness = best_items(tables, fresh, top_k=min(num_neighbors, len(fresh)))
        # new items have higher indices, so of equally similar ones they stand behind
        order = torch.cat([scores, closeness], dim=1).sort(dim=1, descending=True, stable=True).indices
        parts.append(torch.cat([known, closest + num_old], dim=1).gather(1, order[:, :num_neighbors]).int())
    for some in rows[num_old:].split(ITEMS_AT_A_TIME):
        parts.append(neighbors_of(some, similarities, item_codes, num_neighbors)[0].int())
    return torch.cat(parts)


@dataclass
class VisitedItems:
    """Distinct items that a search has scored, in ascending order."""

    items: torch.IntTensor  # (batch_size, n); `num_items` where a user has fewer
    scores: torch.FloatTensor  # (batch_size, n); -inf there

    def best(
        self, top_k: int, *, allowed=None, penalty=None, item_order=None
    ) -> tuple[torch.LongTensor, torch.FloatTensor]:
        """The best of them, as from `best_of`."""
        items = self.items.long().masked_fill(self.scores == -float("inf"), -1)
        return best_of(items, self.scores, top_k=top_k, allowed=allowed, penalty=penalty, item_order=item_order)

    def counts(self) -> torch.LongTensor:
        """Number of items of each user, `(batch_size,)`."""
        return (self.scores > -float("inf")).sum(1)


def graph_search(
    log_probs: torch.Tensor,
    item_codes: torch.Tensor,
    neighbors: torch.Tensor,
    start: torch.LongTensor,
    *,
    num_beams: int,
    num_propagations: int,
    penalty: torch.Tensor | None = None,
) -> VisitedItems:
    """
    Follow the graph from the items `start` `(batch_size, n)`, which may repeat, each time from the `num_beams` best of
    all that were visited so far. In the paper the beams are the best of the latest neighbours; here nothing good is
    lost on the way.

    The time and the memory of a step do not depend on the size of the catalog: what was visited is a sorted list per
    user, the neighbours of the beams are sorted into it, and only those that are new are scored.

    Takes `log_probs` `(batch_size, num_levels, codebook_size)`, `item_codes` `(num_items, num_levels)`, `neighbors`
    `(num_items, k)`, and `penalty` `(num_items,)`, which is subtracted from scores to choose the beams.

    >>> log_probs = torch.tensor([[[-3.0, -2.0, -1.0, -9.0]]])  # one user, one level of four codes
    >>> codes, ring = torch.arange(4).unsqueeze(1), torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])
    >>> visited = graph_search(log_probs, codes, ring, torch.tensor([[0]]), num_beams=1, num_propagations=2)
    >>> visited.items.tolist(), visited.best(2)[0].tolist()
    ([[0, 1, 2]], [[2, 1]])
    """
    empty = torch.zeros(len(log_probs), 0, device=log_probs.device)
    visited = VisitedItems(empty.int(), empty)
    visited = _visit(visited, start.int(), log_probs, item_codes)
    for _ in range(num_propagations):
        beams, _ = visited.best(num_beams, penalty=penalty)
        reached = neighbors[beams.clamp_min(0)].int()
        reached = reached.masked_fill((beams < 0).unsqueeze(-1), len(item_codes))
        visited = _visit(visited, reached.flatten(1), log_probs, item_codes)
    return visited


def _visit(visited: VisitedItems, reached: torch.IntTensor, log_probs, item_codes) -> VisitedItems:
    """Sort what was reached into what was visited before, and score what is new; `num_items` is no item."""
    num_known, num_items = visited.items.shape[1], len(item_codes)
    keys = torch.cat([2 * visited.items, 2 * reached + 1], dim=1)  # of an item that is known too, the known one first
    keys, order = keys.sort(dim=1)
    items = keys >> 1  # (B, known + reached), ascending; an item that was reached twice stands there twice
    is_first = items < num_items
    is_first[:, 1:] &= items[:, 1:] != items[:, :-1]
    scores = torch.nn.functional.pad(visited.scores, (0, reached.shape[1])).gather(1, order)
    users, columns = (is_first & (order >= num_known)).nonzero(as_tuple=True)
    scores[users, columns] = pair_scores(log_probs, item_codes, users, items[users, columns].long())
    place = is_first.cumsum(1) - 1  # (B, known + reached): column of each distinct item in the result
    width = int(place[:, -1].max()) + 1 if place.numel() else 0
    place = place.masked_fill(~is_first, width)  # a column that is cut off again
    shape = (len(items), width + 1)
    all_items = torch.full(shape, num_items, dtype=torch.int32, device=items.device).scatter_(1, place, items)
    all_scores = torch.full(shape, -float("inf"), device=items.device).scatter_(1, place, scores)
    return VisitedItems(all_items[:, :width], all_scores[:, :width])


def search_bytes(*, num_beams: int, num_neighbors: int, num_propagations: int, num_levels: int) -> int:
    """What a search takes for each user, by estimate."""
    num_reached = num_beams * num_neighbors
    return num_reached * (16 * num_levels + 48 * (1 + num_propagations)) + 64 * num_beams


class ItemGraphMixin:
    """The item graph of a model: set by hand, or read from the folder or repository the model came from."""

    _item_graph: torch.Tensor | None = None
    _graph_fingerprint: str = ""
    _graph_weights: tuple[int, ...] = ()  # those that the fingerprint was compared with

    def set_item_graph(self, neighbors: torch.Tensor, fingerprint: str) -> None:
        """
        Give the model the graph `(num_items, num_neighbors)` that `recommend(decoding="graph")` follows, with what it
        was marked with when it was built. Training changes the embeddings that a graph is built from: build and set it
        afterwards. `save_pretrained` does not write it, `hf_genrec.serving.item_graph.ItemGraph.save` does.
        """
        num_items, first_new = self.config.num_items, self._first_new()
        is_table = neighbors.ndim == 2 and first_new <= len(neighbors) <= num_items and neighbors.shape[1] > 0
        if not is_table or neighbors.is_floating_point():
            raise ValueError(
                f"`neighbors` must be integers of shape (num_items, num_neighbors) = ({first_new}, num_neighbors), "
                f"got {neighbors.dtype} of shape {tuple(neighbors.shape)}. A graph leads to the items that there were "
                "when it was built."
            )
        self._check_item_graph(neighbors, fingerprint)
        if int(neighbors.min()) < 0 or int(neighbors.max()) >= len(neighbors):
            raise ValueError(
                f"`neighbors` must lie in [0, {len(neighbors)}), got {neighbors.min()} to {neighbors.max()}."
            )
        self._item_graph = neighbors.to(device=self.item_codes.device, dtype=torch.int32)
        self._graph_fingerprint, self._graph_weights = fingerprint, self._weights_now()

    def _first_new(self) -> int:
        """How many items there are before those that came after training."""
        is_new = rows_of(self.config.new_items, self.config.num_items)
        return int(is_new.long().argmax()) if bool(is_new.any()) else self.config.num_items

    def _check_item_graph(self, neighbors: torch.Tensor, fingerprint: str) -> None:
        codes = self.item_codes[: len(neighbors)]
        found = item_graph_fingerprint(codes, self.code_embeddings(), num_neighbors=neighbors.shape[1])
        if found != fingerprint:
            advice = "Build it again"
            if self.code_embeddings().dtype == torch.float16:
                advice = "Its weights were rounded to float16: load them in float32 or bfloat16, or build one of these"
            raise ValueError(
                f"The item graph (fingerprint {fingerprint}) was not built from the codes and code embeddings of this "
                f"model (fingerprint {found}). {advice}: "
                "`hf_genrec.serving.item_graph.build_item_graph(model).save(folder)`."
            )

    def _weights_now(self) -> tuple[int, ...]:
        """Differs after the code embeddings were changed, by training for example, or the codes."""
        tensors = self.code_embeddings(), self.item_codes
        return tuple(number for tensor in tensors for number in (tensor.data_ptr(), tensor._version))

    @property
    def item_graph(self) -> torch.Tensor:
        """
        The graph `(num_items, num_neighbors)`, read at first use from where the model was loaded from. Raises
        `ValueError` if there is none, or the model was trained on since or its catalog was set. One of a catalog to
        which items were added since is extended, see [`extended_graph`].
        """
        if self._item_graph is None:
            self._read_item_graph()
        if self._graph_weights != self._weights_now():
            self._check_item_graph(self._item_graph, self._graph_fingerprint)
            self._graph_weights = self._weights_now()
        if len(self._item_graph) < self.config.num_items:
            graph = extended_graph(self._item_graph, self.item_codes, self.code_embeddings().detach())
            self._graph_fingerprint = item_graph_fingerprint(
                self.item_codes, self.code_embeddings(), num_neighbors=graph.shape[1]
            )
            self._item_graph = graph
        if self._item_graph.device != self.item_codes.device:
            self._item_graph = self._item_graph.to(self.item_codes.device)
        return self._item_graph

    def _read_item_graph(self) -> None:
        source, path = self.config.name_or_path, self.companion_file(GRAPH_FILE)
        if path is None:
            raise ValueError(
                f"`decoding='graph'` needs an item graph, and there is no {GRAPH_FILE} "
                + (f"in {source}. " if source else "since this model was not loaded from a folder. ")
                + "Build it with `hf_genrec.serving.item_graph.build_item_graph(model)` and save it beside the "
                "checkpoint or pass it to `model.set_item_graph`."
            )
        with safe_open(path, framework="pt") as file:
            neighbors, metadata = file.get_tensor("neighbors"), file.metadata() or {}
        self.set_item_graph(neighbors, metadata.get("fingerprint", "none"))

    def start_items(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None, *, num_starts: int, seed: int
    ) -> torch.LongTensor:
        """
        Random items `(batch_size, num_starts)` where the walk of each user begins; some may repeat. They depend on the
        seed and the history alone, so a user gets the same list in any batch.
        """
        is_item = self.is_item(input_ids, attention_mask)
        items = (input_ids - self.config.first_item_token).masked_fill(~is_item, 0)
        place = is_item.flip(1).cumsum(1).flip(1)  # 1 at the last item of the history, 2 at the one before, ...
        history = hashed(items + place * (1 << 32)).masked_fill(~is_item, 0).sum(1) + GOLDEN
        return random_items(user_keys(seed, history), num_starts, num_items=self.config.num_items)
