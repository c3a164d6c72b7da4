"""
Generative recommendation with semantic IDs for the Hugging Face ecosystem.

Importing the package registers its models with the Auto classes and the task "next-item-recommendation", so
`AutoModel.from_pretrained` and `pipeline` load them without `trust_remote_code`. The walk of the data: interactions
and items, texts, embeddings, codes, semantic IDs, sequences, model, constrained generation, ranked items, metrics,
one folder for the Hub.
"""

from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM
from transformers.pipelines import PIPELINE_REGISTRY

from hf_genrec.data.prepare import PreparedDataset, prepare
from hf_genrec.evaluation.baselines import ItemKNN, Popularity
from hf_genrec.evaluation.evaluate import evaluate, evaluate_recommender, evaluation_record
from hf_genrec.hub.files import hub_files
from hf_genrec.hub.push import push_ids, push_recommender
from hf_genrec.hub.save import save_recommender
from hf_genrec.modeling.configuration_acerec import ACERecConfig
from hf_genrec.modeling.configuration_latte import LatteConfig
from hf_genrec.modeling.configuration_rpg import RPGConfig
from hf_genrec.modeling.configuration_sasrec import SASRecConfig
from hf_genrec.modeling.genrec_catalog import Catalog
from hf_genrec.modeling.genrec_folder import TASK
from hf_genrec.modeling.genrec_generate import CatalogLogitsProcessor
from hf_genrec.modeling.modeling_acerec import ACERecForItemGeneration
from hf_genrec.modeling.modeling_latte import LatteForConditionalGeneration
from hf_genrec.modeling.modeling_rpg import RPGForItemGeneration
from hf_genrec.modeling.modeling_sasrec import SASRecForItemGeneration
from hf_genrec.modeling.pipeline_genrec import NextItemPipeline
from hf_genrec.serving.recommendations import Recommendations
from hf_genrec.serving.recommender import Recommender
from hf_genrec.tokenizers.embeddings import Whitening, embed_texts
from hf_genrec.tokenizers.hierarchical_kmeans import HierarchicalKMeans
from hf_genrec.tokenizers.product import ProductQuantizer
from hf_genrec.tokenizers.random_codes import RandomCodes
from hf_genrec.tokenizers.residual_kmeans import ResidualKMeans
from hf_genrec.tokenizers.rqvae import RQVAE
from hf_genrec.tokenizers.semantic_ids import SemanticIds
from hf_genrec.tokenizers.vocabulary import build_tokenizer
from hf_genrec.training.trainer import GenRecTrainer, GenRecTrainingArguments, make_trainer


__version__ = "0.1.0"

AutoConfig.register("latte", LatteConfig, exist_ok=True)
AutoModel.register(LatteConfig, LatteForConditionalGeneration, exist_ok=True)
AutoModelForSeq2SeqLM.register(LatteConfig, LatteForConditionalGeneration, exist_ok=True)
LatteConfig.register_for_auto_class()
LatteForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")
for _config_class, _model_class in (
    (RPGConfig, RPGForItemGeneration),
    (ACERecConfig, ACERecForItemGeneration),
    (SASRecConfig, SASRecForItemGeneration),
):
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
    AutoModel.register(_config_class, _model_class, exist_ok=True)
    _config_class.register_for_auto_class()
    _model_class.register_for_auto_class("AutoModel")
PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=NextItemPipeline, pt_model=AutoModel)

__all__ = [
    "RQVAE",
    "ACERecConfig",
    "ACERecForItemGeneration",
    "Catalog",
    "CatalogLogitsProcessor",
    "GenRecTrainer",
    "GenRecTrainingArguments",
    "HierarchicalKMeans",
    "ItemKNN",
    "LatteConfig",
    "LatteForConditionalGeneration",
    "NextItemPipeline",
    "Popularity",
    "PreparedDataset",
    "ProductQuantizer",
    "RPGConfig",
    "RPGForItemGeneration",
    "RandomCodes",
    "Recommendations",
    "Recommender",
    "ResidualKMeans",
    "SASRecConfig",
    "SASRecForItemGeneration",
    "SemanticIds",
    "Whitening",
    "build_tokenizer",
    "embed_texts",
    "evaluate",
    "evaluate_recommender",
    "evaluation_record",
    "hub_files",
    "make_trainer",
    "prepare",
    "push_ids",
    "push_recommender",
    "save_recommender",
]
