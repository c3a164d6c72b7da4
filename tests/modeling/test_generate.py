"""What `generate()` holds in memory per user and per beam."""

import pytest

from hf_genrec.modeling.genrec_generate import SharedHistoryCache
from invariants.model import histories_of, make_model, tiny_config


@pytest.mark.parametrize(
    "options", [{"num_beams": 7, "num_return_sequences": 7}, {"do_sample": True, "num_return_sequences": 7}]
)
@pytest.mark.parametrize("unit", ["code", "item"])
def test_beams_and_samples_of_a_user_share_one_row_of_history_keys(options, unit):
    model = make_model(tiny_config(history_attention="causal", history_unit=unit, num_latent_tokens=2))
    input_ids, mask = histories_of(model.config)

    output = model.generate(input_ids, attention_mask=mask, return_dict_in_generate=True, **options)

    cache = output.past_key_values
    assert isinstance(cache, SharedHistoryCache)
    num_positions = 1 + 5 * model.config.history_tokens_per_item
    for layer in range(model.config.num_decoder_layers):
        assert cache.cross_attention_cache.layers[layer].keys.shape == (3, 2, num_positions, 6)
        assert cache.self_attention_cache.layers[layer].keys.shape[0] == 3 * 7


def test_one_user_among_others_generates_what_the_user_generates_alone():
    model = make_model(tiny_config(num_latent_tokens=2))
    input_ids, mask = histories_of(model.config)
    together = model.generate(input_ids, attention_mask=mask, num_beams=4, num_return_sequences=4)

    for user, length in enumerate((5, 3, 1)):
        alone = model.generate(input_ids[user : user + 1, :length], num_beams=4, num_return_sequences=4)

        assert alone.tolist() == together[4 * user : 4 * (user + 1)].tolist()
