"""
Item texts in, a float32 matrix of shape `(num_items, dim)` out, one row per item in the order of the texts.

The matrix comes from any sentence-transformers model (cached on disk) or from a ready file. [`Whitening`] turns it
into uncorrelated columns of unit variance, which is what the quantizers expect.
"""

import hashlib
import json
import logging
import os
import shutil
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import get_token, validate_repo_id
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch_file

from hf_genrec.files import reading, replaced, write_json
from hf_genrec.tokenizers.base import as_rows, one_thread
from hf_genrec.tokenizers.embedding_shards import embed_in_shards
from hf_genrec.tokenizers.row_tables import blocks


logger = logging.getLogger(__name__)

_HUB_TIMEOUT = 3.0  # seconds for the one request that asks the Hub for the commit
_MODEL_FILES = {".bin", ".json", ".model", ".safetensors", ".txt"}  # what a local model's results depend on


def embed_texts(
    texts: Sequence[str],
    *,
    model_name: str = "sentence-transformers/sentence-t5-base",
    revision: str | None = None,
    batch_size: int = 32,
    num_processes: int = 1,
    device: str | None = None,
    cache_dir: str | Path | None = None,
    show_progress: bool = True,
) -> np.ndarray:
    """
    One embedding per text from a sentence-transformers model, used as it is: maximum length, pooling, normalisation.

    The result is kept on disk under a key of the texts, the model and its revision; a second call reads it back. So is
    what there is of it while it is computed, in shards of 8,192 texts: a call after a killed one goes on from there.

    Args:
        texts (`Sequence[str]`): The item texts. Empty ones are embedded too, and counted in a warning.
        model_name (`str`, *optional*, defaults to `"sentence-transformers/sentence-t5-base"`, the paper's encoder):
            Name on the Hub or a local folder. A name without an owner is one of `sentence-transformers/`.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub. `None` is the newest one, or without a network that of the Hub cache.
        batch_size (`int`, *optional*, defaults to 32): Texts per forward pass.
        num_processes (`int`, *optional*, defaults to 1):
            Processes that share the texts, one per GPU or several on the cores. A program that asks for more than one
            must guard its start by `if __name__ == "__main__":`. Other batches move the last bits of the vectors.
        device (`str`, *optional*): Torch device. `None` lets sentence-transformers choose.
        cache_dir (`str` or `Path`, *optional*):
            Folder of the cache. `None` is `$HF_GENREC_CACHE`, or `hf_genrec` inside `$HF_HOME`.
        show_progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar.

    Returns:
        `np.ndarray` of shape `(num_texts, dim)`: float32.

    Raises:
        ImportError: If sentence-transformers is not installed.
        OSError: If the model is no folder and neither on the Hub nor in its local cache.
        TypeError: If a text is not a string.
        ValueError: If there are no texts or processes, or the model returns NaN or infinity.
    """
    _check_texts(texts)
    if num_processes < 1:
        raise ValueError(f"`num_processes` must be at least 1, got {num_processes}.")
    home = cache_dir or os.environ.get("HF_GENREC_CACHE") or Path(constants.HF_HOME) / "hf_genrec"
    source = _resolve_model(model_name, revision=revision)
    digest = hashlib.sha256(json.dumps([source.identity, list(texts)]).encode())
    stem = Path(home).expanduser() / "embeddings" / digest.hexdigest()[:32]
    cached = _read_cache(stem, num_texts=len(texts))
    if cached is not None:
        logger.info("Read %d embeddings from %s.", len(texts), stem)
        return cached
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            'Embedding texts needs sentence-transformers: pip install "hf-genrec[embeddings]". '
            "A ready matrix works without it (see `load_matrix`)."
        ) from error
    model = SentenceTransformer(
        source.location, revision=source.revision, device=device, local_files_only=source.is_offline
    )
    how: dict[str, Any] = {"batch_size": batch_size, "num_processes": num_processes, "device": device}
    shards = stem.with_suffix(".shards")
    matrix = embed_in_shards(model, texts, shards, name=model_name, show_progress=show_progress, **how)
    record = {"model": source.identity, "shape": matrix.shape, "sha256": hashlib.sha256(matrix.data).hexdigest()}
    with replaced(stem.with_suffix(".safetensors")) as partial:
        save_file({"embeddings": matrix}, partial)
    write_json(record, stem.with_suffix(".json"))
    shutil.rmtree(shards)
    return matrix


def encoder_identity(model_name: str, *, revision: str | None = None) -> str:
    """What exactly [`embed_texts`] would load: repository and commit, or a digest of local files. Args: see there."""
    return _resolve_model(model_name, revision=revision).identity


