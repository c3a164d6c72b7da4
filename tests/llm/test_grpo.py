"""trl's GRPO over constrained searches: groups, rewards, both kinds of probabilities, and steps."""

import pytest
import torch
from trl import GRPOConfig

from hf_genrec.llm.grpo import make_grpo_trainer
from tests.tiny_llms import ITEM_IDS, tiny_recommender


@pytest.fixture(scope="module")
def data(make_prepared):
    return make_prepared({f"u{user}": [ITEM_IDS[(user + step) % 29] for step in range(6)] for user in range(29)})


def trainer_of(model, data, folder, *, beta=0.0, num_generations=4, **options):
    args = GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=8, num_generations=num_generations, max_steps=2, beta=beta,
        learning_rate=1e-2, report_to="none", logging_steps=1, disable_tqdm=True, use_cpu=True, bf16=False,
        save_strategy="no", gradient_checkpointing=False,
    )  # fmt: skip
    return make_grpo_trainer(model, data, args, **options)


def test_group_is_one_search_with_rank_r_in_row_r(data, tmp_path):
    model = tiny_recommender()
    trainer = trainer_of(model, data, tmp_path)
    prompts = [prompt for prompt in trainer.train_dataset["prompt"][:2] for _ in range(4)]

    found = trainer.groups(prompts, 4)

    for user in range(2):
        history = torch.tensor([trainer.histories[prompts[4 * user]]]) + model.config.first_item_token
        output = model.recommend(history, top_k=4, num_beams=10, exclude_items=history)
        items = (output.item_tokens[0] - model.config.first_item_token).tolist()
        codes = model.item_codes[items].long()
        assert found["completion_ids"][4 * user : 4 * user + 4] == [
            [int(model.code_token_ids[level, code]) for level, code in enumerate(row)] for row in codes.tolist()
        ]
        assert found["prompt_ids"][4 * user] == model.prompt_tokens(history)[0][0].tolist()
    with pytest.raises(ValueError, match="must be a multiple of `num_generations` 4"):
        trainer.groups([*prompts[1:], prompts[0]], 4)


def test_rewards_are_those_of_the_items_in_their_groups(data, tmp_path):
    model = tiny_recommender()
    trainer = trainer_of(model, data, tmp_path, rewards="hit=1")
    tokens = model.code_token_ids[torch.arange(model.config.num_levels), model.item_codes[[3, 9, 5, 7] * 2].long()]
    seen = {}

    rewards = trainer.group_rewards(tokens.tolist(), [9] * 4 + [2] * 4, log_metric=seen.__setitem__)

    assert rewards == [0, 1, 0, 0] + [0] * 4
    assert seen == {"reward_hit": 0.125, "groups_with_target": 0.5, "distinct_items": 4}


@pytest.mark.parametrize(("in_catalog", "normalization"), [(True, "catalog"), (False, "vocabulary")])
def test_probabilities_are_those_of_the_recommender(in_catalog, normalization, data, tmp_path):
    model = tiny_recommender()
    trainer = trainer_of(model, data, tmp_path, renormalize_in_catalog=in_catalog)
    prompt = trainer.train_dataset["prompt"][5]
    found = trainer.groups([prompt] * 4, 4)
    tokens = torch.tensor([a + b for a, b in zip(found["prompt_ids"], found["completion_ids"], strict=True)])

    log_probs, _, _ = trainer._get_per_token_logps_and_entropies(
        model.llm, tokens, torch.ones_like(tokens), model.config.num_levels
    )

    history = torch.tensor([trainer.histories[prompt]]) + model.config.first_item_token
    output = model.recommend(history, top_k=4, num_beams=10, exclude_items=history)
    items = output.item_tokens - model.config.first_item_token
    assert model.config.normalization == normalization
    with torch.no_grad():
        expected = model.score_candidates(model.encode_history(history), items)
    torch.testing.assert_close(log_probs.sum(1), expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adapter", [True, False])
def test_steps_train_the_adapter_or_the_network_from_a_divergence_of_zero(adapter, data, tmp_path):
    model = tiny_recommender(adapter=adapter)
    before = {name: value.clone() for name, value in model.llm.state_dict().items()}
    trainer = trainer_of(model, data, tmp_path, beta=0.1 if adapter else 0.0, rewards="novelty=1,diversity=1")

    trainer.train()

    lines = [line for line in trainer.state.log_history if "reward" in line]
    assert len(lines) == 2
    assert {"reward_novelty", "distinct_items"} <= set(lines[0])
    if adapter:
        assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    after = model.llm.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    assert not adapter or all("default" in name for name in changed)
