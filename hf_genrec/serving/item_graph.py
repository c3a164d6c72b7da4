"""
The item graph: the most similar items of each item, by the code embeddings of a trained model.

A trained model that predicts all codes at once comes in; `item_graph.safetensors` goes out, to stand beside its
weights: int32 `(num_items, num_neighbors)`, most similar first, with a fingerprint of the codes and embeddings. Two
items are as similar as their codes are on average over the levels, `(1 + cosine) / 2`; an item is its own first
neighbour, but for others of lower index that have its very codes.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from hf_genrec.files import replaced
from hf_genrec.modeling.genrec_folder import write_manifest
from hf_genrec.modeling.genrec_item_graph import (
    GRAPH_FILE,
    ITEMS_AT_A_TIME,
    code_similarities,
    item_graph_fingerprint,
    neighbors_of,
)
from hf_genrec.serving.language_model import load_model


logger = logging.getLogger(__name__)

MOST_EXACT = 1_000_000  # items up to which the exact search is the default
NUM_COMPARED = 1000  # items whose approximate neighbours are compared with the exact ones
NUM_LINKS, BUILD_WIDTH = 32, 200  # of the index: links of an item, and candidates for them
SEARCH_WIDTH = 256  # candidates that the index keeps when it looks for neighbours, or more if more are wanted
FAR = 1e3  # coordinates of codes that no item has
_DELAY = 2.0  # seconds before the progress bar shows

Search = Literal["auto", "exact", "approximate"]


@dataclass
class ItemGraph:
    """
    Neighbours of all items.

    Args:
        neighbors (`torch.Tensor` of shape `(num_items, num_neighbors)`): int32 item indices, most similar first.
        fingerprint (`str`): What it was built from, see `item_graph_fingerprint`.
        overlap (`float`): Share of the exact neighbours that were found.
    """

    neighbors: torch.Tensor
    fingerprint: str
    overlap: float = 1.0

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `item_graph.safetensors` into a folder of a checkpoint, where a model that is loaded finds it."""
        path = Path(folder) / GRAPH_FILE
        metadata = {"format": "pt", "fingerprint": self.fingerprint, "overlap": repr(self.overlap)}
        with replaced(path) as partial:
            save_file({"neighbors": self.neighbors.contiguous()}, partial, metadata=metadata)
        write_manifest(path.parent, [GRAPH_FILE])
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> ItemGraph:
        """Read what `save` wrote. Whether it belongs to a model is checked by `model.set_item_graph`."""
        path = Path(folder) / GRAPH_FILE
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "neighbors" not in file.keys() or not {"fingerprint", "overlap"} <= metadata.keys():  # noqa: SIM118
                raise ValueError(f"{path} is no item graph: it lacks `neighbors`, `fingerprint` or `overlap`.")
            neighbors = file.get_tensor("neighbors")
        return cls(neighbors, metadata["fingerprint"], float(metadata["overlap"]))


def write_item_graph(
    folder: str | os.PathLike[str],
    *,
    num_neighbors: int = 50,
    search: Search = "auto",
    device: str | None = None,
    show_progress: bool = True,
) -> ItemGraph:
    """
    Build the graph of a saved model and write it beside its weights.

    Args: the folder of a checkpoint; `device` is `None` for a GPU if any; the others as in [`build_item_graph`].
    """
    model = load_model(folder)
    if not hasattr(model, "set_item_graph"):
        reason = "writes codes one by one" if model.config.has_codes else "knows no codes"
        raise ValueError(
            f"{folder} holds a {model.config.model_type!r} model, which {reason}: an item graph is for models that "
            "predict all codes at once."
        )
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    graph = build_item_graph(model, num_neighbors=num_neighbors, search=search, show_progress=show_progress)
    graph.save(folder)
    return graph