@dataclass(frozen=True, eq=False)
class Whitening:
    """
    Principal components scaled to unit variance, kept so that new items are projected like the old ones.

    Args:
        mean (`np.ndarray` of shape `(dim,)`): Mean of the fitted rows, float32.
        components (`np.ndarray` of shape `(num_components, dim)`):
            Orthonormal directions, by falling variance; the entry of largest magnitude is positive in each.
        scale (`np.ndarray` of shape `(num_components,)`):
            Standard deviation of the fitted rows along each direction (denominator `num_rows - 1`).
    """

    mean: np.ndarray
    components: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(
        cls,
        embeddings: np.ndarray,
        *,
        num_components: int,
        fit_on: np.ndarray | None = None,
        take_fewer: bool = False,
    ) -> "Whitening":
        """
        Find the directions of largest variance; a `ValueError` if the matrix is not finite or has too few of them.

        Args:
            embeddings (`np.ndarray` of shape `(num_items, dim)`): The matrix.
            num_components (`int`): Directions to keep; the paper keeps 192 of 768.
            fit_on (`np.ndarray`, *optional*): Rows to fit on, such as items in training. `None` is all.
            take_fewer (`bool`, *optional*, defaults to `False`):
                Whether to take as many directions as have any variance where there are fewer, instead of an error.
        """
        if embeddings.ndim != 2:
            as_rows(embeddings)  # which says so
        rows = np.arange(len(embeddings)) if fit_on is None else np.asarray(fit_on)
        parts = [rows[block] for block in blocks(len(rows))]
        wide: Callable[[np.ndarray], np.ndarray] = lambda part: as_rows(embeddings[part]).astype(np.float64)  # noqa: E731
        limit = min(len(rows) - 1, embeddings.shape[1])
        num_components = min(num_components, limit) if take_fewer else num_components
        if not 1 <= num_components <= limit:
            raise ValueError(f"`num_components` must be between 1 and {limit} here, got {num_components}.")
        sums = [wide(part).sum(axis=0) for part in parts]
        mean = sum(sums[1:], sums[0]) / len(rows)
        with one_thread():  # with more, the last bits depend on their number, and with them the quantizer's codes
            centred = (torch.from_numpy(wide(part) - mean) for part in parts)
            products = (part.T @ part for part in centred)
            covariance = sum(products, next(products)) / (len(rows) - 1)
            variances, vectors = (part.numpy() for part in torch.linalg.eigh(covariance))  # ascending
        variances, components = variances[::-1][:num_components], vectors.T[::-1][:num_components]
        num_usable = int((variances > 1e-12 * variances[0]).sum())
        if not num_usable:
            raise ValueError("All embeddings are equal: nothing in them distinguishes the items.")
        if num_usable < num_components and not take_fewer:
            raise ValueError(f"`num_components` is {num_components}, but only {num_usable} directions have variance.")
        num_components = min(num_components, num_usable)
        variances, components = variances[:num_components], components[:num_components]
        largest = np.abs(components).argmax(axis=1)
        components = components * np.sign(components[np.arange(num_components), largest])[:, None]
        return cls(*(np.ascontiguousarray(part, np.float32) for part in (mean, components, np.sqrt(variances))))

    def transform(self, embeddings: np.ndarray) -> np.ndarray:
        """Project rows of the same encoder: `(num_items, dim)` to `(num_items, num_components)`, float32."""
        rows, width = as_rows(embeddings, dim=len(self.mean)), len(self.scale)
        projected = np.empty((len(rows), width), np.float32)
        with one_thread():
            for block in blocks(len(rows)):
                part = torch.from_numpy(rows[block] - self.mean) @ torch.from_numpy(self.components.T)
                projected[block] = part.numpy() / self.scale
        return projected

    def first(self, num_components: int) -> "Whitening":
        """The same with the first components alone."""
        return Whitening(self.mean, self.components[:num_components], self.scale[:num_components])

    def save(self, path: str | Path) -> None:
        """Write the three arrays to a `.safetensors` file."""
        save_file({"mean": self.mean, "components": self.components, "scale": self.scale}, path)

    @classmethod
    def load(cls, path: str | Path) -> "Whitening":
        """Read what [`Whitening.save`] wrote: the same projection, bit for bit."""
        return cls(**load_file(path))


def load_matrix(path: str | Path, *, num_items: int) -> np.ndarray:
    """
    Read ready embeddings `(num_items, dim)` as float32, row order = item order.

    Args: a `.npy` file, or a `.safetensors` file with one tensor (or one called `embeddings`); and the rows it must
    have.
    """
    path = Path(path)
    if path.suffix == ".npy":
        with reading(path, "NumPy file"):
            matrix = np.load(path, mmap_mode="c", allow_pickle=False)  # what is too large for memory stays there
    elif path.suffix == ".safetensors":
        with reading(path, "safetensors file"):
            tensors = load_torch_file(path)  # NumPy has no bfloat16
        if len(tensors) > 1 and "embeddings" not in tensors:
            raise ValueError(f"{path} must hold one tensor or one called 'embeddings', it has {sorted(tensors)}.")
        matrix = (tensors["embeddings"] if len(tensors) > 1 else next(iter(tensors.values()))).float().numpy()
    else:
        raise ValueError(f"`path` must end with .npy or .safetensors, got {str(path)!r}.")
    if matrix.dtype.kind not in "fiu":
        raise ValueError(f"{path} must hold numbers, its type is {matrix.dtype}.")
    return as_rows(matrix, name=str(path), num_rows=num_items)


