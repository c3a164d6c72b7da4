import pytest
import torch

from hf_genrec.llm.vocabulary import SidVocabulary
from hf_genrec.modeling.configuration_causal_lm import CausalLMConfig
from invariants.model import NUM_ITEMS, RecommendInvariants, histories_of
from tiny_llms import KINDS, tiny_recommender


CODE_TOKENS = [[11, 12, 13], [14, 15, 16]]


class TestCausalLM(RecommendInvariants):
    KINDS_AND_SETTINGS = {
        "llama": ("llama", {}),
        "llama, whole vocabulary": ("llama", {"normalization": "vocabulary"}),
        "qwen3, adapter": ("qwen3", {"adapter": True}),
        "gpt2, items without an end": ("gpt2", {"closes_items": False}),
        "llama, no prefix": ("llama", {"prefix": ""}),
    }

    def pytest_generate_tests(self, metafunc):
        if "model" in metafunc.fixturenames or "own" in metafunc.fixturenames:
            metafunc.parametrize("name", list(self.KINDS_AND_SETTINGS), scope="class")

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, name):
        kind, settings = cls.KINDS_AND_SETTINGS[name]
        return tiny_recommender(kind, **settings)


@pytest.fixture(params=KINDS)
def model(request):
    return tiny_recommender(request.param)


def best_of_generate(model, histories, mask, *, num_beams, **options):
    """Item tokens and scores `(B, num_beams)` of transformers' own search."""
    output = model.generate(
        histories, mask, num_beams=num_beams, num_return_sequences=num_beams, return_dict_in_generate=True,
        output_scores=True, **options,
    )  # fmt: skip
    items = model.items_of(output.sequences).view(len(histories), num_beams)
    return items + model.config.first_item_token, output.sequences_scores.view(len(histories), num_beams)


@pytest.mark.parametrize("closes_items", [True, False])
def test_prompt_is_what_the_tokenizer_makes_of_the_text(model, closes_items):
    model.config.closes_items = closes_items
    config, vocabulary = model.config, SidVocabulary.from_tokenizer(model.tokenizer)
    histories, mask = histories_of(config, (5, 3, 1, 0), padding_side="left")

    tokens, is_token = model.prompt_tokens(histories, mask)

    for row, length in enumerate((5, 3, 1, 0)):
        items = histories[row, 5 - length :] - config.first_item_token
        text = "".join(vocabulary.item_text(model.item_codes[item].tolist()) for item in items)
        text = text if closes_items else text.replace("<|sid_end|>", "")
        expected = model.tokenizer(f"a user has taken: {text} next: <|sid_begin|>").input_ids
        assert tokens[row, is_token[row]].tolist() == expected


@pytest.mark.parametrize("normalization", ["catalog", "vocabulary"])
def test_recommended_items_are_those_of_generate(model, normalization):
    model.config.normalization = normalization
    for side in ("left", "right"):
        histories, mask = histories_of(model.config, (5, 3, 0), padding_side=side)
        expected, expected_scores = best_of_generate(model, histories, mask, num_beams=13)

        found = model.recommend(histories, mask, top_k=13, num_beams=13)

        assert found.item_tokens.tolist() == expected.tolist()
        torch.testing.assert_close(found.scores, expected_scores, rtol=1e-4, atol=1e-4)


def test_recommended_items_are_those_of_a_prefix_function(model):
    model.config.normalization = "vocabulary"
    histories, mask = histories_of(model.config, (4, 2))
    tokens, is_token = model.prompt_tokens(histories, mask)
    order = is_token.long().argsort(dim=1, stable=True)
    tokens, is_token = tokens.gather(1, order), is_token.gather(1, order)
    paths = torch.stack([model.code_token_ids[level, code] for level, code in enumerate(model.item_codes.T.long())], 1)

    def legal(user, written):
        written = written[tokens.shape[1] :]
        follows = paths[(paths[:, : len(written)] == written).all(1), len(written)]
        return follows.unique().tolist()

    output = model.llm.generate(
        tokens, attention_mask=is_token.long(), prefix_allowed_tokens_fn=legal, num_beams=7, num_return_sequences=7,
        max_new_tokens=3, eos_token_id=None, length_penalty=0.0,
    )  # fmt: skip

    found = model.recommend(histories, mask, top_k=7, num_beams=7)
    assert (found.item_tokens - model.config.first_item_token).flatten().tolist() == model.items_of(output).tolist()


def test_beams_for_every_item_equal_exact_scores(model):
    histories, mask = histories_of(model.config, (5, 0, 2))

    found = model.recommend(histories, mask, top_k=NUM_ITEMS, num_beams=NUM_ITEMS)

    exact = model.score_items(histories, mask)
    torch.testing.assert_close(exact.exp().sum(1), torch.ones(3))  # over the catalog
    scores = exact.gather(1, found.item_tokens - model.config.first_item_token)
    torch.testing.assert_close(found.scores, scores, rtol=1e-4, atol=1e-4)
    items = found.item_tokens - model.config.first_item_token
    candidates = model.score_candidates(model.encode_history(histories, mask), items)
    torch.testing.assert_close(candidates, scores, rtol=1e-4, atol=1e-4)


