"""
What must hold for every quantizer. A test class inherits `QuantizerInvariants` and says which one it means; done:

    class TestHierarchicalKMeans(QuantizerInvariants):
        QUANTIZER = HierarchicalKMeans
        OTHER_SIZE = "num_levels"

That folders of earlier versions give the same codes is held by `tests/test_older_folders.py`.
"""

import json

import faiss
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from hf_genrec.tokenizers.base import Quantizer
from hf_genrec.tokenizers.collisions import group_by_codes
from hf_genrec.tokenizers.semantic_ids import SemanticIds


NUM_ROWS, DIM = 301, 12
NEW_ITEMS = np.random.default_rng(8).normal(size=(57, DIM)).astype(np.float32)


def make_vectors() -> np.ndarray:
    """Correlated columns around 23 centres."""
    random = np.random.default_rng(7)
    centres = random.normal(size=(23, DIM))
    noise = random.normal(size=(NUM_ROWS, DIM)) @ random.normal(size=(DIM, DIM))
    return (centres[random.integers(23, size=NUM_ROWS)] + 0.1 * noise + 0.5).astype(np.float32)


def make_log(num_rows: int) -> sp.csr_array:
    """Nineteen users with rows of their own choice."""
    return sp.csr_array((np.random.default_rng(9).random((19, num_rows)) < 0.2).astype(np.float64))


