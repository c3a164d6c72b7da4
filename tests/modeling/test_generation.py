"""`generate()`: transformers' own, kept inside the catalog."""

import math

import pytest
import torch

from generated_beams import generate_beams, items_of
from invariants.model import NUM_LEVELS, histories_of, make_model, tiny_config


@pytest.fixture
def latte():
    return make_model(tiny_config(history_attention="causal", num_latent_tokens=3))


def test_generate_writes_a_start_token_a_latent_and_codes_whatever_length_is_asked_for(latte):
    config = latte.config
    input_ids, mask = histories_of(config)

    for lengths in ({}, {"max_new_tokens": 1}, {"max_new_tokens": 50}, {"max_length": 2}, {"min_new_tokens": 9}):
        rows = latte.generate(input_ids, attention_mask=mask, **lengths)

        assert rows.shape == (3, 1 + 1 + NUM_LEVELS)
        assert rows[:, 0].tolist() == [config.decoder_start_token_id] * 3
        assert bool(((rows[:, 1] >= config.first_latent_token) & (rows[:, 1] < config.first_code_token)).all())
        assert bool((items_of(latte, rows) >= 0).all())


def test_generate_takes_a_generation_config(latte):
    settings = type(latte.generation_config)(num_beams=5, num_return_sequences=5, max_length=3)
    histories = histories_of(latte.config)

    rows = latte.generate(histories[0], generation_config=settings, attention_mask=histories[1])

    assert items_of(latte, rows).view(3, 5).tolist() == generate_beams(latte, histories, 5)[0].tolist()


def test_further_processors_run_inside_the_catalog(latte):
    def only_even_latents(input_ids, scores):
        if input_ids.shape[1] == 1:
            scores = scores.index_fill(1, torch.tensor([latte.config.first_latent_token + 1]), -math.inf)
        return scores

    rows = latte.generate(
        histories_of(latte.config)[0], do_sample=True, num_return_sequences=40, logits_processor=[only_even_latents]
    )

    assert set((rows[:, 1] - latte.config.first_latent_token).tolist()) == {0, 2}
    assert bool((items_of(latte, rows) >= 0).all())


def test_more_sequences_than_paths_are_refused_and_as_many_are_all_of_them():
    model = make_model(tiny_config(num_items=4, num_latent_tokens=2))
    history = histories_of(model.config, (3,))

    items, scores = generate_beams(model, history, 8)

    assert sorted(items[0].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert bool(scores.isfinite().all())
    with pytest.raises(ValueError, match=r"only 8 different paths \(4 semantic IDs x 2 latents\)"):
        model.generate(history[0], num_beams=9, num_return_sequences=9)


def test_sampling_follows_the_model_within_the_catalog():
    model = make_model(tiny_config(num_items=3, num_levels=1))
    history = histories_of(model.config, (3,))[0]
    probabilities = model.score_items(history)[0].softmax(0)

    torch.manual_seed(0)
    rows = model.generate(history, do_sample=True, num_return_sequences=4000)

    counts = items_of(model, rows).bincount(minlength=3)
    torch.testing.assert_close(counts / 4000, probabilities, rtol=0, atol=0.03)


def test_items_that_share_a_semantic_id_are_written_once():
    model = make_model(tiny_config(num_items=4, num_levels=1))
    model.set_catalog(torch.tensor([[3], [0], [3], [4]]))
    history = histories_of(model.config, (3,))[0]

    rows = model.generate(history, num_beams=3, num_return_sequences=3)

    assert sorted(items_of(model, rows).tolist()) == [0, 1, 3]
    with pytest.raises(ValueError, match=r"only 3 different paths \(3 semantic IDs x 1 latents\)"):
        model.generate(history, num_beams=4, num_return_sequences=4)


def test_beam_sampling_that_runs_out_of_probability_is_an_error():
    model = make_model(tiny_config())
    input_ids, attention_mask = histories_of(model.config)

    with pytest.raises(ValueError, match="sampled beams are no items"):
        model.generate(
            input_ids,
            attention_mask=attention_mask,
            do_sample=True,
            num_beams=10,
            num_return_sequences=10,
            temperature=0.001,
        )
