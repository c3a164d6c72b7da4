"""
What every quantizer is: embeddings `(num_items, dim)` in, codes `(num_items, num_levels)` out.

[`Quantizer`] checks, cuts into blocks, saves and loads. A new quantizer is one file with one subclass that says how to
learn, how to assign and which tensors it keeps, and whose module is named in `_MODULES` below.
"""

import importlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import faiss
import numpy as np
import scipy.sparse as sp
import torch
from safetensors.numpy import load_file, save_file

from hf_genrec.files import write_json
from hf_genrec.tokenizers.row_tables import LazyRows, RowTable, blocks
from hf_genrec.tokenizers.semantic_ids import MAX_CODEBOOK_SIZE, CollisionPolicy


PROGRESS_DELAY = 2.0  # seconds before a progress bar shows

_MODULES = ("residual_kmeans", "rqvae", "hierarchical_kmeans", "gaoq", "product", "random_codes")
_CONFIG_NAME = "config.json"
_WEIGHTS_NAME = "quantizer.safetensors"
_FULL_CODEBOOK, _ROWS_OF_FULL_CODEBOOKS = 256, 288
LONGEST_UNIQUE = 8  # codes; longer ids hardly collide, and too many tuples lie near each of them to be tried


class Quantizer(ABC):
    """
    Turns the embedding of an item into a tuple of codes.

    The same rows and seed give the same codes, in any batch, order of items and number of threads. `embeddings` is
    everywhere one row per item, `(num_items, dim)`, without NaN and infinity; `codes` is int64, `(num_items,
    num_levels)`, from 0 to `codebook_size - 1`. Each subclass keeps its arguments as attributes of the same name, so
    that they can be saved; what it is and what suits it are class attributes:

    - `quantizer_type`: its name in a saved `config.json`,
    - `names`: what the command line calls it, with the arguments that each name stands for,
    - `default_whitened`: whitened components that its paper takes; 0 for the plain embeddings,
    - `has_codebooks`: whether all items share one set of centroids per level, which the collision policies
      `"candidates"`, `"widen"` and `"rematch"` need,
    - `can_decode`: whether codes stand for an approximate embedding.

    Args:
        num_levels (`int`): Codes per item, at least 1.
        codebook_size (`int`): Codes per level: a power of two from 2 to 32,768.
        seed (`int`): Seed of everything that is drawn.

    Raises:
        ValueError: If an argument is out of range.
    """

    quantizer_type: ClassVar[str]
    names: ClassVar[Mapping[str, Mapping[str, Any]]]
    default_whitened: ClassVar[int] = 0
    has_codebooks: ClassVar[bool] = True
    can_decode: ClassVar[bool] = True
    block_size: ClassVar[int] = 2**16  # rows encoded at once
    least_rows: ClassVar[int | None] = None  # to learn from; `None` is one for each centroid of a level
    rows_per_code: ClassVar[int | None] = None  # of a level, that are enough to learn from; `None` for all there are

    def __init__(self, *, num_levels: int, codebook_size: int, seed: int) -> None:
        check_sizes(num_levels=num_levels, codebook_size=codebook_size)
        self.num_levels = num_levels
        self.codebook_size = codebook_size
        self.seed = seed
        self.report: dict[str, Any] = {}  # how training went, where there is more to say than the errors
        self._dim: int | None = None
        self._taken: sp.csr_array | None = None  # while it learns

    @property
    def _num_bits(self) -> int:
        return self.codebook_size.bit_length() - 1

    # What a subclass says

    @abstractmethod
    def _fit(self, rows: np.ndarray, *, show_progress: bool) -> None:
        """Learns from checked rows, on one thread."""

    @abstractmethod
    def _encode(self, rows: np.ndarray) -> np.ndarray:
        """Codes of checked rows, at most `block_size` of them."""

    def _shapes(self, dim: int) -> dict[str, tuple[int | None, ...]]:
        """Of the tensors that it keeps; `None` is any number."""
        return {}

    def _tensors(self) -> dict[str, np.ndarray]:
        """What it learned: by default one attribute `_name` for each name of `_shapes`."""
        return {name: getattr(self, f"_{name}") for name in self._shapes(self.dim)}

    def _restore(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Takes back what `_tensors` gave."""
        for name, tensor in tensors.items():
            setattr(self, f"_{name}", tensor)

    @property
    def codebooks(self) -> np.ndarray | None:
        """
        The centroids, float32 of shape `(num_levels, codebook_size, dim)`, or `None`. They lie where
        [`Quantizer.latents`] lie, and an item is approximated by the sum of one per level.
        """
        return None

    def latents(self, embeddings: np.ndarray) -> np.ndarray:
        """What the codebooks approximate, float32: the embeddings, unless a quantizer maps them elsewhere."""
        return as_rows(embeddings, dim=self.dim)

    @classmethod
    def default_codebook_size(cls, *, num_levels: int, num_items: int, num_rows: int) -> int:
        """
        Codes per level if none are given: 256. With fewer than 288 items to learn from (an RQ-VAE holds a tenth out)
        the largest power of two up to a quarter of them, so that codes are shared, or more if the catalog needs more.
        """
        if num_rows >= _ROWS_OF_FULL_CODEBOOKS:
            return _FULL_CODEBOOK
        sizes = [2**bits for bits in range(1, 9) if 2**bits <= max(2, num_rows)]
        shared = [size for size in sizes if 4 * size <= num_rows and size**num_levels >= num_items]
        enough = [size for size in sizes if size**num_levels >= num_items]
        return shared[-1] if shared else enough[0] if enough else sizes[-1]

    def usable_columns(self, dim: int) -> int:
        """How many of `dim` columns it can take: all, but for product quantization a multiple of the levels."""
        return dim

    @property
    def reads_log(self) -> bool:
        """Whether it learns from who took which item, too."""
        return False

    # What all share

    @property
    def dim(self) -> int:
        """Columns of the embeddings it was fitted on; a `ValueError` before that."""
        if self._dim is None:
            raise ValueError("The quantizer is not fitted: call `fit` or `load` first.")
        return self._dim

    @property
    def default_policy(self) -> CollisionPolicy:
        """
        The collision policy that suits it: `"keep"` for more than 8 codes, else `"widen"`, or `"append"` without
        codebooks.
        """
        if self.num_levels > LONGEST_UNIQUE:
            return "keep"
        return "widen" if self.has_codebooks else "append"

    def rows_to_learn(self, num_rows: int, *, most: int | None = None) -> np.ndarray:
        """
        Which rows [`Quantizer.fit`] learns from: all, or a sample of as many as are enough.

        Args:
            num_rows (`int`): How many there are.
            most (`int`, *optional*):
                How many at most. `None` is 256 for each code of a level where centroids are k-means of all rows, as
                faiss takes itself, and all for the trees and an RQ-VAE.
        """
        if most is None:
            most = num_rows if self.rows_per_code is None else self.rows_per_code * self.codebook_size
        if num_rows <= most:
            return np.arange(num_rows)
        return np.sort(np.random.default_rng(self.seed).choice(num_rows, size=most, replace=False))

    def fit(self, embeddings: np.ndarray, *, taken: sp.csr_array | None = None, show_progress: bool = True) -> Self:
        """
        Learn the codes, on one thread; a `ValueError` for wrong shapes, too few rows, or NaN and infinity.

        Args:
            embeddings (`np.ndarray` of shape `(num_rows, dim)`):
                Usually those of the items that occur in training. Of many rows a sample is read, see
                [`Quantizer.rows_to_learn`].
            taken (`scipy.sparse.csr_array` of shape `(num_users, num_rows)`, *optional*):
                1 where a user took the item of a row; only where [`Quantizer.reads_log`].
            show_progress (`bool`, *optional*, defaults to `True`): Whether a bar is shown after two seconds.
        """
        if np.ndim(embeddings) == 2:
            picked = self.rows_to_learn(len(embeddings))
            embeddings = embeddings if len(picked) == len(embeddings) else embeddings[picked]
        rows = as_rows(embeddings, at_least=self.codebook_size if self.least_rows is None else self.least_rows)
        if self.reads_log and (taken is None or taken.shape[1] != len(rows)):
            found = "none" if taken is None else f"the shape {taken.shape}"
            raise ValueError(f"`taken` must be of the shape (num_users, {len(rows)}): who took the rows; got {found}.")
        self._taken = taken if self.reads_log else None
        with one_thread():
            self._fit(rows, show_progress=show_progress)
        self._taken = None
        self._dim = rows.shape[1]
        return self

    def encode(self, embeddings: RowTable) -> np.ndarray:
        """Codes of items, seen in training or not; the vectors are read in blocks."""
        rows = embeddings if isinstance(embeddings, LazyRows) else as_rows(embeddings, dim=self.dim)
        codes = np.empty((len(rows), self.num_levels), dtype=np.int64)
        for block in blocks(len(rows), self.block_size):
            part = rows[block] if isinstance(rows, np.ndarray) else as_rows(rows[block], dim=self.dim)
            codes[block] = self._encode(part)
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """
        Approximate embeddings, float32 of shape `(num_items, dim)`; of codes with fewer columns, the first levels
        alone.
        """
        *_, approximation = self._approximations(self._checked_codes(codes))
        return approximation

    def relative_errors(self, embeddings: RowTable, codes: np.ndarray) -> list[float] | None:
        """
        Squared error of the first 1, 2, ... levels relative to the embeddings' own spread: 0 is a perfect
        reconstruction, 1 is what their mean achieves. `None` for a quantizer that cannot decode, or without any
        spread.

        For product quantization, a level that is left out counts as zeros. The decoder of an RQ-VAE was trained for
        all levels; errors of fewer may pass 1.
        """
        if not self.can_decode or not len(embeddings):
            return None
        codes, parts = self._checked_codes(codes), list(blocks(len(embeddings)))
        rows_of: Callable[[slice], np.ndarray] = lambda part: np.asarray(embeddings[part], np.float32)  # noqa: E731
        sums = [rows_of(part).sum(axis=0, dtype=np.float64) for part in parts]
        mean = (sum(sums[1:], sums[0]) / len(embeddings)).astype(np.float32)
        spread, errors = 0.0, np.zeros(codes.shape[1])
        for part in parts:
            rows = rows_of(part)
            spread += float(np.square(rows - mean).sum(dtype=np.float64))
            errors += [np.square(rows - near).sum(dtype=np.float64) for near in self._approximations(codes[part])]
        return (errors / spread).tolist() if spread else None

    def save(self, folder: str | Path) -> None:
        """Write `config.json`, and `quantizer.safetensors` if anything was learned, into a folder."""
        arguments = {name: getattr(self, name) for name in self._defaults()}
        config = {"quantizer_type": self.quantizer_type, **arguments, "dim": self.dim}
        folder = Path(folder)
        write_json(config, folder / _CONFIG_NAME)
        tensors = self._tensors()
        if tensors:
            save_file(tensors, folder / _WEIGHTS_NAME)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """
        Read what [`Quantizer.save`] wrote; the result assigns the same codes. `Quantizer.load` opens the folder of any
        quantizer, a subclass only its own.
        """
        config = json.loads((Path(folder) / _CONFIG_NAME).read_text(encoding="utf-8"))
        kind = config.get("quantizer_type")
        found = next((each for each in _subclasses() if each.quantizer_type == kind), None)
        if found is None or not issubclass(found, cls):
            known = [each.quantizer_type for each in _subclasses() if issubclass(each, cls)]
            opens = f"{cls.__name__}.load opens {', '.join(known)}"
            raise ValueError(f"{folder} holds a quantizer of the type {kind!r}; {opens}.")
        return found._open(Path(folder), config)

    @classmethod
    def named(
        cls,
        name: str,
        *,
        num_items: int,
        num_rows: int | None = None,
        num_levels: int | None = None,
        codebook_size: int | None = None,
        seed: int = 1234,
        options: Mapping[str, Any] | None = None,
    ) -> "Quantizer":
        """
        A new quantizer by the name that the command line uses, such as `"opq"`; `None` takes the defaults of its
        class.

        Args: one of the `names` of the quantizers; the items of the catalog and those to learn from, for
        [`Quantizer.default_codebook_size`]; the sizes and the seed, see [`Quantizer`]; and further arguments of the
        class.
        """
        found = next((each for each in _subclasses() if name in each.names), None)
        if found is None:
            names = [each for subclass in _subclasses() for each in subclass.names]
            raise ValueError(f"`quantizer` must be one of {', '.join(names)}, got {name!r}.")
        options, implied, defaults = options or {}, found.names[name], found._defaults()
        num_levels = defaults["num_levels"] if num_levels is None else num_levels
        if codebook_size is None:
            counts = {"num_items": num_items, "num_rows": num_items if num_rows is None else num_rows}
            codebook_size = found.default_codebook_size(num_levels=num_levels, **counts)
        fixed = {"num_levels": num_levels, "codebook_size": codebook_size, "seed": seed}
        allowed = [option for option in defaults if option not in fixed]
        unknown = [option for option in options if option not in allowed]
        if unknown:
            has = f"it has {', '.join(allowed)}" if allowed else "it has none"
            raise ValueError(f"The quantizer {name!r} has no option {', '.join(map(repr, unknown))}; {has}.")
        try:
            return found(**fixed, **{**implied, **options})
        except TypeError as error:
            raise ValueError(f"An option of the quantizer {name!r} has the wrong type: {error}.") from error

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        """Names and defaults of its arguments."""
        return {name: argument.default for name, argument in inspect.signature(cls).parameters.items()}

    @classmethod
    def _open(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        loaded = cls(**{name: config[name] for name in cls._defaults()})
        expected = loaded._shapes(config["dim"])
        tensors = load_file(folder / _WEIGHTS_NAME) if expected else {}
        found = {name: tensor.shape for name, tensor in tensors.items()}
        if set(found) != set(expected) or not all(_fits(found[name], shape) for name, shape in expected.items()):
            raise ValueError(f"The tensors in {folder} have the shapes {found}, config.json says {expected}.")
        loaded._dim = config["dim"]
        loaded._restore(tensors)
        return loaded

    def _checked_codes(self, codes: np.ndarray) -> np.ndarray:
        codes = np.empty((0, self.num_levels)) if not self.dim else np.asarray(codes)
        if codes.ndim != 2 or not 1 <= codes.shape[1] <= self.num_levels:
            raise ValueError(f"`codes` must have the shape (num_items, {self.num_levels}) or less, got {codes.shape}.")
        if codes.size and not (codes.min() >= 0 and codes.max() < self.codebook_size):
            raise ValueError(f"`codes` must lie between 0 and {self.codebook_size - 1}.")
        return codes.astype(np.int64)

    def _approximations(self, codes: np.ndarray) -> Iterator[np.ndarray]:
        """Embeddings that the first, the first two, ... columns of the codes stand for."""
        codebooks = self.codebooks
        if codebooks is None:
            raise ValueError(f"{type(self).__name__} cannot decode: its codes stand for no embedding.")
        total = np.zeros((len(codes), codebooks.shape[2]), dtype=np.float32)
        for centroids, level in zip(codebooks, codes.T, strict=False):
            total = total + centroids[level]
            yield total


def check_sizes(*, num_levels: int, codebook_size: int) -> None:
    """Refuse sizes that no quantizer has: faiss counts bits. Args: see [`Quantizer`]."""
    if num_levels < 1:
        raise ValueError(f"`num_levels` must be at least 1, got {num_levels}.")
    if not 2 <= codebook_size <= MAX_CODEBOOK_SIZE or codebook_size & (codebook_size - 1):
        raise ValueError(f"`codebook_size` must be a power of two from 2 to {MAX_CODEBOOK_SIZE}, got {codebook_size}.")


def as_rows(
    embeddings: np.ndarray,
    *,
    name: str = "`embeddings`",
    dim: int | None = None,
    num_rows: int | None = None,
    at_least: int = 0,
) -> np.ndarray:
    """
    Vectors as faiss takes them, float32, contiguous and finite; a `ValueError` for any others.

    Args: one row per item; what an error calls them; the columns, the rows and the least rows that there must be.
    """
    rows = np.ascontiguousarray(embeddings, dtype=np.float32)  # the same where it is that, in memory or in a file
    if rows.ndim != 2:
        raise ValueError(f"{name} must have two dimensions, its shape is {rows.shape}.")
    if not rows.shape[1]:
        raise ValueError(f"{name} must have at least one column, its shape is {rows.shape}.")
    if num_rows is not None and len(rows) != num_rows:
        raise ValueError(f"{name} must have one row per item, {num_rows}, but has {len(rows)}.")
    is_finite = np.zeros(len(rows), bool)
    for block in blocks(len(rows)):
        is_finite[block] = np.isfinite(rows[block]).all(axis=1)
    wrong = np.flatnonzero(~is_finite)
    if len(wrong):
        raise ValueError(f"{name} has NaN or infinity in {len(wrong)} rows, first at rows {wrong[:5].tolist()}.")
    if dim is not None and rows.shape[1] != dim:
        raise ValueError(f"{name} must have {dim} columns, got {rows.shape[1]}.")
    if len(rows) < at_least:
        raise ValueError(
            f"{name} has {len(rows)} rows, fewer than the {at_least} centroids of a level. "
            "Use a smaller `codebook_size` or more items."
        )
    return rows


def squared_distances(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """
    Of rows `(B, D)` to centroids `(K, D)`, up to a constant per row; in float64, so that rounding, which depends on
    the batch, decides nothing. Args: both.
    """
    centroids = centroids.astype(np.float64)
    return (centroids**2).sum(axis=1) - 2 * rows @ centroids.T


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs faiss and torch on one thread: with more, the last bits and with them codes depend on their number."""
    of_faiss, of_torch = faiss.omp_get_max_threads(), torch.get_num_threads()
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(of_faiss)
        torch.set_num_threads(of_torch)


def _subclasses() -> Iterator[type[Quantizer]]:
    """The quantizers of this room, imported one at a time until one fits, then any that others have defined."""
    modules = [f"hf_genrec.tokenizers.{name}" for name in _MODULES]
    for module in modules:
        defined = vars(importlib.import_module(module)).values()
        classes = [each for each in defined if inspect.isclass(each) and issubclass(each, Quantizer)]
        yield from (each for each in classes if each.__module__ == module and not inspect.isabstract(each))
    yield from (each for each in Quantizer.__subclasses__() if each.__module__ not in modules)


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(wanted in (None, size) for size, wanted in zip(shape, expected))  # noqa: B905
