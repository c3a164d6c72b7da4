"""
Generative recommendation with semantic IDs for the Hugging Face ecosystem.

Importing the package registers its models with the Auto classes and the task "next-item-recommendation", so
`AutoModel.from_pretrained` and `pipeline` load them without `trust_remote_code`. The names below are imported when
they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_genrec.registration import register


if TYPE_CHECKING:
    from hf_genrec.data.prepare import prepare as prepare
    from hf_genrec.data.prepared import PreparedDataset as PreparedDataset
    from hf_genrec.evaluation.evaluate import evaluate as evaluate
    from hf_genrec.hub.push import push_recommender as push_recommender
    from hf_genrec.hub.save import save_recommender as save_recommender
    from hf_genrec.modeling.configuration_acerec import ACERecConfig as ACERecConfig
    from hf_genrec.modeling.configuration_bert4rec import BERT4RecConfig as BERT4RecConfig
    from hf_genrec.modeling.configuration_decoder import DecoderConfig as DecoderConfig
    from hf_genrec.modeling.configuration_gru4rec import GRU4RecConfig as GRU4RecConfig
    from hf_genrec.modeling.configuration_hstu import HSTUConfig as HSTUConfig
    from hf_genrec.modeling.configuration_latte import LatteConfig as LatteConfig
    from hf_genrec.modeling.configuration_rpg import RPGConfig as RPGConfig
    from hf_genrec.modeling.configuration_sasrec import SASRecConfig as SASRecConfig
    from hf_genrec.modeling.configuration_vqrec import VQRecConfig as VQRecConfig
    from hf_genrec.modeling.modeling_acerec import ACERecForItemGeneration as ACERecForItemGeneration
    from hf_genrec.modeling.modeling_bert4rec import BERT4RecForItemGeneration as BERT4RecForItemGeneration
    from hf_genrec.modeling.modeling_decoder import DecoderForItemGeneration as DecoderForItemGeneration
    from hf_genrec.modeling.modeling_gru4rec import GRU4RecForItemGeneration as GRU4RecForItemGeneration
    from hf_genrec.modeling.modeling_hstu import HSTUForItemGeneration as HSTUForItemGeneration
    from hf_genrec.modeling.modeling_latte import LatteForConditionalGeneration as LatteForConditionalGeneration
    from hf_genrec.modeling.modeling_rpg import RPGForItemGeneration as RPGForItemGeneration
    from hf_genrec.modeling.modeling_sasrec import SASRecForItemGeneration as SASRecForItemGeneration
    from hf_genrec.modeling.modeling_vqrec import VQRecForItemGeneration as VQRecForItemGeneration
    from hf_genrec.serving.recommender import Recommender as Recommender
    from hf_genrec.tokenizers.embeddings import embed_texts as embed_texts
    from hf_genrec.tokenizers.hierarchical_kmeans import HierarchicalKMeans as HierarchicalKMeans
    from hf_genrec.tokenizers.product import ProductQuantizer as ProductQuantizer
    from hf_genrec.tokenizers.residual_kmeans import ResidualKMeans as ResidualKMeans
    from hf_genrec.tokenizers.rqvae import RQVAE as RQVAE
    from hf_genrec.tokenizers.semantic_ids import SemanticIds as SemanticIds
    from hf_genrec.training.arguments import GenRecTrainingArguments as GenRecTrainingArguments
    from hf_genrec.training.trainer import make_trainer as make_trainer


__version__ = "0.1.0"

_ADDRESSES = {
    "RQVAE": "tokenizers.rqvae",
    "ACERecConfig": "modeling.configuration_acerec",
    "ACERecForItemGeneration": "modeling.modeling_acerec",
    "BERT4RecConfig": "modeling.configuration_bert4rec",
    "BERT4RecForItemGeneration": "modeling.modeling_bert4rec",
    "GRU4RecConfig": "modeling.configuration_gru4rec",
    "GRU4RecForItemGeneration": "modeling.modeling_gru4rec",
    "DecoderConfig": "modeling.configuration_decoder",
    "DecoderForItemGeneration": "modeling.modeling_decoder",
    "GenRecTrainingArguments": "training.arguments",
    "HSTUConfig": "modeling.configuration_hstu",
    "HSTUForItemGeneration": "modeling.modeling_hstu",
    "HierarchicalKMeans": "tokenizers.hierarchical_kmeans",
    "LatteConfig": "modeling.configuration_latte",
    "LatteForConditionalGeneration": "modeling.modeling_latte",
    "PreparedDataset": "data.prepared",
    "ProductQuantizer": "tokenizers.product",
    "RPGConfig": "modeling.configuration_rpg",
    "RPGForItemGeneration": "modeling.modeling_rpg",
    "Recommender": "serving.recommender",
    "ResidualKMeans": "tokenizers.residual_kmeans",
    "SASRecConfig": "modeling.configuration_sasrec",
    "SASRecForItemGeneration": "modeling.modeling_sasrec",
    "SemanticIds": "tokenizers.semantic_ids",
    "VQRecConfig": "modeling.configuration_vqrec",
    "VQRecForItemGeneration": "modeling.modeling_vqrec",
    "embed_texts": "tokenizers.embeddings",
    "evaluate": "evaluation.evaluate",
    "make_trainer": "training.trainer",
    "prepare": "data.prepare",
    "push_recommender": "hub.push",
    "save_recommender": "hub.save",
}
__all__ = sorted(_ADDRESSES)


def __getattr__(name: str) -> Any:
    if name not in _ADDRESSES:
        raise AttributeError(f"module 'hf_genrec' has no attribute {name!r}")
    globals()[name] = getattr(importlib.import_module(f"hf_genrec.{_ADDRESSES[name]}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_ADDRESSES})


register()
