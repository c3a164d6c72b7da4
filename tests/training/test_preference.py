"""Preference and reward training: rewards, objectives, which probabilities are right, and whole runs."""

import pytest
import torch

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.training.objectives import (
    group_advantages,
    grpo_loss,
    kl_divergence,
    listwise_loss,
    sdpo_loss,
    with_target,
)
from hf_genrec.training.preference import PreferenceTrainingArguments, make_preference_trainer
from hf_genrec.training.rewards import RewardSum, diversity, hit, novelty, parse_weights, rank_penalty, validity
from invariants.model import make_decoder, make_model, make_sasrec, tiny_config


# --- rewards ------------------------------------------------------------------------------------------------------


ITEMS, TARGETS = torch.tensor([[4, 7, -1], [2, 3, 5]]), torch.tensor([7, 9])


def test_hit_and_validity_look_at_single_items():
    assert hit(ITEMS, TARGETS).tolist() == [[0, 1, 0], [0, 0, 0]]
    assert validity(ITEMS).tolist() == [[1, 1, 0], [1, 1, 1]]


def test_wrong_items_are_punished_by_rank_in_groups_with_the_target_alone():
    discounts = torch.tensor([1.0, 1 / torch.log2(torch.tensor(3.0)), 0.5])

    penalty = rank_penalty(torch.tensor([[4, 7, 1], [2, 3, 5]]), TARGETS)

    expected = -discounts / discounts.sum()
    torch.testing.assert_close(penalty[0], torch.tensor([expected[0], 0.0, expected[2]]))
    assert penalty[1].tolist() == [0, 0, 0]


def test_diversity_is_the_mean_share_of_levels_behind_the_common_prefix():
    codes = torch.tensor([[0, 0], [0, 1], [2, 0]])

    found = diversity(torch.tensor([[0, 1, 2], [0, 2, -1]]), codes)

    torch.testing.assert_close(found, torch.tensor([[0.75, 0.75, 1.0], [1.0, 1.0, 0.0]]))


def test_novelty_is_one_for_items_that_never_occur_and_less_for_frequent_ones():
    found = novelty(torch.tensor([[0, 1, 2]]), torch.tensor([0, 1, 99]))[0]

    assert found[:2].tolist() == [1.0, 1.0]
    assert found[2] == pytest.approx(1 - torch.tensor(99.0).log().item() / torch.tensor(100.0).log().item(), abs=1e-6)


def test_sum_of_rewards_is_weighted_and_keeps_its_parts():
    total, parts = RewardSum({"hit": 2.0, "validity": 0.5})(ITEMS, TARGETS)

    assert total.tolist() == [[0.5, 2.5, 0.0], [0.5, 0.5, 0.5]]
    assert list(parts) == ["hit", "validity"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("hit", "like hit=1,rank=0.5, got 'hit'"), ("luck=1", "must name rewards .*got luck"), ("", "at least")],
)
def test_wrong_rewards_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_weights(text)


def test_reward_without_what_it_needs_is_refused():
    with pytest.raises(ValueError, match="'novelty' needs `item_counts`"):
        RewardSum({"novelty": 1.0})


# --- objectives ---------------------------------------------------------------------------------------------------


PATHS = torch.tensor([[-1.0, -2.0, -5.0], [-3.0, -1.5, -2.0]])
ALL = torch.ones(2, 3, dtype=torch.bool)
IS_TARGET = torch.tensor([[False, True, False], [True, False, False]])


def test_advantages_have_mean_zero_over_the_paths_of_a_group():
    is_path = torch.tensor([[True, True, False], [True, True, True]])

    found = group_advantages(torch.tensor([[1.0, 0.0, 7.0], [1.0, 2.0, 6.0]]), is_path)

    assert found.tolist() == [[0.5, -0.5, 0.0], [-2.0, -1.0, 3.0]]
    scaled = group_advantages(torch.tensor([[1.0, 0.0, 7.0], [1.0, 1.0, 1.0]]), is_path, scale=True)
    torch.testing.assert_close(scaled, torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]))


def test_grpo_moves_log_probabilities_by_their_advantages():
    paths = PATHS.clone().requires_grad_()

    grpo_loss(paths, torch.tensor([[0.5, -0.5, 0.0], [1.0, 0.0, -1.0]]), ALL).sum().backward()

    torch.testing.assert_close(paths.grad, torch.tensor([[-0.5, 0.5, 0.0], [-1.0, 0.0, 1.0]]) / 3)


def test_listwise_loss_is_the_cross_entropy_of_the_target_within_its_group():
    torch.testing.assert_close(listwise_loss(PATHS, IS_TARGET, ALL), -PATHS.log_softmax(1)[IS_TARGET])


def test_divergence_is_zero_at_the_reference_and_never_negative():
    assert kl_divergence(PATHS, PATHS, ALL).tolist() == [0.0, 0.0]
    assert bool((kl_divergence(PATHS, PATHS.flip(1), ALL) > 0).all())


def test_sdpo_with_one_negative_is_dpo():
    is_path = torch.tensor([[True, True, False], [True, True, False]])
    reference = torch.tensor([[-1.5, -1.0, 0.0], [-2.0, -2.0, 0.0]])

    found = sdpo_loss(PATHS, reference, IS_TARGET, is_path, beta=0.5)

    gains = 0.5 * (PATHS - reference)
    margins = torch.stack([gains[0, 1] - gains[0, 0], gains[1, 0] - gains[1, 1]])
    torch.testing.assert_close(found, -torch.nn.functional.logsigmoid(margins))


