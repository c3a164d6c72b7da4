"""A config and an evaluation record in, a model card out: the page is in `hub_cards/`, its values come from here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from importlib.metadata import version
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from hf_genrec.record_files import record_table, shown_cut


def model_card(config: Any, evaluation: Mapping[str, Any] | None = None) -> str:
    """
    The `README.md` of a checkpoint.

    Args:
        config: The model's config.
        evaluation (`dict`, *optional*): Its evaluation record; `None` says that it was not evaluated.

    Returns:
        `str`: Markdown with the Hub's metadata in front.

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_latte import LatteConfig
    >>> print(model_card(LatteConfig(num_items=12)).splitlines()[1])
    library_name: transformers

    ```
    """
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=None,
        tags=["recommendation", *_TAGS[config.has_codes], config.model_type],
    )
    template = resources.files("hf_genrec.hub_cards").joinpath("model_card.md").read_text(encoding="utf-8")
    card = ModelCard.from_template(
        data,
        template_str=template,
        system=system_name(config),
        num_items=f"{config.num_items:,}",
        num_levels=config.num_levels,
        codebook_size=config.codebook_size,
        decoding=_DECODING[config.model_type],
        network=_network(config),
        max_history_length=config.max_history_length,
        evaluation=_evaluation_section(evaluation),
        versions=", ".join(f"{name} {version(name)}" for name in ("transformers", "torch")),
    )
    return str(card)


def system_name(config: Any) -> str:
    """
    What the literature calls a model with this config.

    Args:
        config: The model's config.

    Returns:
        `str`: `"RPG"`, `"ACERec"`, `"SASRec"`, `"Latte"` with latents, else `"TIGER/PSID"`: these two differ in their
            ids, not in the network.
    """
    if config.model_type in _SYSTEMS:
        return _SYSTEMS[config.model_type]
    return "Latte" if config.num_latent_tokens else "TIGER/PSID"


_SYSTEMS = {"rpg": "RPG", "acerec": "ACERec", "sasrec": "SASRec"}
_TAGS = {True: ["generative-recommendation", "semantic-ids"], False: ["sequential-recommendation"]}
_DECODING = {
    "latte": "writes the next item's\ntuple, kept inside the catalog at every step",
    "rpg": "predicts all codes of the\nnext item at once, with which every item of the catalog is scored",
    "acerec": "predicts all codes of the\nnext item at once, with which every item of the catalog is scored",
    "sasrec": "scores every item of\nthe catalog",
}


def _network(config: Any) -> str:
    """What is worth knowing about the network, in one sentence."""
    if config.model_type == "latte":
        return (
            f"{config.num_latent_tokens} latent tokens before a semantic ID, {config.history_attention} history "
            f"attention over\n  {config.history_unit}s"
        )
    network = f"{config.num_layers} GPT-2 layers of width {config.d_model}, "
    if config.model_type == "sasrec":
        return network + "one item table for input and output"
    network += f"{config.projection} projection heads"
    if config.model_type == "acerec":
        network += f";\n  {config.merger} merger to {config.num_merged_tokens} tokens an item, {config.anchor} anchor"
    return network


def _evaluation_section(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "This checkpoint was not evaluated."
    cut = shown_cut(evaluation["model"], metric="recall")
    confidence = f"{100 * evaluation['confidence']:g} % " if "confidence" in evaluation else ""
    header, *rows = record_table(evaluation, metrics=[f"recall@{cut}", f"ndcg@{cut}", "invalid_rate"])
    lines = [
        f"Protocol {evaluation['protocol']}, {evaluation['split']} split, {evaluation['num_users']:,} users, full "
        f"ranking over {evaluation['num_items']:,} items; in brackets {confidence}bootstrap intervals over users.",
        "",
        "| " + " | ".join(header) + " |",
        "|" + " --- |" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines)
