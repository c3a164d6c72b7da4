"""
Item vectors from the log: which items the same users took, alone or beside the texts.

A prepared data set in, one vector per item out, in the order of the items. Of the log only the training part is read.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.modeling.genrec_folder import items_fingerprint
from hf_genrec.modeling.modeling_sasrec import SASRecForItemGeneration
from hf_genrec.tokenizers.fusion import Fusion, unit_rows


FUSED_COMPONENTS = 64  # of the whitened texts


def behavior_vectors(
    data: PreparedDataset,
    *,
    num_components: int = 96,
    regularization: float = 3.0,
    run: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """
    One vector per item from the training part of a log: items that the same users took point the same way.

    Without `run` it is a truncated SVD of the user-item matrix, in which the entry of a user with `m` items and an
    item with `n` users is `1 / sqrt((m + r) (n + r))`: long histories and popular items count less, and `r`
    (`regularization`) keeps short histories and rare items from counting most. Its right singular vectors are the
    eigenvectors of the normalised co-occurrence of items; each is scaled by its eigenvalue. It takes seconds.

    Args: the data set; the columns, at most what users and items allow; what is added to both counts; and the folder
    of a SASRec trained on the same data, whose item table is taken instead of the SVD.

    Returns:
        `np.ndarray` of shape `(num_items, num_components)`: float32, rows of unit length; zeros for items that occur
        nowhere in the training part. [`fuse_vectors`] gives these a vector.

    Source: ours, after spectral collaborative filtering; compared on validation data with the SVD of the item-item
    matrix and of its PMI, which both predict the next item worse.
    """
    taken = data.interaction_matrix()
    is_warm = np.asarray(taken.sum(axis=0)).ravel() > 0
    if not is_warm.any():
        raise ValueError("The training part of the log is empty: there is no behaviour to learn from.")
    if run is None:
        vectors = singular_vectors(taken, num_components=num_components, regularization=regularization)
    else:
        vectors = _item_table(run, data)
    return unit_rows(vectors * is_warm[:, None])


def fuse_vectors(
    text: np.ndarray, behavior: np.ndarray, *, weight: float = 0.6, num_components: int = FUSED_COMPONENTS
) -> np.ndarray:
    """
    Behaviour beside texts: `[behaviour | weight * text]`, float32, where both parts of a row have unit length.

    The texts are whitened on the items that have behaviour. Cold items, whose behaviour is all zeros, get the
    behaviour that ridge regression predicts from their whitened texts, scaled to unit length: they stand where items
    with such texts stand.

    Args: embeddings of the texts `(num_items, text_dim)`; what [`behavior_vectors`] gave; the length of the text part,
    where 1 counts both alike; and the whitened components, at most what items and texts allow.

    Source: ours; sums of text and collaborative vectors as in LETTER (https://huggingface.co/papers/2405.07314) need a
    trained network, a concatenation does not. Example: the room's README.
    """
    return Fusion.fit(text, behavior, weight=weight, num_components=num_components).transform(text, behavior)


def singular_vectors(taken: sp.csr_array, *, num_components: int, regularization: float = 3.0) -> np.ndarray:
    """[`behavior_vectors`] of a matrix `(num_users, num_items)`. Args: see there."""
    if num_components < 1 or regularization < 0:
        raise ValueError(
            "`num_components` must be at least 1 and `regularization` at least 0, got "
            f"{num_components} and {regularization}."
        )
    weights = [
        1 / np.sqrt(np.maximum(np.asarray(taken.sum(axis=axis)).ravel() + regularization, 1.0)) for axis in (1, 0)
    ]
    scaled = sp.csr_array(sp.diags_array(weights[0]) @ taken @ sp.diags_array(weights[1]))
    smaller = min(scaled.shape)
    if 2 * num_components >= smaller:  # Lanczos needs room; the whole is small then
        _, values, rows = scipy.linalg.svd(scaled.toarray(), full_matrices=False)
        values, rows = values[:num_components], rows[:num_components]
    else:
        start = np.random.default_rng(0).normal(size=smaller)  # else the signs would differ from run to run
        _, values, rows = svds(scaled, k=num_components, v0=start)
        values, rows = values[::-1], rows[::-1]
    signs = np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)])
    return unit_rows((rows * (signs * values**2)[:, None]).T)


def _item_table(run: str | os.PathLike[str], data: PreparedDataset) -> np.ndarray:
    """The token table of a trained SASRec, rows of the items."""
    folder = Path(run)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no model (no config.json): pass the folder of a trained SASRec.")
    model = SASRecForItemGeneration.from_pretrained(folder)
    known = model.config.items_fingerprint
    if model.config.num_items != len(data.item_ids) or known not in (None, items_fingerprint(data.item_ids)):
        raise ValueError(f"The model in {folder} is about other items than those of {data.folder}. Train it again.")
    return model.item_embeddings().detach().float().numpy()
