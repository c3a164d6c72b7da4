"""Training of models with a dense head: own weight decay, and the weight of the head in lists."""

import pytest
import torch

from hf_genrec import GenRecTrainingArguments, LatteForConditionalGeneration, make_trainer
from hf_genrec.training.two_heads import best_weight, choose_dense_weight
from invariants.model import histories_of, make_model, tiny_config


HEADS = {"history_attention": "causal", "history_unit": "item", "normalization": "catalog", "dense_head": True}


@pytest.fixture
def circle(make_prepared):
    """A world with one rule: item `i` is followed by `i + 1`, the last by the first."""
    return make_prepared({f"u{user}": [f"i{(user + step) % 11:02d}" for step in range(6)] for user in range(33)})


def trainer_of(model, prepared, folder, **changes):
    quiet = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "disable_tqdm": True}
    return make_trainer(model, prepared, GenRecTrainingArguments(str(folder), precision="fp32", **quiet, **changes))


def circle_model(**changes):
    return make_model(tiny_config(**HEADS, num_items=11, num_levels=2, codebook_size=4, **changes))


def test_own_rows_have_their_own_weight_decay(circle, tmp_path):
    model = circle_model(dense_row_weight_decay=0.7)

    optimizer = trainer_of(model, circle, tmp_path, weight_decay=0.2).create_optimizer()

    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(model.item_table.rows.weight)] == 0.7
    assert decays[id(model.shared.weight)] == 0.2
    assert len(decays) == len(list(model.parameters())) == sum(len(g["params"]) for g in optimizer.param_groups)


def test_training_ends_with_the_weight_that_validation_users_like_best(circle, tmp_path):
    model = circle_model(d_model=24)
    trainer = trainer_of(model, circle, tmp_path, num_train_epochs=12, learning_rate=1e-2)

    trainer.train()

    found = trainer.state.log_history[-1]
    figures = {float(name.removeprefix("ndcg@10_of_")): found[name] for name in found if name.startswith("ndcg@10_of")}
    assert model.recommend_config.dense_weight == found["dense_weight"] == best_weight(figures)
    assert max(figures.values()) > 0.8
    model.save_pretrained(tmp_path)
    loaded = LatteForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.recommend_config.dense_weight == model.recommend_config.dense_weight


def test_validation_ranks_as_the_trained_model_is_served(circle, tmp_path):
    trainer = trainer_of(
        circle_model(d_model=24), circle, tmp_path, num_train_epochs=3, learning_rate=1e-2, eval_num_beams=50
    )

    trainer.train()

    weights = trainer.state.log_history[-1]
    best = weights[f"ndcg@10_of_{weights['dense_weight']:g}"]
    assert trainer.evaluate()["eval_ndcg@10"] == pytest.approx(best)


def test_of_equally_good_weights_the_smallest_is_taken():
    assert best_weight({4.0: 0.3, 1.0: 0.3, 0.5: 0.2, 8.0: 0.1}) == 1.0


@pytest.mark.parametrize("repeats", [False, True])
def test_figures_are_those_of_the_lists_that_serving_gives(repeats):
    model = make_model(tiny_config(**HEADS))
    input_ids, mask = histories_of(model.config, (7, 5, 6), seed=3)
    items = torch.arange(29) + model.config.first_item_token
    unseen = torch.stack([items[~torch.isin(items, row)][4] for row in input_ids])
    targets = input_ids[:, 2] if repeats else unseen
    labels = torch.full_like(input_ids, -100).scatter(1, mask.sum(1, keepdim=True) - 1, targets[:, None])
    batch = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}

    figures = choose_dense_weight(model, [batch], leaves_out=not repeats, num_beams=29)

    for weight in (0.0, 2.0):
        lists = model.recommend(
            input_ids, mask, num_beams=29, dense_weight=weight, exclude_items=None if repeats else input_ids
        ).item_tokens
        places = (lists == targets[:, None]).nonzero()[:, 1]
        assert figures[weight] == pytest.approx(float((1 / torch.log2(places + 2.0)).sum()) / 3)
