"""What an architecture says of itself, and that a new one is a config, a model and a registration."""

import json

import pyarrow as pa
import pytest
import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModel

from hf_genrec import (
    ACERecConfig,
    BERT4RecConfig,
    DecoderConfig,
    GRU4RecConfig,
    HSTUConfig,
    LatteConfig,
    PreparedDataset,
    Recommender,
    RPGConfig,
    SASRecConfig,
    SASRecForItemGeneration,
    SemanticIds,
    VQRecConfig,
    VQRecForItemGeneration,
    prepare,
)
from hf_genrec.modeling.configuration_ensemble import EnsembleConfig
from hf_genrec.modeling.configuration_item_to_item import ItemToItemConfig
from hf_genrec.training.arguments import training_arguments
from hf_genrec.training.initial import Starting, start_fresh
from hf_genrec.training.runs import train_run
from invariants.model import random_codes


CONFIGS = (
    LatteConfig,
    DecoderConfig,
    RPGConfig,
    ACERecConfig,
    SASRecConfig,
    HSTUConfig,
    VQRecConfig,
    GRU4RecConfig,
    BERT4RecConfig,
    ItemToItemConfig,
    EnsembleConfig,
)
FACTS = (
    "has_codes", "display_name", "summary", "papers", "default_shape", "default_schedule", "paper_shape",
    "paper_schedule", "system_name", "cited_papers", "description",
)  # fmt: skip
NUM_USERS, LENGTH, NUM_ITEMS = 40, 6, 10
ITEM_IDS = [f"i{number}" for number in range(NUM_ITEMS)]


@strict
class LastItemConfig(SASRecConfig):
    """A bigram table, factorised: the next item depends on the last one alone."""

    model_type = "last_item"
    display_name = "LastItem"
    summary = "scores items by the last one"
    papers = ("Bigrams: Markov 1913, https://doi.org/10.1017/S0269889706001074",)
    default_shape = {"d_model": 16, "dropout_rate": 0.0}
    default_schedule = {"num_train_epochs": 40, "learning_rate": 0.05, "per_device_train_batch_size": 64}


class LastItemForItemGeneration(SASRecForItemGeneration):
    """SASRec without its encoder, for the tests."""

    config: LastItemConfig
    config_class = LastItemConfig

    def _make_encoder(self):
        self.reading = torch.nn.Linear(self.config.d_model, self.config.d_model)
        return super()._make_encoder()

    def _encode(self, histories, anchors=None):
        states = self.reading(self.token_embeddings(histories.tokens))
        return states[histories.last if anchors is None else anchors]


@pytest.fixture(scope="module")
def circle(tmp_path_factory) -> PreparedDataset:
    """A log in which every item is followed by the next one."""
    rows = [(f"u{user}", f"i{(user + step) % NUM_ITEMS}", step) for user in range(NUM_USERS) for step in range(LENGTH)]
    log = pa.table(dict(zip(("user_id", "item_id", "timestamp"), zip(*rows, strict=True), strict=True)))
    items = pa.table({"item_id": ITEM_IDS, "title": [f"thing {item_id}" for item_id in ITEM_IDS]})
    return prepare(tmp_path_factory.mktemp("circle") / "data", interactions=log, items=items)


def test_new_architecture_trains_saves_recommends_and_describes_itself(circle, tmp_path):
    AutoConfig.register("last_item", LastItemConfig, exist_ok=True)
    AutoModel.register(LastItemConfig, LastItemForItemGeneration, exist_ok=True)

    starting = start_fresh(circle, None, shape=LastItemConfig.default_shape, seed=0, architecture="last_item")
    args = training_arguments(tmp_path / "run", settings=LastItemConfig.default_schedule | {"precision": "fp32"})
    train_run(circle, starting, tmp_path / "run", args)
    recommender = Recommender.from_pretrained(tmp_path / "run", device="cpu")

    assert type(recommender.model) is LastItemForItemGeneration
    assert recommender.recommend([["i3", "i4"], ["i9"]], top_k=1).item_ids == [["i5"], ["i0"]]
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "# A LastItem recommender" in card
    assert "scores items by the last one" in card
    assert "Markov 1913" in card