class QuantizerInvariants:
    QUANTIZER: type[Quantizer]
    ARGUMENTS: dict = {}  # further ones than the sizes
    FILES = ["config.json", "quantizer.safetensors"]
    OTHER_SIZE: str | None = None  # what in config.json contradicts the tensors if it is doubled
    WRONG: dict = {}  # further arguments out of range
    LEAST_ROWS = 8

    @classmethod
    def new(cls, **changes) -> Quantizer:
        return cls.QUANTIZER(**{"num_levels": 3, "codebook_size": 8} | cls.ARGUMENTS | changes)

    @classmethod
    def fitted(cls, vectors, **changes) -> Quantizer:
        quantizer = cls.new(**changes)
        taken = make_log(len(vectors)) if quantizer.reads_log else None
        return quantizer.fit(vectors, taken=taken, show_progress=False)

    @pytest.fixture(scope="class")
    @classmethod
    def vectors(cls):
        return make_vectors()

    @pytest.fixture(scope="class")
    @classmethod
    def quantizer(cls, vectors):
        return cls.fitted(vectors)

    def test_codes_have_one_column_per_level_and_lie_below_the_codebook_size(self, vectors, quantizer):
        codes = quantizer.encode(vectors)

        assert (codes.shape, codes.dtype) == ((NUM_ROWS, 3), np.int64)
        assert codes.min() >= 0
        assert codes.max() == 7
        assert quantizer.encode(vectors[:0]).shape == (0, 3)

    def test_codes_depend_on_neither_the_batch_nor_the_block(self, vectors, quantizer, monkeypatch):
        together = quantizer.encode(vectors)

        for batch_size in (1, 7, 29):
            batches = [quantizer.encode(vectors[start : start + batch_size]) for start in range(0, 31, batch_size)]
            np.testing.assert_array_equal(np.concatenate(batches)[:31], together[:31])
            monkeypatch.setattr(self.QUANTIZER, "block_size", batch_size)
            np.testing.assert_array_equal(quantizer.encode(vectors), together)

    def test_same_seed_gives_the_same_codes_whatever_happened_before(self, vectors, quantizer):
        torch.rand(3)
        before = faiss.omp_get_max_threads(), torch.get_num_threads()
        faiss.omp_set_num_threads(3)
        torch.set_num_threads(3)
        try:
            again = self.fitted(vectors)
            during = faiss.omp_get_max_threads(), torch.get_num_threads()
        finally:
            faiss.omp_set_num_threads(before[0])
            torch.set_num_threads(before[1])

        np.testing.assert_array_equal(again.encode(NEW_ITEMS), quantizer.encode(NEW_ITEMS))
        if quantizer.has_codebooks:
            np.testing.assert_array_equal(again.codebooks, quantizer.codebooks)
        assert during == (3, 3)  # restored

    def test_other_seed_gives_other_codes(self, vectors, quantizer):
        other = self.fitted(vectors, seed=5)

        assert not np.array_equal(other.encode(vectors), quantizer.encode(vectors))

    def test_saved_quantizer_is_the_same(self, quantizer, tmp_path):
        quantizer.save(tmp_path / "made" / "quantizer")
        loaded = Quantizer.load(tmp_path / "made" / "quantizer")

        assert type(loaded) is self.QUANTIZER
        assert sorted(path.name for path in (tmp_path / "made" / "quantizer").iterdir()) == self.FILES
        codes = quantizer.encode(NEW_ITEMS)
        np.testing.assert_array_equal(loaded.encode(NEW_ITEMS), codes)
        for name in ("num_levels", "codebook_size", "seed", "dim", "report"):
            assert getattr(loaded, name) == getattr(quantizer, name)
        if quantizer.can_decode:
            np.testing.assert_array_equal(loaded.decode(codes), quantizer.decode(codes))
        loaded.save(tmp_path / "again")
        for name in self.FILES[1:]:  # transformers notes more in the config of what it has loaded
            assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "made/quantizer" / name).read_bytes()

    def test_folder_of_another_quantizer_or_of_other_sizes_is_refused(self, quantizer, tmp_path):
        quantizer.save(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
        kind = self.QUANTIZER.quantizer_type
        (tmp_path / "config.json").write_text(json.dumps(config | {"quantizer_type": "vq"}), encoding="utf-8")

        with pytest.raises(ValueError, match=f"type 'vq'; {self.QUANTIZER.__name__}.load opens {kind}"):
            self.QUANTIZER.load(tmp_path)
        if self.OTHER_SIZE is not None:
            wrong = config | {self.OTHER_SIZE: 2 * config[self.OTHER_SIZE]}
            (tmp_path / "config.json").write_text(json.dumps(wrong), encoding="utf-8")
            with pytest.raises(ValueError, match="config.json"):
                self.QUANTIZER.load(tmp_path)

    def test_codes_stand_for_embeddings_level_by_level(self, vectors, quantizer):
        codes = quantizer.encode(vectors)

        errors = quantizer.relative_errors(vectors, codes)
        if not quantizer.can_decode:
            assert errors is None
            with pytest.raises(ValueError, match="cannot decode"):
                quantizer.decode(codes)
            return
        decoded = quantizer.decode(codes)
        assert (decoded.shape, decoded.dtype) == (vectors.shape, np.float32)
        assert quantizer.decode(codes[:5, :1]).shape == (5, DIM)
        spread = ((vectors - vectors.mean(axis=0)) ** 2).sum()
        assert errors[-1] == pytest.approx(((decoded - vectors) ** 2).sum() / spread, rel=1e-4)
        assert len(errors) == 3
        assert errors[-1] < min(1, errors[0])
        assert quantizer.relative_errors(vectors[:0], codes[:0]) is None

    def test_usual_policy_resolves_the_collisions(self, vectors, quantizer):
        names = [f"item{row}" for row in range(NUM_ROWS)]

        ids = SemanticIds.from_quantizer(quantizer, vectors, names)

        assert ids.policy == ("widen" if quantizer.has_codebooks else "append")
        assert ids.is_unique == (group_by_codes(ids.codes)[1] == 1).all() == True  # noqa: E712
        np.testing.assert_array_equal(ids.codes_before, quantizer.encode(vectors))
        assert self.new(num_levels=9).default_policy == "keep"
        if not quantizer.has_codebooks:
            assert quantizer.codebooks is None
            with pytest.raises(ValueError, match="use 'append'"):
                SemanticIds.from_quantizer(quantizer, vectors, names, policy="rematch")

    def test_wrong_vectors_and_codes_are_named(self, vectors, quantizer):
        broken = vectors.copy()
        broken[[4, 9], 2] = np.nan, np.inf

        for use in (self.new().fit, quantizer.encode, quantizer.latents):
            with pytest.raises(ValueError, match=r"NaN or infinity in 2 rows, first at rows \[4, 9\]"):
                use(broken)
            with pytest.raises(ValueError, match=r"two dimensions, its shape is \(301,\)"):
                use(vectors[:, 0])
        with pytest.raises(ValueError, match="12 columns, got 11"):
            quantizer.encode(vectors[:, :11])
        for codes in (np.zeros((2, 4), int), np.zeros((2, 0), int), np.zeros(3, int)):
            with pytest.raises(ValueError, match="`codes` must have the shape"):
                quantizer.decode(codes)
        for code in (-1, 8):
            with pytest.raises(ValueError, match="between 0 and 7"):
                quantizer.decode(np.array([[0, code, 0]]))

    def test_too_few_rows_to_learn_from_are_refused(self, vectors):
        if self.LEAST_ROWS:
            with pytest.raises(ValueError, match=f"{self.LEAST_ROWS - 1} rows, fewer than|at least one row"):
                self.fitted(vectors[: self.LEAST_ROWS - 1])

    def test_quantizer_that_is_not_fitted_says_so(self, vectors, tmp_path):
        fresh = self.new()

        for use in (
            lambda: fresh.encode(vectors),
            lambda: fresh.decode(np.zeros((2, 3), int)),
            lambda: fresh.save(tmp_path),
            lambda: fresh.latents(vectors),
        ):
            with pytest.raises(ValueError, match="not fitted: call `fit` or `load` first"):
                use()
        if fresh.has_codebooks:
            with pytest.raises(ValueError, match="not fitted"):
                _ = fresh.codebooks

    def test_arguments_out_of_range_are_named(self):
        sizes = [("num_levels", 0), ("codebook_size", 1), ("codebook_size", 100), ("codebook_size", 65536)]

        for name, value in [*sizes, *self.WRONG.items()]:
            with pytest.raises(ValueError, match=name):
                self.new(**{name: value})