def build_item_graph(
    model: Any,
    *,
    num_neighbors: int = 50,
    search: Search = "auto",
    search_width: int = SEARCH_WIDTH,
    show_progress: bool = True,
) -> ItemGraph:
    """
    The graph of a model, for `model.set_item_graph(graph.neighbors, graph.fingerprint)` or `graph.save(folder)`.

    No matrix of all pairs of items is made. The exact search is that of `recommend(decoding="exact")` with each item
    as a user, so its time grows with the square of the catalog; RESULTS.md has figures. The approximate one is an HNSW
    index of faiss over product-quantised vectors, the code embeddings with nothing left out, and may pay beyond a
    million items. What it finds is measured on 1,000 items and stands in `overlap`; with several threads it differs a
    little from run to run.

    Args:
        model: A model with `item_codes` and `code_embeddings`, on the CPU or elsewhere.
        num_neighbors (`int`, defaults to 50): Neighbours of each item, itself among them; at most `num_items`.
        search (`str`, defaults to `"auto"`): `"exact"`, `"approximate"`, or `"auto"` for exact up to 1,000,000 items.
        search_width (`int`, defaults to 256): Candidates that the approximate search keeps; more find more, slower.
        show_progress (`bool`, *optional*, defaults to `True`): Whether a progress bar is shown, after 2 seconds.

    >>> from types import SimpleNamespace
    >>> codes = torch.tensor([[0, 0], [1, 1], [0, 1]])
    >>> embeddings = torch.tensor([[[2.0, 0.0], [-1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    >>> model = SimpleNamespace(item_codes=codes, code_embeddings=lambda: embeddings)
    >>> build_item_graph(model, num_neighbors=2).neighbors.tolist()
    [[0, 2], [1, 2], [2, 0]]
    """
    codes, embeddings = model.item_codes, model.code_embeddings().detach()
    if not 1 <= num_neighbors <= len(codes):
        raise ValueError(f"`num_neighbors` must lie in [1, {len(codes)}] (the catalog's size), got {num_neighbors}.")
    if search not in ("auto", "exact", "approximate"):
        raise ValueError(f"`search` must be 'auto', 'exact' or 'approximate', got {search!r}.")
    if search_width < 1:
        raise ValueError(f"`search_width` must be at least 1, got {search_width}.")
    similarities = code_similarities(embeddings)
    overlap = 1.0
    if search == "exact" or (search == "auto" and len(codes) <= MOST_EXACT):
        with _progress("Neighbours", len(codes), show_progress) as bar:
            neighbors = _exact_neighbors(similarities, codes, torch.arange(len(codes)), num_neighbors, bar)
    else:
        with _progress("Index and neighbours", 2 * len(codes), show_progress) as bar:
            neighbors = _approximate_neighbors(embeddings.cpu(), codes.cpu(), num_neighbors, search_width, bar)
        sample = torch.from_numpy(np.random.default_rng(0).permutation(len(codes))[:NUM_COMPARED])
        overlap = _overlap(_exact_neighbors(similarities, codes, sample, num_neighbors), neighbors[sample])
        logger.info("the approximate item graph holds %.1f %% of the exact neighbours", 100 * overlap)
    fingerprint = item_graph_fingerprint(codes, embeddings, num_neighbors=num_neighbors)
    return ItemGraph(neighbors, fingerprint, overlap)


def _progress(title: str, total: int, is_shown: bool) -> tqdm:
    """A bar that counts items."""
    return tqdm(desc=title, total=total, unit=" items", unit_scale=True, delay=_DELAY, disable=not is_shown)


def _exact_neighbors(
    similarities: torch.Tensor,
    codes: torch.Tensor,
    items: torch.Tensor,
    num_neighbors: int,
    progress: tqdm | None = None,
) -> torch.Tensor:
    """The neighbours of some items."""
    found = []
    for some in items.to(codes.device).split(ITEMS_AT_A_TIME):
        found.append(neighbors_of(some, similarities, codes, num_neighbors)[0].int().cpu())
        if progress is not None:
            progress.update(len(some))
    return torch.cat(found)


def _approximate_neighbors(
    embeddings: torch.Tensor, codes: torch.Tensor, num_neighbors: int, search_width: int, progress: tqdm
) -> torch.Tensor:
    """Neighbours by the distances between items, which fall as similarities rise: all vectors have one length."""
    num_levels, codebook_size, _ = embeddings.shape
    left, values, _ = torch.linalg.svd(torch.nn.functional.normalize(embeddings.float(), dim=-1), full_matrices=False)
    vectors = left * values.unsqueeze(1)  # (L, K, at most K): the same distances
    num_bits = max(1, (codebook_size - 1).bit_length())
    vectors = torch.nn.functional.pad(vectors, (0, 0, 0, (1 << num_bits) - codebook_size), value=FAR)
    make: Any = faiss.IndexHNSWPQ  # its overloads are not in the stubs
    index = make(num_levels * vectors.shape[2], num_levels, NUM_LINKS, num_bits)
    storage: Any = faiss.downcast_index(index.storage)
    faiss.copy_array_to_vector(vectors.numpy().ravel(), storage.pq.centroids)
    storage.pq.compute_sdc_table()
    index.is_trained = storage.is_trained = True
    index.hnsw.efConstruction = BUILD_WIDTH
    index.hnsw.efSearch = max(search_width, num_neighbors)
    levels = torch.arange(num_levels)
    blocks = torch.arange(len(codes)).split(ITEMS_AT_A_TIME)
    for block in blocks:
        index.add(vectors[levels, codes[block].long()].flatten(1).numpy())
        progress.update(len(block))
    found = []
    for block in blocks:
        found.append(index.search(vectors[levels, codes[block].long()].flatten(1).numpy(), num_neighbors)[1])
        progress.update(len(block))
    neighbors = torch.from_numpy(np.concatenate(found)).int()
    own = torch.arange(len(codes), dtype=torch.int32).unsqueeze(1)
    return torch.where(neighbors >= 0, neighbors, own)  # where the index found too few


def _overlap(exact: torch.Tensor, found: torch.Tensor) -> float:
    """Share of the exact neighbours that were found."""
    return float((exact.unsqueeze(2) == found.unsqueeze(1)).any(2).float().mean())
