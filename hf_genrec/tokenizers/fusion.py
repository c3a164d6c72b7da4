"""
Texts and behaviour in one vector, and what it takes to give a later item, which has texts alone, such a vector too.

Text embeddings `(num_items, text_dim)` and behaviour `(num_items, dim)` in, fused vectors out. What was learned is
kept in the embeddings file and beside the quantizer, so that new items stand where items with such texts stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.linalg
from safetensors import safe_open
from safetensors.numpy import save_file

from hf_genrec.tokenizers.base import as_rows, one_thread
from hf_genrec.tokenizers.embeddings import Whitening


FUSION_NAME = "fusion.safetensors"
_PREFIX = "fusion."  # of its tensors in an embeddings file
_RIDGE = 10.0  # of the regression for cold items, in units of the squared length of a text vector, which is 1


@dataclass(frozen=True, eq=False)
class Fusion:
    """
    Fused vectors `[behaviour | weight * text]`, whose two parts have the lengths 1 and `weight`.

    Args:
        whitening ([`Whitening`]): Of the texts, fitted on the items that have behaviour.
        text_mean (`np.ndarray` of shape `(num_components,)`): Mean of their whitened texts, rows of unit length.
        behavior_mean (`np.ndarray` of shape `(dim,)`): Mean of their behaviour.
        regression (`np.ndarray` of shape `(num_components, dim)`): Ridge regression of behaviour on texts, centred.
        weight (`float`): Length of the text part.
    """

    whitening: Whitening
    text_mean: np.ndarray
    behavior_mean: np.ndarray
    regression: np.ndarray
    weight: float

    @classmethod
    def fit(cls, text: np.ndarray, behavior: np.ndarray, *, weight: float, num_components: int) -> Fusion:
        """
        Learn from the items that have behaviour.

        Args: see [`fuse_vectors`].
        """
        behavior = as_rows(behavior, name="`behavior`")
        text = as_rows(text, name="`text`", num_rows=len(behavior))
        if not 0 < weight < np.inf:
            raise ValueError(f"`weight` must be above 0, got {weight}. For behaviour alone take `behavior` as it is.")
        warm = np.flatnonzero(behavior.any(axis=1))
        if len(warm) < 2:
            raise ValueError(f"`behavior` must have at least two rows that are not all zeros, got {len(warm)}.")
        whitening = Whitening.fit(text, num_components=num_components, fit_on=warm, take_fewer=True)
        words, filled = unit_rows(whitening.transform(text)), unit_rows(behavior)
        middle, usual = words[warm].mean(axis=0), filled[warm].mean(axis=0)
        known, wanted = (words[warm] - middle).astype(np.float64), (filled[warm] - usual).astype(np.float64)
        with one_thread():
            gram = known.T @ known + _RIDGE * np.eye(known.shape[1])
            learned = scipy.linalg.solve(gram, known.T @ wanted, assume_a="pos")
        return cls(whitening, middle, usual, learned, weight)

    @property
    def text_dim(self) -> int:
        """Columns of the text embeddings."""
        return len(self.whitening.mean)

    def transform(self, text: np.ndarray, behavior: np.ndarray | None = None) -> np.ndarray:
        """
        Fused vectors `(num_items, dim + num_components)`, float32.

        Args:
            text (`np.ndarray` of shape `(num_items, text_dim)`): Embeddings of the same encoder.
            behavior (`np.ndarray` of shape `(num_items, dim)`, *optional*):
                Rows of zeros get the behaviour that is predicted from the text; `None` for all.
        """
        words = unit_rows(self.whitening.transform(text))
        if behavior is None:
            behavior = np.zeros((len(words), len(self.behavior_mean)), np.float32)
        filled = unit_rows(behavior)
        cold = np.flatnonzero(~filled.any(axis=1))
        known = (words[cold] - self.text_mean).astype(np.float64)
        filled[cold] = unit_rows(known @ self.regression + self.behavior_mean)
        return np.hstack([filled, self.weight * words]).astype(np.float32)

    def tensors(self) -> dict[str, np.ndarray]:
        """What [`Fusion.read`] finds in a file, by names of their own."""
        whitening = {f"whitening.{name}": getattr(self.whitening, name) for name in ("mean", "components", "scale")}
        own = {"text_mean": self.text_mean, "behavior_mean": self.behavior_mean, "regression": self.regression}
        own |= whitening | {"weight": np.array([self.weight])}
        return {f"{_PREFIX}{name}": np.ascontiguousarray(tensor) for name, tensor in own.items()}

    def save(self, path: str | Path) -> None:
        """Write its tensors to a `.safetensors` file."""
        save_file(self.tensors(), path)

    @classmethod
    def read(cls, path: str | Path) -> Fusion | None:
        """
        What a file of embeddings, or one of its own, holds of a fusion.

        Args:
            path (`str` or `Path`): A file; `None` is returned for one that holds none or is no `.safetensors` file.
        """
        if Path(path).suffix != ".safetensors":
            return None
        with safe_open(path, framework="np") as file:
            names = [name for name in file.keys() if name.startswith(_PREFIX)]  # noqa: SIM118 (it is no dictionary)
            found = {name.removeprefix(_PREFIX): file.get_tensor(name) for name in names}
        if not found:
            return None
        whitening = Whitening(*(found.pop(f"whitening.{name}") for name in ("mean", "components", "scale")))
        return cls(whitening, weight=float(found.pop("weight")[0]), **found)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; zeros stay zeros. Args: one row per item."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    # In rows whatever order the input has: a file of vectors is written as they lie in memory.
    return np.ascontiguousarray(vectors / np.where(lengths > 0, lengths, 1.0), np.float32)
