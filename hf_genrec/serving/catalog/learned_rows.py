"""
Rows for items that come after training, of models that have learned one of each item: by ridge regression on texts.

A SASRec or another model without codes, a dense head without codes or vectors, and the text scorer know an item by a
row. What rows items with such texts have is learned once from the vectors of all items (`catalog.learn`) and kept in
`quantizer/rows.safetensors`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from hf_genrec.tokenizers.base import as_rows, one_thread
from hf_genrec.tokenizers.embeddings import Whitening
from hf_genrec.tokenizers.fusion import unit_rows
from hf_genrec.tokenizers.new_items import embed_later


ROWS_NAME = "rows.safetensors"
MOST_DIRECTIONS = 256  # of the whitened texts, as many as the text scorer has
_RIDGE = 10.0  # in units of the squared length of a text vector, which is 1; as for behaviour
_ALMOST_NONE = 1e-3  # for rows that are a linear image of the texts
_LEAST_COSINE = 0.95  # of such rows and what is learned of them, else the vectors are others


def parts_of(model: Any) -> list[tuple[str, Any]]:
    """
    The models that a model consists of, by the prefix of their columns in a table of new items.

    Args:
        model: A model of the library: itself, or the members of an ensemble.
    """
    if not hasattr(model, "members"):
        return [("", model)]
    return [(f"member_{number}_", member) for number, member in enumerate(model.members)]


def learned_rows(part: Any) -> torch.Tensor | None:
    """
    What a model knows an item by and does not derive from codes or vectors: a row for each item, `None` where nothing.

    Args:
        part: One of [`parts_of`].
    """
    config = part.config
    if hasattr(config, "text_dim"):
        return part.item_embeddings().detach()
    if getattr(config, "vector_dim", 0):
        return part.item_vectors.detach()
    if getattr(config, "dense_head", False) and not (config.dense_codes or config.dense_text_dim):
        return part.item_table.rows.weight.detach()
    return None


@dataclass(frozen=True, eq=False)
class RowRegression:
    """
    From text vectors to the rows of a model's parts.

    Args:
        whitening ([`Whitening`]): Of the vectors.
        text_mean (`np.ndarray` of shape `(num_components,)`): Mean of the whitened ones, rows of unit length.
        tables (`dict`): By prefix of a part: mean row and regression, `(dim,)` and `(num_components, dim)`.
        encoder (`dict`, *optional*): What is known of the encoder of the vectors: `model`, `revision`, `identity`.
    """

    whitening: Whitening
    text_mean: np.ndarray
    tables: dict[str, tuple[np.ndarray, np.ndarray]]
    encoder: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def fit(cls, model: Any, vectors: np.ndarray, *, encoder: dict[str, Any] | None = None) -> RowRegression:
        """
        Learn from all items of a model.

        Args:
            model: A model of the library.
            vectors (`np.ndarray` of shape `(num_items, text_dim)`): Of the texts of its items.
            encoder (`dict`, *optional*): See [`RowRegression`].
        """
        rows = {prefix: learned_rows(part) for prefix, part in parts_of(model)}
        wanted = {prefix: each.float().cpu().numpy() for prefix, each in rows.items() if each is not None}
        if not wanted:
            raise ValueError(f"A {type(model).__name__} has no rows to learn: new items can be added as it is.")
        vectors = as_rows(vectors, name="`vectors`", num_rows=model.config.num_items)
        whitening = Whitening.fit(vectors, num_components=MOST_DIRECTIONS, take_fewer=True)
        words = unit_rows(whitening.transform(vectors))
        middle = words.mean(axis=0)
        known, tables = (words - middle).astype(np.float64), {}
        is_text = {prefix: bool(getattr(part.config, "vector_dim", 0)) for prefix, part in parts_of(model)}
        for prefix, table in wanted.items():
            usual = table.mean(axis=0)
            ridge = _ALMOST_NONE if is_text[prefix] else _RIDGE
            with one_thread():
                gram = known.T @ known + ridge * np.eye(known.shape[1])
                learned = scipy.linalg.solve(gram, known.T @ (table - usual), assume_a="pos").astype(np.float32)
            if is_text[prefix]:
                _check_same_texts(known @ learned + usual, table)
            tables[prefix] = usual, learned
        return cls(whitening, middle, tables, dict(encoder or {}))

    @property
    def text_dim(self) -> int:
        """Columns of the vectors."""
        return len(self.whitening.mean)

    def embed(self, texts: Sequence[str], *, encoder: str | os.PathLike[str] | None = None) -> np.ndarray:
        """
        Vectors of texts by the encoder of the vectors that the rows were learned from.

        Args: see [`ItemCoder.embed`].
        """
        return embed_later(texts, self.encoder, encoder=encoder, widths=f"{self.text_dim} columns")

    def usable(self, *vectors: np.ndarray | None) -> np.ndarray:
        """
        The first of some vectors of new items that has the right width.

        Args: of texts, and of texts with behaviour, which `catalog.learn` may have been given.
        """
        for each in vectors:
            if each is not None and each.shape[1] == self.text_dim:
                return each
        found = " and ".join(str(each.shape[1]) for each in vectors if each is not None)
        raise ValueError(
            f"The rows of this model were learned from vectors of {self.text_dim} columns, those of new items have "
            f"{found}. Use vectors of the same encoder, or learn the rows again: `catalog.learn`."
        )

    def rows_of(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """
        Rows of new items, by prefix of a part, float32.

        Args:
            vectors (`np.ndarray` of shape `(num_new, text_dim)`): Of their texts, by the same encoder.
        """
        known = unit_rows(self.whitening.transform(vectors)) - self.text_mean
        return {
            prefix: (known @ learned + usual).astype(np.float32) for prefix, (usual, learned) in self.tables.items()
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `rows.safetensors`. Args: the folder `quantizer/`, which is made where it is missing."""
        Path(folder).mkdir(exist_ok=True)
        tensors = {f"whitening.{name}": getattr(self.whitening, name) for name in ("mean", "components", "scale")}
        tensors["text_mean"] = self.text_mean
        for prefix, (usual, learned) in self.tables.items():
            tensors |= {f"{prefix}row_mean": usual, f"{prefix}row_regression": learned}
        arrays = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
        save_file(arrays, Path(folder) / ROWS_NAME, metadata={"encoder": json.dumps(self.encoder)})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> RowRegression:
        """Read what `save` wrote. Args: the folder `quantizer/`."""
        with safe_open(Path(folder) / ROWS_NAME, framework="np") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
            encoder = json.loads((file.metadata() or {}).get("encoder", "{}"))
        whitening = Whitening(*(found[f"whitening.{name}"] for name in ("mean", "components", "scale")))
        prefixes = [name.removesuffix("row_mean") for name in found if name.endswith("row_mean")]
        tables = {prefix: (found[f"{prefix}row_mean"], found[f"{prefix}row_regression"]) for prefix in prefixes}
        return cls(whitening, found["text_mean"], tables, encoder)


def _check_same_texts(found: np.ndarray, rows: np.ndarray) -> None:
    """Whether the vectors are those that a text scorer was made of: its rows must come out again."""
    cosines = (unit_rows(found) * unit_rows(rows)).sum(axis=1)
    if np.median(cosines) < _LEAST_COSINE:
        raise ValueError(
            f"`vectors` are not those that the text scorer compares: its rows come out with a cosine of "
            f"{np.median(cosines):.2f}. Give the embeddings that it was fitted with."
        )
