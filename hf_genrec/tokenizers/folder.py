"""
A prepared folder in, the two folders between data and model out: the embeddings file and the tokenized folder.

    embeddings.safetensors   one tensor `embeddings` (num_items, dim); its header names the encoder and the items
    tokenizer.json           settings, fingerprints and statistics, and under `fit` how well the codes fit
    semantic_ids.parquet     the semantic-ID table
    quantizer/               config.json, quantizer.safetensors, whitening.safetensors, fusion.safetensors (behaviour
                             from texts), encoder.json, choice.json (what was done about collisions): for new items
                             (of an RQ-VAE model.safetensors and training.json)
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from hf_genrec.data.prepared import PreparedDataset, replaced_folder
from hf_genrec.files import replaced, write_json
from hf_genrec.modeling.genrec_folder import items_fingerprint
from hf_genrec.tokenizers.base import LONGEST_UNIQUE, Quantizer
from hf_genrec.tokenizers.behavior import FUSED_COMPONENTS, behavior_vectors
from hf_genrec.tokenizers.embeddings import Whitening, embed_texts, encoder_identity, load_matrix
from hf_genrec.tokenizers.fusion import FUSION_NAME, Fusion
from hf_genrec.tokenizers.new_items import CHOICE_NAME, mean_length
from hf_genrec.tokenizers.row_tables import LazyRows, RowTable, mapped
from hf_genrec.tokenizers.semantic_ids import CollisionPolicy, SemanticIds


logger = logging.getLogger(__name__)

EMBEDDINGS_NAME = "embeddings.safetensors"
RECORD_NAME = "tokenizer.json"
IDS_NAME = "semantic_ids.parquet"
QUANTIZER_NAME = "quantizer"


def embed_items(
    prepared: PreparedDataset,
    output: str | os.PathLike[str],
    *,
    model_name: str = "sentence-transformers/sentence-t5-base",
    revision: str | None = None,
    matrix: str | os.PathLike[str] | None = None,
    behavior: str | os.PathLike[str] | None = None,
    weight: float = 0.6,
    batch_size: int = 32,
    num_processes: int = 1,
    device: str | None = None,
    show_progress: bool = True,
) -> Path:
    """
    Write the embeddings of a catalog's texts, of its behaviour in the log, or of both, and return the file.

    Args: see [`embed_texts`]. `output` is a `.safetensors` file, or a folder that gets an `embeddings.safetensors`;
    `matrix` is a file of ready embeddings of the texts instead of a model, see [`load_matrix`]. `behavior` is `"svd"`
    or the folder of a trained SASRec, see [`behavior_vectors`]; `weight` is that of the texts, see [`fuse_vectors`].
    Without texts (`weight` 0, or no item has any) the behaviour stands alone.
    """
    if not 0 <= weight < float("inf"):
        raise ValueError(f"`weight` must be at least 0, got {weight}.")
    path = embeddings_path(output)
    texts = prepared.items["text"].to_pylist()
    encoder = {"model": "", "revision": "", "identity": "", "items_fingerprint": items_fingerprint(prepared.item_ids)}
    if behavior is None or (weight > 0 and (matrix is not None or any(text.strip() for text in texts))):
        encoder["texts"] = _text_digest(prepared)
    embeddings = np.zeros((len(texts), 0), np.float32)
    if "texts" in encoder and matrix is None:
        options: dict[str, Any] = {"batch_size": batch_size, "num_processes": num_processes, "device": device}
        options["show_progress"] = show_progress
        embeddings = embed_texts(texts, model_name=model_name, revision=revision, **options)
        named = Path(model_name).name if Path(model_name).is_dir() else model_name  # a path says nothing elsewhere
        identity = encoder_identity(model_name, revision=revision)
        encoder |= {"model": named, "revision": revision or "", "identity": identity}
    elif "texts" in encoder:
        embeddings = load_matrix(os.fspath(matrix or ""), num_items=len(texts))
        encoder["model"] = f"matrix {Path(matrix or '').name}"
    if behavior is not None:
        return _write_embeddings(
            path, *_beside_behavior(prepared, embeddings, encoder, behavior=behavior, weight=weight)
        )
    return _write_embeddings(path, embeddings, encoder)


def add_behavior(
    prepared: PreparedDataset,
    embeddings: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    behavior: str | os.PathLike[str] = "svd",
    weight: float = 0.6,
) -> Path:
    """
    Write embeddings of texts that [`embed_items`] wrote once more, beside the behaviour in the log.

    Args: see [`embed_items`]. `embeddings` is what it wrote without `behavior`, or a ready matrix.
    """
    texts, encoder = read_embeddings(embeddings, prepared)
    if "behavior" in encoder:
        raise ValueError(f"{embeddings} holds behaviour already: take it as it is.")
    unknown = {"model": "", "revision": "", "identity": "", "items_fingerprint": items_fingerprint(prepared.item_ids)}
    encoder = unknown | encoder
    fused = _beside_behavior(prepared, texts, encoder, behavior=behavior, weight=weight)
    return _write_embeddings(embeddings_path(output), *fused)


def _beside_behavior(
    prepared: PreparedDataset,
    embeddings: np.ndarray,
    encoder: dict[str, str],
    *,
    behavior: str | os.PathLike[str],
    weight: float,
) -> tuple[np.ndarray, dict[str, str], Fusion | None]:
    """
    Text vectors `(num_items, dim)`, of width 0 where there are none, beside behaviour; what the file says, and how
    later items get such vectors.
    """
    vectors = behavior_vectors(prepared, run=None if str(behavior) == "svd" else behavior)
    method = "svd" if str(behavior) == "svd" else "sasrec"
    encoder = encoder | {"behavior": method, "behavior_columns": str(vectors.shape[1]), "data": prepared.fingerprint}
    encoder["weight"] = str(weight if embeddings.shape[1] else 0.0)
    num_cold = int((~vectors.any(axis=1)).sum())
    if num_cold and not embeddings.shape[1]:
        logger.warning("%d items are in no training history and have no texts: they all get one vector.", num_cold)
    elif num_cold:
        logger.warning("%d items are in no training history: behaviour is predicted from their texts.", num_cold)
    if not embeddings.shape[1]:
        return vectors, encoder, None
    fusion = Fusion.fit(embeddings, vectors, weight=weight, num_components=FUSED_COMPONENTS)
    return fusion.transform(embeddings, vectors), encoder, fusion


def _write_embeddings(
    path: Path, embeddings: np.ndarray, encoder: dict[str, str], fusion: Fusion | None = None
) -> Path:
    learned = {} if fusion is None else fusion.tensors()
    with replaced(path) as partial:
        save_file({"embeddings": np.ascontiguousarray(embeddings), **learned}, partial, metadata=encoder)
    return path


def embeddings_path(output: str | os.PathLike[str]) -> Path:
    """Where [`embed_items`] writes; a `ValueError` if that is a file of another kind. Args: see there."""
    path = Path(output)
    if path.suffix == ".safetensors":
        return path
    if path.is_file() or path.suffix == ".npy":
        raise ValueError(f"`output` must be a folder or end with .safetensors, got {str(path)!r}.")
    return path / EMBEDDINGS_NAME


def read_embeddings(path: str | os.PathLike[str], prepared: PreparedDataset) -> tuple[np.ndarray, dict[str, str]]:
    """
    The embeddings of a catalog, and what the file says of them if it says anything: `model`, `revision`, `identity`
    and fingerprints; for behaviour also `behavior`, `weight` and `behavior_columns`, the first ones of the matrix.

    Args: what [`embed_items`] wrote (file or folder) or a ready matrix file; the data set whose items and texts they
    are.
    """
    file = _embeddings_file(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist. Run `hf-genrec embed`.")
    encoder: dict[str, str] = {}
    if file.suffix == ".safetensors":
        with safe_open(file, framework="np") as opened:
            encoder = opened.metadata() or {}
    own = {
        "items_fingerprint": (
            items_fingerprint(prepared.item_ids),
            "holds the embeddings of other items than those of",
        ),
        "texts": (_text_digest(prepared), "was made from other texts than those of"),
        "data": (prepared.fingerprint, "was made from the log of other data than"),
    }
    for name, (expected, fault) in own.items():
        if encoder.get(name, expected) != expected:
            raise ValueError(f"{file} {fault} {prepared.folder}. Embed them again.")
    return load_matrix(file, num_items=len(prepared.item_ids)), encoder


def _embeddings_file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path if path.is_file() or path.suffix == ".npy" else embeddings_path(path)


def tokenize_items(
    prepared: PreparedDataset,
    embeddings: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    quantizer: str = "residual-kmeans",
    num_levels: int | None = None,
    codebook_size: int | None = None,
    policy: CollisionPolicy | None = None,
    num_whitened: int | None = None,
    fit_on: Literal["train", "all"] = "train",
    fit_rows: int | None = None,
    num_candidates: int = 5,
    options: Mapping[str, Any] | None = None,
    seed: int = 1234,
    overwrite: bool = False,
    show_progress: bool = True,
) -> SemanticIds:
    """
    Embeddings to semantic IDs: whitening, quantizer, collision policy. Returns the table that was written.

    Args: see [`Quantizer.named`] for the quantizer with its sizes, options and seed, and [`SemanticIds.from_codes`]
    for the policy. `embeddings` is what [`embed_items`] wrote or a ready matrix; `output_dir` appears whole or not at
    all. `num_whitened` is the number of principal components to whiten to, at most what embeddings and items allow; 0
    leaves the embeddings as they are, and `None` is [`Quantizer.default_whitened`], or 0 for embeddings that hold
    behaviour. `fit_on` says which items whitening and quantizer learn from: those of the training part, or all as the
    paper does. The quantizer learns from a sample of `fit_rows` of them, `None` for as many as
    [`Quantizer.rows_to_learn`] takes. Vectors of more than 65,536 items are read in blocks, from a `.npy` or
    `.safetensors` file of float32 without holding all of them in memory.
    """
    if fit_on not in ("train", "all"):
        raise ValueError(f'`fit_on` must be "train" or "all", got {fit_on!r}.')
    matrix, encoder = read_embeddings(embeddings, prepared)
    fusion = Fusion.read(_embeddings_file(embeddings))
    rows = np.flatnonzero(prepared.train_item_counts() > 0) if fit_on == "train" else np.arange(len(matrix))
    counts = {"num_items": len(matrix), "num_rows": len(rows)}
    named = partial(Quantizer.named, quantizer, **counts, codebook_size=codebook_size, seed=seed, options=options)
    learner = named(num_levels=num_levels)
    if fit_rows is not None and fit_rows < 1:
        raise ValueError(f"`fit_rows` must be at least 1, got {fit_rows}.")
    if num_whitened is not None and num_whitened < 0:
        raise ValueError(f"`num_whitened` must be at least 0, got {num_whitened}.")
    wanted = learner.default_whitened if num_whitened is None else num_whitened
    if num_whitened is None and "behavior" in encoder:  # whitening would undo the weights of behaviour and texts
        wanted = 0
    whitening = Whitening.fit(matrix, num_components=wanted, fit_on=rows, take_fewer=True) if wanted else None
    if whitening is not None and num_whitened is None:  # no more than chosen here: as many as can be cut into pieces
        found = len(whitening.scale)
        if not learner.usable_columns(found) and num_levels is None:
            learner = named(num_levels=found)
        whitening = whitening.first(learner.usable_columns(found) or found)
    _say_what_was_picked(learner, whitening, wanted=wanted, num_rows=len(rows), is_picked=codebook_size is None)
    policy = policy or learner.default_policy
    settings = {
        "quantizer": quantizer, "num_levels": learner.num_levels, "codebook_size": learner.codebook_size,
        "policy": policy, "num_whitened": wanted, "fit_on": fit_on, "num_candidates": num_candidates,
        "seed": seed,
    } | ({"options": dict(options)} if options else {}) | ({"fit_rows": fit_rows} if fit_rows else {})  # fmt: skip
    fitted = rows[learner.rows_to_learn(len(rows), most=fit_rows)]
    with replaced_folder(output_dir, marker=RECORD_NAME, overwrite=overwrite) as folder:
        (folder / QUANTIZER_NAME).mkdir()
        points: RowTable = matrix
        if whitening is not None:
            whitening.save(folder / QUANTIZER_NAME / "whitening.safetensors")
            points = mapped(matrix, whitening.transform, dim=len(whitening.scale))
        taken = prepared.interaction_matrix()[:, fitted] if learner.reads_log else None
        learner.fit(points[fitted], taken=taken, show_progress=show_progress).save(folder / QUANTIZER_NAME)
        source = {name: encoder.get(name) or None for name in ("model", "revision", "identity")}
        source |= {name: encoder[name] for name in ("behavior", "weight") if name in encoder}
        write_json(source, folder / QUANTIZER_NAME / "encoder.json")
        choice: dict[str, Any] = {"policy": policy, "num_candidates": num_candidates}
        write_json(choice | {"mean_length": mean_length(matrix)}, folder / QUANTIZER_NAME / CHOICE_NAME)
        if fusion is not None:
            fusion.save(folder / QUANTIZER_NAME / FUSION_NAME)
        semantic_ids = SemanticIds.from_quantizer(learner, points, prepared.item_ids, **choice)
        report = _fit_report(learner, points, semantic_ids.codes_before, fitted=fitted)
        _write_tokenized(folder, prepared, semantic_ids, settings | {"embeddings": _digest(matrix.data)}, fit=report)
    return semantic_ids


def import_ids(
    prepared: PreparedDataset,
    ids: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    policy: str | None = None,
    codebook_size: int | None = None,
    overwrite: bool = False,
) -> SemanticIds:
    """
    Another project's `{item_id: [codes]}` to a tokenized folder without a quantizer. Returns the table.

    Args: see [`tokenize_items`] and [`SemanticIds.from_json`]. `policy` is `"append"` or `"keep"`, since the others
    need centroids; `None` appends a code, but keeps ids of more than 8.
    """
    if policy not in ("append", "keep", None):
        raise ValueError(f'Imported ids have no centroids: `policy` must be "append" or "keep", got {policy!r}.')
    options: dict[str, Any] = {"item_ids": prepared.item_ids, "codebook_size": codebook_size}
    semantic_ids = SemanticIds.from_json(Path(ids), policy="keep", **options)
    policy = policy or ("keep" if semantic_ids.num_levels > LONGEST_UNIQUE else "append")
    if policy == "append":
        semantic_ids = SemanticIds.from_json(Path(ids), policy="append", **options)
    settings = {"ids": Path(ids).name, "policy": policy, "codebook_size": codebook_size}
    with replaced_folder(output_dir, marker=RECORD_NAME, overwrite=overwrite) as folder:
        _write_tokenized(folder, prepared, semantic_ids, settings)
    return semantic_ids


def load_tokenized(folder: str | os.PathLike[str]) -> tuple[SemanticIds, dict[str, Any]]:
    """The table of a folder that [`tokenize_items`] wrote, and its `tokenizer.json`. Args: only the folder."""
    folder = Path(folder)
    if not (folder / RECORD_NAME).is_file() or not (folder / IDS_NAME).is_file():
        raise FileNotFoundError(f"{folder} is no tokenized folder (no {RECORD_NAME}). Run `hf-genrec tokenize`.")
    record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    return SemanticIds.load(folder / IDS_NAME), record


def _say_what_was_picked(
    learner: Quantizer, whitening: Whitening | None, *, wanted: int, num_rows: int, is_picked: bool
) -> None:
    """A warning where a small catalog or few texts do not allow what the quantizer usually takes."""
    if is_picked and learner.has_codebooks and learner.codebook_size < 256:
        sizes = f"{learner.num_levels} x {learner.codebook_size}"
        logger.warning("Only %d items to learn from: %s codes instead of levels of 256.", num_rows, sizes)
    if whitening is not None and len(whitening.scale) < min(wanted, len(whitening.mean), num_rows - 1):
        found = len(whitening.scale)
        logger.warning("The embeddings differ in few directions: %d whitened components, not %d.", found, wanted)


def _fit_report(quantizer: Quantizer, points: RowTable, codes: np.ndarray, *, fitted: np.ndarray) -> dict[str, Any]:
    """Relative squared errors per level, of the rows that the quantizer learned from and of the others."""
    others = np.setdiff1d(np.arange(len(points)), fitted)
    report: dict[str, Any] = {"num_rows": len(fitted)}
    for name, rows in (("relative_error", fitted), ("relative_error_of_others", others)):
        own = LazyRows(points, lambda part: part, dim=points.shape[1], rows=rows)
        report[name] = quantizer.relative_errors(own, codes[rows])
    return report | ({"training": quantizer.report} if quantizer.report else {})


def _write_tokenized(
    folder: Path,
    prepared: PreparedDataset,
    semantic_ids: SemanticIds,
    settings: Mapping[str, Any],
    *,
    fit: Mapping[str, Any] | None = None,
) -> None:
    semantic_ids.save(folder / IDS_NAME)
    record = {
        "settings": dict(settings),
        "data_fingerprint": prepared.fingerprint,
        "items_fingerprint": semantic_ids.items_fingerprint,
        "catalog_fingerprint": semantic_ids.catalog_fingerprint,
        "statistics": semantic_ids.statistics(),
    }
    write_json(record | ({} if fit is None else {"fit": dict(fit)}), folder / RECORD_NAME)


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _text_digest(prepared: PreparedDataset) -> str:
    return _digest(json.dumps(prepared.items["text"].to_pylist()).encode())
