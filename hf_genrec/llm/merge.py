"""
A recommender with an adapter in, the same recommender out as a checkpoint that needs neither peft nor the base.
"""

from __future__ import annotations

import os
from pathlib import Path

from hf_genrec.files import read_json
from hf_genrec.hub.save import save_recommender
from hf_genrec.modeling.modeling_causal_lm import CausalLMForItemGeneration
from hf_genrec.serving.recommender import Recommender
from hf_genrec.tokenizers.folder import QUANTIZER_NAME
from hf_genrec.tokenizers.semantic_ids import SemanticIds


def merge_adapter(run: str | os.PathLike[str], output: str | os.PathLike[str]) -> Path:
    """
    Add an adapter's weights to those of its base and write the result as a recommender of its own.

    The folder is that of a language model of transformers: `AutoModelForCausalLM.from_pretrained(output)` and every
    server of such models load it; [`Recommender`] does as well. Sums are taken in float32. Of a base in float32 the
    logits are those of the adapter within 1e-4; one in bfloat16 is rounded once more.

    Args:
        run (`str` or `Path`): Run folder or Hub repository with an adapter.
        output (`str` or `Path`): The folder to write.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: If there is no adapter.
    """
    recommender = Recommender.from_pretrained(run, device="cpu")
    model = recommender.model
    if not hasattr(model, "causal_lm") or model.causal_lm is model.llm:
        raise ValueError(f"{run} holds no adapter ({type(model).__name__}): there is nothing to merge.")
    if recommender.catalog.has_grown:
        raise ValueError(
            f"Items were added to the catalog of {run} after training. Write them into a folder of their own first: "
            "`Recommender.from_pretrained(run).save_pretrained(folder)`."
        )
    dtype = model.causal_lm.dtype
    merged = model.llm.float().merge_and_unload(safe_merge=True).to(dtype)
    whole = CausalLMForItemGeneration(merged, model.config, model.tokenizer)
    whole.set_catalog(model.item_codes)
    whole.set_item_counts(model.item_counts)
    whole.recommend_config = model.recommend_config
    codes = model.item_codes.numpy()
    ids = SemanticIds(tuple(recommender.item_ids), codes, model.config.codebook_size, "keep")
    folder = Path(run)
    quantizer, evaluation = folder / QUANTIZER_NAME, folder / "evaluation.json"
    return save_recommender(
        output,
        whole.eval(),
        ids,
        recommender.items,
        quantizer=quantizer if quantizer.is_dir() else None,
        evaluation=read_json(evaluation) if evaluation.is_file() else None,
    )
