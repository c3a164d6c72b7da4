"""
Codes in, [`SemanticIds`] out: the table that ties every item id to its tuple of codes.

Row order is item order everywhere. Codes are 0-based integers below one `codebook_size` that all levels share.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from hf_genrec.files import first_five
from hf_genrec.modeling.genrec_folder import catalog_fingerprint, items_fingerprint
from hf_genrec.tokenizers.collisions import (
    append_code,
    collision_statistics,
    group_by_codes,
    level_statistics,
    reassign_by_candidates,
    rematch_last_level,
)
from hf_genrec.tokenizers.row_tables import RowTable, mapped


if TYPE_CHECKING:
    from hf_genrec.tokenizers.base import Quantizer


CollisionPolicy = Literal["append", "candidates", "widen", "rematch", "keep"]

_POLICIES = get_args(CollisionPolicy)
MAX_CODEBOOK_SIZE = 2**15  # codes travel as int16
_METADATA_KEY = b"hf_genrec.semantic_ids"


@dataclass(frozen=True, eq=False)
class SemanticIds:
    """
    Semantic IDs of all items of a catalog, usually made by [`SemanticIds.from_quantizer`], [`SemanticIds.from_codes`]
    (any codes plus a collision policy) or [`SemanticIds.from_json`] (another project's ids).

    Args:
        item_ids (`tuple[str, ...]`): Distinct item ids.
        codes (`np.ndarray` of shape `(num_items, num_levels)`): Codes after the collision policy.
        codebook_size (`int`): Every code is below it; at most 32,768.
        policy (`str`): What was done about collisions: `"append"`, `"candidates"`, `"widen"`, `"rematch"` or `"keep"`.
        raw_codes (`np.ndarray`, *optional*): Codes before the policy; `None` means that they are the same.

    Raises:
        ValueError: If ids repeat, shapes differ, or a code is out of range.

    Example:

    ```python
    >>> codes = np.array([[1, 2], [0, 3], [1, 2]])
    >>> ids = SemanticIds.from_codes(["a", "b", "c"], codes, codebook_size=4, policy="append")
    >>> ids.to_dict()
    {'a': [1, 2, 0], 'b': [0, 3, 0], 'c': [1, 2, 1]}
    >>> ids.is_unique
    True

    ```
    """

    item_ids: tuple[str, ...]
    codes: np.ndarray
    codebook_size: int
    policy: CollisionPolicy
    raw_codes: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "item_ids", tuple(self.item_ids))
        _check_item_ids(self.item_ids)
        if self.policy not in _POLICIES:
            raise ValueError(f"`policy` must be one of {', '.join(_POLICIES)}, got {self.policy!r}.")
        if not 1 <= self.codebook_size <= MAX_CODEBOOK_SIZE:
            raise ValueError(f"`codebook_size` must be between 1 and {MAX_CODEBOOK_SIZE}, got {self.codebook_size}.")
        for name in ("codes", "raw_codes"):
            codes = self.codes if self.raw_codes is None else getattr(self, name)
            codes = _check_codes(codes, name=name, num_items=len(self.item_ids), codebook_size=self.codebook_size)
            object.__setattr__(self, name, codes)

    @classmethod
    def from_codes(
        cls,
        item_ids: Sequence[str],
        codes: np.ndarray,
        *,
        codebook_size: int,
        policy: CollisionPolicy,
        embeddings: RowTable | None = None,
        codebooks: np.ndarray | None = None,
        num_candidates: int = 5,
    ) -> "SemanticIds":
        """
        Resolve the collisions of a quantizer's codes; a `ValueError` where the policy cannot succeed.

        Args:
            item_ids (`Sequence[str]`): Distinct item ids, in the order of the rows.
            codes (`np.ndarray` of shape `(num_items, num_levels)`): The quantizer's codes.
            codebook_size (`int`): Codes per level. `"append"` raises it where a group is larger.
            policy (`str`):
                `"append"` adds a level that counts (TIGER); `"candidates"` reassigns among the nearest centroids
                (PSID) and fails where none is free; `"widen"` is the same but looks further; `"rematch"` hands out the
                last level anew (ZCR); `"keep"` changes nothing: a model gives items that share an id one score.
            embeddings (`np.ndarray`, *optional*): For all but `"append"` and `"keep"`, see [`reassign_by_candidates`].
            codebooks (`np.ndarray`, *optional*): Likewise.
            num_candidates (`int`, *optional*, defaults to 5): Likewise.
        """
        raw = cls(tuple(item_ids), codes, codebook_size, policy)
        if policy == "keep":
            return raw
        if policy == "append":
            final = append_code(raw.codes)
            return cls(raw.item_ids, final, max(codebook_size, int(final.max()) + 1), policy, raw.codes)
        if embeddings is None or codebooks is None:
            raise ValueError(f"The policy {policy!r} needs `embeddings` and `codebooks`. Without them, use 'append'.")
        if policy == "rematch":
            final = rematch_last_level(raw.codes, embeddings=embeddings, codebooks=codebooks)
        else:
            options: dict[str, Any] = {"num_candidates": num_candidates, "widen": policy == "widen"}
            final = reassign_by_candidates(raw.codes, embeddings=embeddings, codebooks=codebooks, **options)
        return cls(raw.item_ids, final, codebook_size, policy, raw.codes)

    @classmethod
    def from_quantizer(
        cls,
        quantizer: "Quantizer",
        vectors: RowTable,
        item_ids: Sequence[str],
        *,
        policy: CollisionPolicy | None = None,
        num_candidates: int = 5,
    ) -> "SemanticIds":
        """
        The ids that a fitted quantizer gives to a catalog: its codes, collisions resolved; unique for every policy but
        `"keep"`. A `ValueError` if the quantizer is not fitted, sizes do not fit, or the policy cannot succeed.

        Args:
            quantizer ([`Quantizer`]): Fitted; it knows the codebook size, the centroids and the usual policy.
            vectors (`np.ndarray` of shape `(num_items, dim)`): Embeddings, projected as those that it was fitted on.
            item_ids (`Sequence[str]`): Distinct item ids, in the order of the rows.
            policy (`str`, *optional*): See [`SemanticIds.from_codes`]; `None` is [`Quantizer.default_policy`].
            num_candidates (`int`, *optional*, defaults to 5): See [`SemanticIds.from_codes`].

        Example:

        ```python
        >>> from hf_genrec.tokenizers.residual_kmeans import ResidualKMeans
        >>> vectors = np.array([[0.0, 1.0], [0.2, 1.1], [8.0, 3.0], [8.1, 3.2], [8.2, 3.1]])
        >>> quantizer = ResidualKMeans(num_levels=2, codebook_size=4).fit(vectors)
        >>> ids = SemanticIds.from_quantizer(quantizer, vectors, ["tea", "cup", "pot", "jam", "oat"])
        >>> ids.policy, ids.codebook_size, ids.is_unique
        ('widen', 4, True)

        ```
        """
        policy = quantizer.default_policy if policy is None else policy
        resolves = policy not in ("keep", "append")
        codebooks = quantizer.codebooks if resolves else None
        latents = None if codebooks is None else mapped(vectors, quantizer.latents, dim=codebooks.shape[2])
        return cls.from_codes(
            item_ids,
            quantizer.encode(vectors),
            codebook_size=quantizer.codebook_size,
            policy=policy,
            embeddings=latents,
            codebooks=codebooks,
            num_candidates=num_candidates,
        )

    @classmethod
    def from_json(
        cls,
        source: str | Path | Mapping[str, Sequence[int | str]],
        *,
        item_ids: Sequence[str] | None = None,
        codebook_size: int | None = None,
        policy: Literal["append", "keep"] = "keep",
    ) -> "SemanticIds":
        """
        Import another project's ids, `{item_id: [codes]}`; a `ValueError` where they do not fit the catalog.

        Args:
            source (`str`, `Path` or `Mapping`):
                A JSON file or the mapping itself. Codes are 0-based integers, strings of digits, or the tokens of
                LC-Rec, LETTER and MiniOneRec, `["<a_6>", "<b_5>", "<c_4>"]`.
            item_ids (`Sequence[str]`, *optional*): The catalog in its order; `None` takes that of the source.
            codebook_size (`int`, *optional*): Codes per level. `None` takes the largest code plus one.
            policy (`str`, *optional*, defaults to `"keep"`): Or `"append"`; the others need centroids.

        Example:

        ```python
        >>> SemanticIds.from_json({"b": ["0", "3"], "a": [1, 2]}, item_ids=["a", "b"]).codes.tolist()
        [[1, 2], [0, 3]]

        ```
        """
        table = _read_json(Path(source)) if isinstance(source, (str, Path)) else source
        table = {str(item_id): codes for item_id, codes in table.items()}
        names = list(table) if item_ids is None else list(item_ids)
        codes = _parse_codes(names, table)
        size = int(codes.max()) + 1 if codebook_size is None else codebook_size
        return cls.from_codes(names, codes, codebook_size=size, policy=policy)

    @classmethod
    def load(cls, path: str | Path) -> "SemanticIds":
        """Read what [`SemanticIds.save`] wrote; further columns are ignored, any other file is a `ValueError`."""
        schema = pq.read_schema(path)
        metadata = (schema.metadata or {}).get(_METADATA_KEY)
        if metadata is None or not {"item_id", "codes", "raw_codes"} <= set(schema.names):
            raise ValueError(f"{path} holds no semantic IDs: it must have been written by `SemanticIds.save`.")
        table = pq.read_table(path, columns=["item_id", "codes", "raw_codes"])
        codes, raw_codes = code_rows(table["codes"]), code_rows(table["raw_codes"])
        if codes is None or raw_codes is None:
            name = "codes" if codes is None else "raw_codes"
            raise ValueError(f"All rows of the column `{name}` of {path} must have equally many codes.")
        return cls(tuple(table["item_id"].to_pylist()), codes, raw_codes=raw_codes, **json.loads(metadata))

    def save(self, path: str | Path) -> None:
        """Write a Parquet file with the columns `item_id`, `codes` and `raw_codes` (lists of int16)."""
        pq.write_table(self.to_table(), path)

    def to_table(self) -> pa.Table:
        """What [`SemanticIds.save`] writes, a row per item; the schema's metadata has codebook size and policy."""
        columns: dict[str, pa.Array] = {"item_id": pa.array(self.item_ids, pa.string())}
        for name, codes in (("codes", self.codes), ("raw_codes", self.codes_before)):
            columns[name] = code_column(codes)
        metadata = json.dumps({"codebook_size": self.codebook_size, "policy": self.policy})
        return pa.table(columns).replace_schema_metadata({_METADATA_KEY: metadata.encode()})

    def to_dict(self) -> dict[str, list[int]]:
        """The plain mapping of item id to codes, in item order."""
        return dict(zip(self.item_ids, self.codes.tolist(), strict=True))

    def to_json(self, path: str | Path) -> None:
        """Write the plain mapping for other projects; [`SemanticIds.from_json`] reads it."""
        Path(path).write_text(json.dumps(self.to_dict(), ensure_ascii=False) + "\n", encoding="utf-8")

    @property
    def num_items(self) -> int:
        """Items of the catalog."""
        return len(self.item_ids)

    @property
    def num_levels(self) -> int:
        """Codes per item, an appended one included."""
        return self.codes.shape[1]

    @property
    def is_unique(self) -> bool:
        """Whether no two items share a tuple."""
        return bool((group_by_codes(self.codes)[1] == 1).all())

    @property
    def catalog_fingerprint(self) -> str:
        """Fingerprint of the codes alone, as the model computes it."""
        return catalog_fingerprint(torch.from_numpy(self.codes.astype(np.int16)))

    @property
    def items_fingerprint(self) -> str:
        """Fingerprint of the item ids alone; see [`items_fingerprint`]."""
        return items_fingerprint(self.item_ids)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the item ids and the codes together, 16 hex digits."""
        return hashlib.sha256((self.items_fingerprint + self.catalog_fingerprint).encode()).hexdigest()[:16]

    def statistics(self) -> dict[str, Any]:
        """
        Collisions before and after the policy, and how the codes of each level are used.

        Returns:
            `dict[str, Any]`: sizes; `num_changed`, items whose codes the policy changed (an appended code does not
            count); `before` and `after`, each with `num_distinct` tuples, `collision_rate` (share of items whose tuple
            another item has too), `excess_rate` (share that must move for all to be distinct) and `group_sizes`
            (`{items sharing a tuple: number of such tuples}`); and `levels`, one entry per level after the policy with
            `num_used` codes, `usage` (their share of `codebook_size`), `perplexity` (the exponential of the entropy;
            `codebook_size` if all are equally frequent) and `num_prefixes`, distinct tuples up to this level.
        """
        kept = self.codes[:, : self.codes_before.shape[1]]
        return {
            "num_items": self.num_items,
            "num_levels": self.num_levels,
            "codebook_size": self.codebook_size,
            "policy": self.policy,
            "num_changed": int((kept != self.codes_before).any(axis=1).sum()),
            "before": collision_statistics(self.codes_before),
            "after": collision_statistics(self.codes),
            "levels": level_statistics(self.codes, codebook_size=self.codebook_size),
        }

    @property
    def codes_before(self) -> np.ndarray:
        """The codes before the policy, appended ones not included."""
        return self.codes if self.raw_codes is None else self.raw_codes


def code_column(codes: np.ndarray) -> pa.ListArray:
    """Codes `(num_items, num_levels)` as a column of lists of int16. Args: the codes."""
    offsets = np.arange(0, codes.size + 1, codes.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, codes.astype(np.int16).ravel())


def code_rows(column: pa.ChunkedArray) -> np.ndarray | None:
    """
    A column of lists as an array `(num_items, num_levels)`; `None` where lists differ in length or lack a code.

    Args: the column. It is never taken apart into Python's lists, which for a million items are 300 MB and seconds.
    """
    span = pc.min_max(pc.list_value_length(column)).as_py()
    flat = pc.list_flatten(column)
    if column.null_count or flat.null_count or span["min"] != span["max"]:
        return None
    return flat.to_numpy().reshape(len(column), span["min"] or 0)


def _check_item_ids(item_ids: tuple[str, ...]) -> None:
    if not item_ids:
        raise ValueError("`item_ids` must hold at least one item.")
    wrong = [item_id for item_id in item_ids if not isinstance(item_id, str)]
    if wrong:
        raise ValueError(f"`item_ids` must be strings, got {first_five(wrong)}.")
    if len(set(item_ids)) < len(item_ids):
        repeated = [item_id for item_id, count in Counter(item_ids).items() if count > 1]
        raise ValueError(f"`item_ids` must be distinct, but some repeat: {first_five(repeated)}.")


def _check_codes(codes: Any, *, name: str, num_items: int, codebook_size: int) -> np.ndarray:
    """A read-only int64 copy."""
    codes = np.asarray(codes)
    if codes.ndim != 2 or len(codes) != num_items or codes.shape[1] == 0:
        raise ValueError(f"`{name}` must have the shape ({num_items}, num_levels), got {codes.shape}.")
    if codes.dtype.kind not in "iu":
        raise ValueError(f"`{name}` must be integers, got {codes.dtype}.")
    wrong = np.flatnonzero((codes < 0).any(axis=1) | (codes >= codebook_size).any(axis=1))
    if len(wrong):
        raise ValueError(
            f"`{name}` must lie between 0 and {codebook_size - 1} (`codebook_size` is {codebook_size}); "
            f"{len(wrong)} items do not, first row {wrong[0]}: {codes[wrong[0]].tolist()}."
        )
    codes = codes.astype(np.int64)
    codes.flags.writeable = False
    return codes


def _read_json(path: Path) -> dict[str, Any]:
    def refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_item_ids(tuple(key for key, _ in pairs))
        return dict(pairs)

    table = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=refuse_repeats)
    if not isinstance(table, dict):
        raise ValueError(f"{path} must hold one JSON object {{item_id: [codes]}}, got a {type(table).__name__}.")
    return table


def _parse_codes(item_ids: Sequence[str], table: Mapping[str, Sequence[int | str]]) -> np.ndarray:
    """The rows of a foreign table in the order of the items."""
    missing = [item_id for item_id in item_ids if item_id not in table]
    extra = sorted(set(table) - set(item_ids))
    problems = [f"no codes for {first_five(missing)}"] * bool(missing) + [f"unknown {first_five(extra)}"] * bool(extra)
    if problems:
        raise ValueError(f"The ids do not fit the catalog: {'; '.join(problems)}.")
    _check_item_ids(tuple(item_ids))
    no_lists = [item_id for item_id in item_ids if not isinstance(table[item_id], (list, tuple, np.ndarray))]
    if no_lists:
        raise ValueError(f"The codes of an item must be a list; they are not for {first_five(no_lists)}.")
    lengths = [len(table[item_id]) for item_id in item_ids]
    usual = Counter(lengths).most_common(1)[0][0]
    ragged = [item_id for item_id, length in zip(item_ids, lengths, strict=True) if length != usual]
    if not usual:
        raise ValueError("The items have no codes: their lists are empty.")
    if ragged:
        raise ValueError(f"All items must have equally many codes, usually {usual}; not so {first_five(ragged)}.")
    rows = [(item_id, enumerate(table[item_id])) for item_id in item_ids]
    return np.array(
        [[_parse_code(code, item_id=item_id, level=level) for level, code in row] for item_id, row in rows]
    )


def _parse_code(code: Any, *, item_id: str, level: int) -> int:
    """An integer, a string of digits, or a token of LC-Rec and LETTER: `<a_6>` at level 0, `<b_6>` at level 1, ..."""
    if isinstance(code, (int, np.integer)) and not isinstance(code, bool):
        return int(code)
    if isinstance(code, str) and code.isascii():
        start = f"<{ascii_lowercase[level % 26]}_"
        digits = code[len(start) : -1] if code.startswith(start) and code.endswith(">") else code
        if digits.isdigit():
            return int(digits)
    raise ValueError(f"The codes of item {item_id!r} must be integers, got {code!r}.")
