"""
A folder or repository with a language model or an adapter, its tokenizer, `recommender.json` and `items.parquet` in, a
[`CausalLMForItemGeneration`] out, after checking that they belong together.

Language models stay native: `config.json` and weights as transformers writes them, or `adapter_config.json` and
`adapter_model.safetensors` as peft does, with the base by its name. Codes stand in `items.parquet` alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from hf_genrec.files import read_json, read_table
from hf_genrec.modeling.configuration_causal_lm import CausalLMConfig
from hf_genrec.modeling.genrec_folder import check_manifest, hub_arguments, optional_file
from hf_genrec.modeling.genrec_recommend_config import RecommendConfig
from hf_genrec.modeling.modeling_causal_lm import RECOMMENDER_FILE, SAVED_FILES, CausalLMForItemGeneration
from hf_genrec.tokenizers.semantic_ids import code_rows


Where = Mapping[str, Any] | None

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_language_model(source: Any, where: Where = None) -> bool:
    """
    Whether a folder or repository holds a recommender around a language model.

    Args: the folder or repository, and where to look, see `optional_file`.
    """
    return optional_file(source, RECOMMENDER_FILE, **_given(where)) is not None


def recommender_config(source: Any, where: Where = None) -> Any:
    """
    The config of a recommender of any kind: of one around a language model that of `recommender.json`.

    Args: see [`is_language_model`].
    """
    path = optional_file(source, RECOMMENDER_FILE, **_given(where))
    if path is None:
        return AutoConfig.from_pretrained(source, **_given(where))
    content = read_json(Path(path))
    if content.pop("model_type", None) != CausalLMConfig.model_type:
        raise ValueError(f"{path} must have `model_type` {CausalLMConfig.model_type!r}. Fetch or write it again.")
    config = CausalLMConfig(**content)
    config._name_or_path = str(source)
    return config


def load_language_model(source: Any, where: Where = None, *, check_files: bool = True) -> CausalLMForItemGeneration:
    """
    Load the model of a folder or repository; the base of an adapter comes from the cache, a folder or the Hub.

    Args:
        source (`str` or `Path`): The folder or the name of a repository.
        where (`dict`, *optional*): `revision`, `cache_dir`, `token`, `local_files_only`, as in `optional_file`.
        check_files (`bool`, *optional*, defaults to `True`): Whether files must be those in `manifest.json`.

    Raises:
        ValueError: If files do not belong together.
    """
    where = _given(where)
    if check_files:
        check_manifest(source, lambda name: any(fnmatchcase(name, entry) for entry in SAVED_FILES), **where)
    config = recommender_config(source, where)
    tokenizer = AutoTokenizer.from_pretrained(source, **where)
    _check_prompt(config, tokenizer, source)
    if optional_file(source, ADAPTER_CONFIG, **where) is None:
        llm = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, **where)
    else:
        llm = _adapted(source, config, where)
    model = CausalLMForItemGeneration(llm, config, tokenizer).eval()
    path = optional_file(source, "items.parquet", **where)
    if path is None:
        raise FileNotFoundError(f"{source} has no items.parquet, in which the codes of its items stand.")
    table = read_table(path)
    _read_items(model, table)
    model.item_ids = table["item_id"].to_pylist()
    model._checks_files = check_files
    kept = ("revision", "cache_dir", "local_files_only")
    model._hub_arguments = {name: where[name] for name in kept if name in where}
    model.recommend_config = RecommendConfig.from_pretrained(source, **where)
    model.read_removals(source, where)
    return model


def load_model(source: Any, where: Where = None, *, check_files: bool = True) -> Any:
    """
    The model of a folder or repository of any kind.

    Args: see [`load_language_model`].
    """
    if is_language_model(source, where):
        return load_language_model(source, where, check_files=check_files)
    return AutoModel.from_pretrained(source, **(where or {}), **({} if check_files else {"check_files": False}))


def load_for_pipeline(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """
    The model of a pipeline, of any kind; of a language model on its device and in its type.

    Args: those of `AutoModel.from_pretrained`.
    """
    where = hub_arguments(kwargs)
    if not args or not is_language_model(args[0], where):
        return AutoModel.from_pretrained(*args, **kwargs)
    return load_language_model(args[0], where, check_files=kwargs.get("check_files", True))


def with_counts(table: pa.Table, model: Any) -> pa.Table:
    """
    The item table of a folder; around a language model with the counts that other models keep beside their weights.

    Args: what [`item_table`] returned, and the model.
    """
    if model.config.model_type != CausalLMConfig.model_type or not bool(model.item_counts.any()):
        return table
    return table.append_column("count", pa.array(model.item_counts.tolist(), pa.int32()))


def _given(where: Where) -> dict[str, Any]:
    return {name: value for name, value in (where or {}).items() if value is not None}


def _adapted(source: Any, config: CausalLMConfig, where: dict[str, Any]) -> Any:
    """The base, grown as it was in training, with the adapter, which may be trained further."""
    try:
        peft = importlib.import_module("peft")
    except ImportError as error:
        raise ImportError(f'{source} holds an adapter: `pip install "hf-genrec[llm]"` for peft.') from error
    weights = optional_file(source, ADAPTER_WEIGHTS, **where)
    if weights is None:
        raise FileNotFoundError(f"{source} has no {ADAPTER_WEIGHTS}. Adapters are read from safetensors only.")
    settings = read_json(Path(str(optional_file(source, ADAPTER_CONFIG, **where))))
    name, revision = settings["base_model_name_or_path"], settings.get("revision")
    places = {key: where[key] for key in ("cache_dir", "token", "local_files_only") if key in where}
    try:
        base: Any = AutoModelForCausalLM.from_pretrained(
            name, revision=revision, use_safetensors=True, dtype=getattr(torch, config.llm_dtype), **places
        )
    except OSError as error:
        raise OSError(
            f"The base {name!r} of the adapter in {source} ({ADAPTER_CONFIG}) cannot be loaded: {error}"
        ) from error
    num_rows = base.get_input_embeddings().num_embeddings
    stored = settings.get("trainable_token_indices") or {}
    indices = set(stored) if isinstance(stored, list) else set().union(*stored.values())
    if not indices.issuperset(range(num_rows, config.num_embeddings)):
        raise ValueError(
            f"{ADAPTER_CONFIG} of {source} does not hold all rows that were added to the {num_rows} embeddings of "
            f"{name!r}, {config.num_embeddings} in all: train with `SidVocabulary.trainable_token_indices`."
        )
    if num_rows < config.num_embeddings:
        base.resize_token_embeddings(config.num_embeddings, mean_resizing=False)
    # of one commit, both files lie in one folder of the cache
    return peft.PeftModel.from_pretrained(base, Path(weights).parent, is_trainable=True)


def _check_prompt(config: CausalLMConfig, tokenizer: Any, source: Any) -> None:
    """Whether the tokenizer reads the texts of the prompt as the tokens that the model was trained with."""
    for text, ids in (
        (config.prompt_prefix, config.prompt_prefix_ids),
        (config.prompt_suffix, config.prompt_suffix_ids),
    ):
        if text and tokenizer(text, add_special_tokens=False)["input_ids"] != ids:
            raise ValueError(
                f"The tokenizer of {source} does not read {text!r} as the tokens in {RECOMMENDER_FILE}. Use the files "
                "of one save."
            )


def _read_items(model: CausalLMForItemGeneration, table: pa.Table) -> None:
    """The codes, which must be those of the fingerprint, and the counts."""
    if "codes" not in table.column_names or table.num_rows != model.config.num_items:
        raise ValueError(
            f"items.parquet must have {model.config.num_items} rows with `codes`, got {table.num_rows} with "
            f"{', '.join(table.column_names)}."
        )
    recorded = model.config.catalog_fingerprint
    codes = code_rows(table["codes"])
    if codes is None:
        raise ValueError(f"All rows of `codes` in items.parquet must have {model.config.num_levels} codes.")
    model.set_catalog(torch.tensor(codes))
    model.config.catalog_fingerprint = recorded
    model.check_catalog()
    if "count" in table.column_names:
        model.set_item_counts(torch.tensor(table["count"].to_pylist()))