@dataclass(frozen=True)
class _ModelSource:
    """Where an encoder is loaded from, and what identifies it."""

    location: str
    identity: str
    revision: str | None = None
    is_offline: bool = True


def _resolve_model(model_name: str, *, revision: str | None) -> _ModelSource:
    """A local folder, else the Hub, else the Hub's local cache."""
    if Path(model_name).is_dir():
        return _local_source(Path(model_name))
    repo = model_name if "/" in model_name else f"sentence-transformers/{model_name}"
    commit, problem = _hub_commit(repo, revision=revision)
    is_offline = commit is None
    commit = commit or _cached_commit(repo, revision=revision)
    if commit is None:
        at = f" at the revision {revision!r}" if revision else ""
        raise OSError(
            f"The model {model_name!r} was not found: there is no such folder, {problem}, and the local cache "
            f"{constants.HF_HUB_CACHE} does not hold {repo}{at}. Check the name, or pass the folder of a "
            "sentence-transformers model instead (`--model FOLDER` on the command line)."
        )
    logger.info("Using %s at %s from the %s.", repo, commit, "local Hub cache" if is_offline else "Hub")
    return _ModelSource(location=repo, identity=f"{repo}@{commit}", revision=commit, is_offline=is_offline)


def _local_source(folder: Path) -> _ModelSource:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in _MODEL_FILES)
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return _ModelSource(location=str(folder), identity=f"files:{digest.hexdigest()}")


def _hub_commit(repo: str, *, revision: str | None) -> tuple[str | None, str]:
    """The commit that the Hub has, or `None` and why not. One request: a download would try again for 20 seconds."""
    if constants.HF_HUB_OFFLINE:
        return None, "the Hub is switched off (HF_HUB_OFFLINE)"
    at = f"/revision/{urllib.parse.quote(revision, safe='')}" if revision else ""
    try:
        validate_repo_id(repo)
        headers = {"authorization": f"Bearer {token}"} if (token := get_token()) else {}
        request = urllib.request.Request(f"{constants.ENDPOINT}/api/models/{repo}{at}", headers=headers)
        with urllib.request.urlopen(request, timeout=_HUB_TIMEOUT) as answer:
            return json.load(answer)["sha"], ""
    except HFValidationError:
        return None, "it is no name of a model on the Hub"
    except (OSError, ValueError, KeyError) as error:
        if getattr(error, "code", None) in (401, 404):  # 401 is what the Hub says of models that do not exist
            return None, f"the Hub has no {repo}" + (f" with the revision {revision!r}" if revision else "")
        return None, f"the Hub is not reachable ({error})"  # or a proxy answers in its place


def _cached_commit(repo: str, *, revision: str | None) -> str | None:
    """Read off the cached file's folder: `.../snapshots/<commit>/modules.json`."""
    for name in ("modules.json", "config.json"):  # of sentence-transformers, of a plain transformers model
        try:
            path = try_to_load_from_cache(repo, name, revision=revision)
        except HFValidationError:
            return None
        if isinstance(path, str):
            return Path(path).parent.name
    return None


def _read_cache(stem: Path, *, num_texts: int) -> np.ndarray | None:
    """The cached matrix; `None` if there is none or it is damaged."""
    matrix_path, record_path = stem.with_suffix(".safetensors"), stem.with_suffix(".json")
    if not (matrix_path.is_file() and record_path.is_file()):
        return None
    try:
        expected = json.loads(record_path.read_text(encoding="utf-8"))["sha256"]
        matrix = load_file(matrix_path)["embeddings"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        logger.warning("The cached embeddings %s cannot be read (%s) and are computed again.", matrix_path, error)
        return None
    if len(matrix) != num_texts or hashlib.sha256(matrix.data).hexdigest() != expected:
        logger.warning("The cached embeddings %s are damaged and are computed again.", matrix_path)
        return None
    return matrix


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or len(texts) == 0:
        raise ValueError("`texts` must be a sequence of at least one text.")
    wrong = [row for row, text in enumerate(texts) if not isinstance(text, str)]
    if wrong:
        raise TypeError(f"`texts` must hold strings, but {len(wrong)} do not, first at rows {wrong[:5]}.")
    empty = [row for row, text in enumerate(texts) if not text.strip()]
    if empty:
        logger.warning("%d of %d texts are empty, first at rows %s.", len(empty), len(texts), empty[:5])