def test_sdpo_compares_the_target_with_all_negatives_in_one_softmax():
    reference = torch.zeros_like(PATHS)

    found = sdpo_loss(PATHS, reference, IS_TARGET, ALL, beta=1.0)

    torch.testing.assert_close(found, listwise_loss(PATHS, IS_TARGET, ALL))


def test_group_that_misses_its_target_has_it_in_the_last_place():
    assert with_target(torch.tensor([[4, 7], [4, 7]]), torch.tensor([4, 9])).tolist() == [[4, 7], [4, 9]]


# --- over which tokens a probability is one: a toy whose answer is known ------------------------------------------


@pytest.mark.parametrize(("normalization", "is_right"), [("catalog", True), ("vocabulary", False)])
def test_probabilities_over_allowed_tokens_give_the_gradient_of_the_reward_and_those_over_all_tokens_do_not(
    normalization, is_right
):
    """
    Rollouts are drawn over the tokens that the catalog allows, so the expected reward is that of these probabilities.
    With every item in the group, each as often as it is drawn, the policy gradient must be its gradient.
    """
    model = make_decoder(normalization="catalog", num_items=11)
    history = torch.tensor([[3, 8, 2]]) + model.config.first_item_token
    items, rewards = torch.arange(11).unsqueeze(0), torch.randn(1, 11, generator=torch.Generator().manual_seed(0))

    def log_probs():
        return model.score_candidates(model.encode_history(history), items)

    drawn = log_probs()
    (drawn.exp() * rewards).sum().backward()  # the expected reward; probabilities sum to 1
    expected = model.embed_tokens.weight.grad.clone()
    model.zero_grad()
    advantages = rewards - (drawn.detach().exp() * rewards).sum()
    model.config.normalization = normalization
    (drawn.detach().exp() * advantages * log_probs()).sum().backward()
    found = model.embed_tokens.weight.grad

    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5) == is_right


# --- runs ---------------------------------------------------------------------------------------------------------


def arguments(folder, **changes):
    settings = {"max_steps": 3, "per_device_train_batch_size": 5, "num_generations": 4, "logging_steps": 1}
    quiet = {"report_to": "none", "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    return PreferenceTrainingArguments(
        output_dir=str(folder), precision="fp32", disable_tqdm=True, **quiet, **(settings | changes)
    )


@pytest.fixture(scope="module")
def data(make_prepared) -> PreparedDataset:
    names = [f"i{number:02d}" for number in range(13)]
    return make_prepared({f"u{user}": [names[(user + step) % 13] for step in range(6)] for user in range(17)})


MODELS = {
    "psid": lambda num: make_model(
        tiny_config(num_items=num, history_attention="causal", history_unit="item", normalization="catalog")
    ),
    "latents": lambda num: make_model(tiny_config(num_items=num, history_attention="causal", num_latent_tokens=2)),
    "decoder with two heads": lambda num: make_decoder(num_items=num, history_unit="item", dense_head=True),
}


@pytest.mark.parametrize("objective", ["grpo", "listwise", "sdpo"])
@pytest.mark.parametrize("name", list(MODELS))
def test_objectives_train_every_model_that_writes_codes(objective, name, data, tmp_path):
    model = MODELS[name](len(data.item_ids))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = make_preference_trainer(model, data, arguments(tmp_path, objective=objective, rewards="hit=1,novelty=1"))

    trainer.train()

    lines = [line for line in trainer.state.log_history if "reward" in line]
    assert len(lines) == 3
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert {"reward_hit", "reward_novelty", "groups_with_target", "distinct_items"} <= set(lines[0])
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    same = trainer.reference.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in same.items())


@pytest.mark.parametrize("rollouts", ["beams", "sample"])
def test_group_has_distinct_items_in_the_catalog_without_those_seen(rollouts, data, tmp_path):
    model = MODELS["latents"](len(data.item_ids))
    trainer = make_preference_trainer(model, data, arguments(tmp_path, rollouts=rollouts))
    trainer.leaves_out_seen = True
    input_ids = torch.tensor([[1, 3, 2], [4, 4, 5]]) + model.config.first_item_token

    items = trainer.rollout(model, {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)})

    for row, seen in zip(items.tolist(), ({1, 2, 3}, {4, 5}), strict=True):
        assert len(set(row) - seen) == 4


def test_reward_rises_where_it_can_be_had(data, tmp_path):
    """Novelty does not depend on the histories, so a model learns within some steps to recommend rare items."""
    model = MODELS["psid"](len(data.item_ids))
    args = arguments(tmp_path, max_steps=12, learning_rate=3e-2, per_device_train_batch_size=16, beta=0.0)
    trainer = make_preference_trainer(model, data, args)
    trainer.reward = RewardSum({"novelty": 1.0}, item_counts=2 ** torch.arange(13))

    trainer.train()

    rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    assert rewards[-1] > rewards[0] + 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "ppo"}, "`objective` must be one of grpo, listwise, sdpo, got 'ppo'"),
        ({"rollouts": "luck"}, "`rollouts` must be one of beams, sample"),
        ({"num_generations": 1}, "`num_generations` must be at least 2, got 1"),
        ({"beta": -1.0}, "`beta` must be at least 0, got -1.0"),
        ({"rewards": "joy=1"}, "must name rewards"),
    ],
)
def test_wrong_options_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)


def test_model_that_scores_all_items_at_once_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="code by code; a SASRecForItemGeneration does not"):
        make_preference_trainer(make_sasrec(num_items=len(data.item_ids)), data, arguments(tmp_path))


def test_group_larger_than_the_catalog_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="`num_generations` must be at most the"):
        make_preference_trainer(
            MODELS["psid"](len(data.item_ids)), data, arguments(tmp_path, num_generations=len(data.item_ids) + 1)
        )