@pytest.mark.parametrize("architecture", ["hstu", "vqrec", "gru4rec", "bert4rec"])
def test_models_that_score_all_items_train_and_recommend_from_their_folders(circle, tmp_path, architecture):
    shape = {"d_model": 16, "num_layers": 1}
    if architecture == "vqrec":
        ids = SemanticIds(ITEM_IDS, random_codes(NUM_ITEMS, 3, 5).numpy(), 5, "keep")
        starting = Starting(VQRecForItemGeneration(VQRecConfig.for_ids(ids, **shape)), ids, None)
        starting.model.set_catalog(ids.codes)
    else:
        starting = start_fresh(circle, None, shape=shape, seed=0, architecture=architecture)
    schedule = {"num_train_epochs": 2, "learning_rate": 0.01, "per_device_train_batch_size": 64}
    before = starting.model.token_embeddings.weight.clone()

    train_run(circle, starting, tmp_path / "run", training_arguments(tmp_path / "run", settings=schedule))

    recommender = Recommender.from_pretrained(tmp_path / "run", device="cpu")
    histories, rules = [["i3", "i4"], ["i9"]], {"top_k": 3, "exclude_items": ["i5", "i0"], "exclude_seen": True}
    assert type(recommender.model) is type(starting.model)
    assert not torch.equal(starting.model.token_embeddings.weight, before)
    found = recommender.recommend(histories, **rules)
    assert found == Recommender(starting.model, circle.items).recommend(histories, **rules)
    assert all(len(set(row)) == 3 and not set(row) & {"i5", "i0"} for row in found.item_ids)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_facts_of_an_architecture_are_not_written_into_its_config(config_class, tmp_path):
    config_class(num_items=12).save_pretrained(tmp_path)

    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    whole = json.loads(config_class(num_items=12).to_json_string(use_diff=False))
    assert not set(FACTS) & (set(saved) | set(whole))


@pytest.mark.parametrize("config_class", CONFIGS)
def test_recipes_are_settings_of_the_config_and_the_trainer(config_class, tmp_path):
    for shape in (config_class.default_shape, config_class.paper_shape):
        config = config_class(num_items=12, **shape)
        assert {name: getattr(config, name) for name in shape} == shape
    for schedule in (config_class.default_schedule, config_class.paper_schedule):
        args = training_arguments(tmp_path, settings=schedule)
        assert {name: getattr(args, name) for name in schedule} == schedule


@pytest.mark.parametrize(("num_latent_tokens", "name", "first"), [(0, "TIGER/PSID", "TIGER"), (8, "Latte", "Latte")])
def test_name_and_papers_of_the_shared_network_depend_on_its_latents(num_latent_tokens, name, first):
    config = LatteConfig(num_items=12, num_latent_tokens=num_latent_tokens)

    assert config.system_name == name
    assert config.cited_papers[0].startswith(first)


@pytest.mark.parametrize("config_class", [LatteConfig, RPGConfig])
def test_config_takes_its_sizes_from_the_ids(config_class):
    ids = SemanticIds([f"i{number}" for number in range(29)], random_codes().numpy(), 5, "keep")

    config = config_class.for_ids(ids, d_model=16)

    assert (config.num_items, config.num_levels, config.codebook_size, config.d_model) == (29, 3, 5, 16)


def test_model_without_codes_takes_its_size_from_item_ids_or_from_a_table():
    ids = SemanticIds([f"i{number}" for number in range(29)], random_codes().numpy(), 5, "keep")

    assert SASRecConfig.for_ids(["a", "b", "c"], d_model=16).num_items == 3
    assert SASRecConfig.for_ids(ids).num_items == 29


def test_codes_are_needed_where_items_are_read_by_them():
    with pytest.raises(ValueError, match="`ids` must have .*got a list without num_items, num_levels, codebook_size"):
        LatteConfig.for_ids(["a", "b"])