def test_scores_over_the_whole_vocabulary_are_those_of_the_plain_language_model(model):
    model.config.normalization = "vocabulary"
    histories, _ = histories_of(model.config, (4,))
    tokens, _ = model.prompt_tokens(histories)
    path = model.code_token_ids[torch.arange(3), model.item_codes[11].long()]

    logits = model.llm(input_ids=torch.cat([tokens, path[None, :-1]], dim=1)).logits[0, -3:]

    expected = logits.log_softmax(-1).gather(1, path[:, None]).sum()
    torch.testing.assert_close(model.score_items(histories)[0, 11], expected, rtol=1e-4, atol=1e-4)


def test_history_longer_than_the_prompt_keeps_its_latest_items(model):
    histories, _ = histories_of(model.config, (9,))

    found = model.recommend(histories, top_k=3)

    assert found.item_tokens.tolist() == model.recommend(histories[:, 2:], top_k=3).item_tokens.tolist()
    assert model.prompt_tokens(histories)[0].shape[1] == model.config.prompt_length(7)


def test_diverse_lists_samples_groups_and_paths_work_as_for_every_model(model):
    histories, mask = histories_of(model.config)
    first = model.config.first_item_token
    for options in ({"diversity": 0.7}, {"sample_seed": 3}, {"num_groups": 3, "group_penalty": 1.0}):
        tokens = model.recommend(histories, mask, top_k=5, num_beams=9, **options).item_tokens
        assert all(len(set(row)) == 5 for row in (tokens - first).tolist())

    output = model.recommend(histories, mask, top_k=5, num_beams=9, return_paths=True)
    path = next(path for path in output.paths[1] if path.item_token == int(output.item_tokens[1, 0]))
    assert path.codes == model.item_codes[path.item_token - first].tolist()

    prior = torch.arange(1.0, NUM_ITEMS + 1)
    corrected = model.recommend(histories, mask, top_k=5, item_prior=prior, prior_correction=5.0)
    assert corrected.item_tokens.tolist() != output.item_tokens.tolist()


def test_attention_with_a_sliding_window_sees_what_the_plain_model_sees():
    model = tiny_recommender("qwen3")
    for layer in model.llm.model.layers:
        layer.self_attn.sliding_window = 7
    model.llm.config.sliding_window = 7
    model.llm.config.layer_types, model.llm.model.has_sliding_layers = ["sliding_attention"] * 3, True
    model._is_verified = True
    histories, mask = histories_of(model.config, (5, 2))

    expected, _ = best_of_generate(model, histories, mask, num_beams=6)

    assert model.recommend(histories, mask, top_k=6, num_beams=6).item_tokens.tolist() == expected.tolist()


def test_prefix_is_read_once_for_all_users(model):
    histories, mask = histories_of(model.config, (5, 3, 0))
    lengths = []
    model.causal_lm.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    model._is_verified = True
    num_shared = len(model.config.prompt_prefix_ids)

    model.encode_history(histories, mask)

    assert lengths == [(1, num_shared), (3, model.config.prompt_length(5) - num_shared)]


def test_language_model_that_changes_its_logits_is_refused():
    model = tiny_recommender()
    head = model.llm.lm_head
    model.llm.lm_head.forward = lambda states: 2 * torch.nn.functional.linear(states, head.weight)

    with pytest.raises(ValueError, match="cannot read a LlamaForCausalLM: it attends, or makes its logits"):
        model.recommend(histories_of(model.config)[0])


def test_prompt_longer_than_the_positions_of_the_model_is_refused():
    with pytest.raises(ValueError, match=r"`max_history_length` 99 makes prompts of \d+ tokens; `llm` has 256"):
        tiny_recommender(max_history_length=99)


def test_config_that_does_not_fit_is_refused():
    sizes = {"num_items": 5, "num_levels": 2, "codebook_size": 3, "begin_id": 10, "end_id": 17}

    with pytest.raises(ValueError, match=r"`prompt_suffix_ids` must end with `begin_id` 10"):
        CausalLMConfig(**sizes, code_token_ids=CODE_TOKENS, prompt_suffix_ids=[10, 3])
    with pytest.raises(ValueError, match=r"`code_token_ids` must be 2 lists of 3 tokens, got lists of \[3\]"):
        CausalLMConfig(**sizes, code_token_ids=CODE_TOKENS[:1])
    with pytest.raises(ValueError, match="`num_latent_tokens` must be 0 for a language model"):
        CausalLMConfig(**sizes, code_token_ids=CODE_TOKENS, num_latent_tokens=2)


@pytest.mark.parametrize("adapter", [False, True])
def test_half_precision_answers_with_full_distinct_lists(adapter):
    model = tiny_recommender("qwen3", adapter=adapter).to(torch.bfloat16)

    found = model.recommend(*histories_of(model.config), top_k=11, num_beams=13)

    assert all(len(set(row)) == 11 for row in found.item_tokens.tolist())
    assert found.scores.dtype == torch.float32
