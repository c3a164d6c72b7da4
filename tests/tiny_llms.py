"""Random language models of three kinds and a real, small tokenizer, in memory and within milliseconds."""

import warnings
from functools import cache
from types import SimpleNamespace

import pyarrow as pa
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hf_genrec import SemanticIds, save_recommender
from hf_genrec.llm.recommender import as_recommender
from hf_genrec.llm.vocabulary import SidVocabulary
from invariants.model import NUM_ITEMS, random_codes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


ITEM_IDS = [f"i{number}" for number in range(NUM_ITEMS)]
ITEMS = pa.table({"item_id": ITEM_IDS, "title": [f"T{number}" for number in range(NUM_ITEMS)]})
KINDS = ["llama", "qwen3", "gpt2"]
WORDS = ["red tea cup", "green tea pot", "blue sugar bowl", "small red spoon", "big green bowl", "a user has taken"]


@cache
def _trained() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=301, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    backend.train_from_iterator(WORDS, trainer)
    return backend.to_str()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE as of GPT-2 and Qwen, with some words of one token."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()), eos_token="<|end|>", pad_token="<|end|>"
    )


def tiny_llm(kind: str = "llama", *, vocab_size: int = 301, is_tied: bool | None = None, seed: int = 0):
    """A random causal LM in evaluation mode; embeddings are tied but for qwen3, unless `is_tied` says otherwise."""
    torch.manual_seed(seed)
    tied = kind != "qwen3" if is_tied is None else is_tied
    common = {"vocab_size": vocab_size, "tie_word_embeddings": tied, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_embd=20, n_layer=2, n_head=4, n_positions=128, **common))
    else:
        shape = {"hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 3, "num_attention_heads": 4}
        config_class, model_class = {
            "llama": (LlamaConfig, LlamaForCausalLM),
            "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        }[kind]
        config = config_class(**shape, num_key_value_heads=2, head_dim=6, max_position_embeddings=256, **common)
        model = model_class(config)
    for parameter in model.parameters():  # far enough from zero that histories matter
        parameter.data.mul_(4) if parameter.ndim > 1 else None
    return model.eval()


def tiny_recommender(kind: str = "llama", *, codes=None, codebook_size: int = 5, adapter: bool = False, **settings):
    """A recommender around a random language model, over 29 items with random codes unless others are given."""
    codes = random_codes() if codes is None else torch.as_tensor(codes)
    llm, tokenizer = tiny_llm(kind), tiny_tokenizer()
    vocabulary = SidVocabulary.add_to(tokenizer, num_levels=codes.shape[1], codebook_size=codebook_size)
    vocabulary.resize(llm, tokenizer, init="mean", pad_to_multiple_of=8)
    torch.manual_seed(1)
    for matrix in {llm.get_input_embeddings().weight, llm.get_output_embeddings().weight}:
        matrix.data[vocabulary.new_token_ids] = torch.randn(len(vocabulary.new_token_ids), matrix.shape[1])
    if adapter:
        llm = adapted(llm, vocabulary)
    ids = SimpleNamespace(num_items=len(codes), num_levels=codes.shape[1], codebook_size=codebook_size, codes=codes)
    prompt = {"prefix": "a user has taken: ", "suffix": " next: <|sid_begin|>", "max_history_length": 7}
    return as_recommender(llm, tokenizer, ids, **(prompt | settings)).eval()


def adapted(llm, vocabulary):
    """With an adapter of random weights, as after training."""
    indices = vocabulary.trainable_token_indices(llm)
    config = LoraConfig(r=3, target_modules="all-linear", trainable_token_indices=indices, ensure_weight_tying=True)
    with warnings.catch_warnings():  # of tied and untied weights, and of GPT-2's kind of linear layer
        warnings.simplefilter("ignore")
        model = get_peft_model(llm, config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def save_llm_run(folder, kind="llama", *, adapter=False, counts=None):
    """A complete folder; that of an adapter names its base, beside it, by its path."""
    if adapter:
        tiny_llm(kind).save_pretrained(folder / "base")
        tiny_tokenizer().save_pretrained(folder / "base")
    model = tiny_recommender(kind, adapter=adapter)
    if adapter:
        model.llm.peft_config["default"].base_model_name_or_path = str(folder / "base")
    if counts is not None:
        model.set_item_counts(counts)
    ids = SemanticIds(ITEM_IDS, random_codes().numpy(), 5, "keep")
    return save_recommender(folder / "run", model, ids, ITEMS), model
