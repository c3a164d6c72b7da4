"""
Items that come after training: texts or vectors in, semantic IDs out, by what a bundle keeps in `quantizer/`.

Encoder, fusion with behaviour, whitening and quantizer are frozen; the ids of earlier items are only read. A new item
gets the codes that the quantizer gives it where these are free, else a free id near by, as at tokenization.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_genrec.files import read_json
from hf_genrec.tokenizers.base import Quantizer, as_rows
from hf_genrec.tokenizers.collisions import append_code, group_by_codes, nearest_free
from hf_genrec.tokenizers.embeddings import Whitening, embed_texts, encoder_identity
from hf_genrec.tokenizers.fusion import FUSION_NAME, Fusion
from hf_genrec.tokenizers.row_tables import blocks


CHOICE_NAME = "choice.json"


@dataclass(frozen=True, eq=False)
class ItemCoder:
    """
    The frozen way from a text to a semantic ID.

    Args:
        quantizer ([`Quantizer`]): Fitted.
        whitening ([`Whitening`], *optional*): What its input is projected by; `None` for nothing.
        fusion ([`Fusion`], *optional*): How texts and behaviour were fused; `None` for texts alone.
        encoder (`dict`, *optional*): What `encoder.json` says of the text encoder.
        choice (`dict`, *optional*): What `choice.json` says; of older folders nothing.
    """

    quantizer: Quantizer
    whitening: Whitening | None = None
    fusion: Fusion | None = None
    encoder: dict[str, Any] = field(default_factory=dict)
    choice: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> ItemCoder:
        """
        Open the `quantizer/` of a run folder or a tokenized folder.

        Args:
            folder (`str` or `Path`): That folder itself.
        """
        folder = Path(folder)
        paths = {name: folder / name for name in ("whitening.safetensors", FUSION_NAME, "encoder.json", CHOICE_NAME)}
        whitening, fusion, encoder, choice = paths.values()
        return cls(
            Quantizer.load(folder),
            Whitening.load(whitening) if whitening.is_file() else None,
            Fusion.read(fusion) if fusion.is_file() else None,
            read_json(encoder) if encoder.is_file() else {},
            read_json(choice) if choice.is_file() else {},
        )

    @property
    def dim(self) -> int:
        """Columns of the vectors that semantic IDs are made of, behaviour included."""
        return self.quantizer.dim if self.whitening is None else len(self.whitening.mean)

    def embed(self, texts: Sequence[str], *, encoder: str | os.PathLike[str] | None = None) -> np.ndarray:
        """
        Vectors of texts by the encoder of the bundle.

        Args:
            texts (`Sequence[str]`): One per new item.
            encoder (`str` or `Path`, *optional*): Where the encoder is, if not where its name says: a local folder.
        """
        return embed_later(texts, self.encoder, encoder=encoder, widths=self._widths())

    def fused(self, vectors: np.ndarray) -> np.ndarray:
        """
        Vectors as the ids are made of them: texts get the behaviour that items with such texts have.

        Args:
            vectors (`np.ndarray` of shape `(num_new, text_dim or dim)`): Of texts, or with behaviour already.
        """
        rows = as_rows(vectors, name="`vectors`")
        if self.fusion is not None and rows.shape[1] == self.fusion.text_dim:
            return self.fusion.transform(rows)
        if rows.shape[1] != self.dim:
            remedy = ""
            if self.fusion is None and "behavior" in self.encoder:
                remedy = (
                    " They hold behaviour, and this folder does not say how it follows from texts: run `hf-genrec "
                    "embed` and `tokenize` again and train on the new ids, or give whole vectors."
                )
            raise ValueError(f"`vectors` must have {self._widths()}, got {rows.shape[1]}.{remedy}")
        return rows

    def _widths(self) -> str:
        texts = "" if self.fusion is None else f" or {self.fusion.text_dim} (texts alone)"
        return f"{self.dim}{texts} columns"

    def policy(self, taken: np.ndarray) -> str:
        """What is done about collisions; read off the ids where an older folder does not say. Args: see `assign`."""
        if "policy" in self.choice:
            return self.choice["policy"]
        if taken.shape[1] == self.quantizer.num_levels + 1:
            return "append"
        is_unique = len(group_by_codes(taken)[1]) == len(taken)
        return "widen" if is_unique and self.quantizer.has_codebooks else "keep"

    def assign(self, fused: np.ndarray, *, taken: np.ndarray, codebook_size: int) -> np.ndarray:
        """
        Semantic IDs of new items, `(num_new, num_levels)`, int64.

        Args:
            fused (`np.ndarray` of shape `(num_new, dim)`): What `fused` gives.
            taken (`np.ndarray` of shape `(num_items, num_levels)`):
                The ids of all other items, those that were removed among them.
            codebook_size (`int`): Codes per level of the model.
        """
        points = fused if self.whitening is None else self.whitening.transform(fused)
        codes, policy = self.quantizer.encode(points), self.policy(taken)
        if policy == "append":
            codes = append_code(codes, taken=taken)
            if len(codes) and codes[:, -1].max() >= codebook_size:
                row = int(codes[:, -1].argmax())
                raise ValueError(
                    f"The new item at row {row} would be number {codes[row, -1]} of its group, and the model counts "
                    f"to {codebook_size - 1}. Add fewer items like it, or train again."
                )
        elif policy != "keep":
            codebooks = self.quantizer.codebooks
            if codebooks is None:
                raise ValueError(
                    f"The policy {policy!r} needs centroids, which {self.quantizer.quantizer_type} lacks."
                )
            codes = nearest_free(
                codes,
                taken=taken,
                embeddings=self.quantizer.latents(points),
                codebooks=codebooks,
                num_candidates=self.choice.get("num_candidates", 5),
            )
        return codes

    def projected(self, fused: np.ndarray) -> np.ndarray:
        """The vectors as a dense head reads them: divided by the mean length of those of the training catalog."""
        if "mean_length" not in self.choice:
            raise ValueError(
                "This folder does not say how long the vectors of its catalog were, by which those of a dense head "
                "are divided. Run `hf-genrec tokenize` again and copy its `quantizer/` into the run folder."
            )
        return fused / np.float32(self.choice["mean_length"])


def embed_later(
    texts: Sequence[str], recorded: Mapping[str, Any], *, encoder: str | os.PathLike[str] | None, widths: str
) -> np.ndarray:
    """
    Vectors of texts by the encoder that a bundle records.

    Args:
        texts (`Sequence[str]`): One per new item.
        recorded (`Mapping[str, Any]`): What `encoder.json` says: `model`, `revision`, `identity`.
        encoder (`str` or `Path`, *optional*): Where the encoder is, if not where its name says: a local folder.
        widths (`str`): What ready vectors would be like, for the error.
    """
    name, known = os.fspath(encoder or recorded.get("model") or ""), recorded.get("identity")
    if not known:
        raise ValueError(
            f"The ids of this bundle are made of {name or 'vectors without texts'}, whose encoder is not known: "
            f"give `vectors` of the new items, {widths}."
        )
    revision = None if encoder else recorded.get("revision")
    try:
        found = encoder_identity(name, revision=revision)
    except OSError as error:
        raise OSError(f"{error} Or give the folder of the encoder as `encoder`, or ready `vectors`.") from error
    if found != known:
        raise ValueError(
            f"`encoder` {name} is {found}, the ids of this bundle were made with {known}. Use that one, or give "
            "ready `vectors`."
        )
    return embed_texts(texts, model_name=name, revision=revision, show_progress=False)


def mean_length(vectors: np.ndarray) -> float:
    """The mean length of rows. Args: one row per item."""
    return float(np.concatenate([np.linalg.norm(vectors[block], axis=1) for block in blocks(len(vectors))]).mean())
