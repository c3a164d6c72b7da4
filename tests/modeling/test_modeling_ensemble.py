"""EnsembleForItemGeneration: what is added up, and the folder; what all models share is in `ModelInvariants`."""

import pytest
import torch
from transformers import AutoModel

from hf_genrec import (
    BERT4RecConfig,
    BERT4RecForItemGeneration,
    GRU4RecConfig,
    GRU4RecForItemGeneration,
    HSTUConfig,
    HSTUForItemGeneration,
    RPGConfig,
    RPGForItemGeneration,
    VQRecConfig,
    VQRecForItemGeneration,
)
from hf_genrec.modeling.configuration_ensemble import EnsembleConfig
from hf_genrec.modeling.modeling_ensemble import EnsembleForItemGeneration
from invariants.model import (
    NUM_ITEMS,
    ModelInvariants,
    RecommendInvariants,
    histories_of,
    make_item_to_item,
    make_model,
    make_sasrec,
    tiny_config,
)


def make_latte(**changes):
    return make_model(tiny_config(num_latent_tokens=2, **changes))


def make_rpg():
    config = RPGConfig(num_items=NUM_ITEMS, num_levels=4, codebook_size=5, d_model=16, num_layers=1, num_heads=2)
    return make_model(config, model_class=RPGForItemGeneration)


def make_ensemble(members=None, **settings):
    members = members or [make_item_to_item(), make_sasrec(), make_latte()]
    return EnsembleForItemGeneration.of(members, **settings)


ENSEMBLES = {
    "standardised": {"weights": [0.5, 1.0, 0.25]},
    "reciprocal-rank": {"combination": "reciprocal_rank", "weights": [1.0, 0.5, 0.8]},
}


class Sums:
    MODEL_CLASS = EnsembleForItemGeneration

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, config):
        return make_ensemble(combination=config.combination, weights=config.weights)


class TestEnsemble(Sums, ModelInvariants):
    CONFIGS = {"standardised": make_ensemble(**ENSEMBLES["standardised"]).config}
    # nothing is trained, and codes are the members' own
    test_catalog_travels_as_int16_and_is_fingerprinted = None
    test_loss_comes_first_and_sets_aside_no_scores_of_a_whole_catalog = None
    test_labels_that_are_no_item_are_refused = None
    test_labels_of_another_shape_and_missing_inputs_are_refused = None
    test_labels_on_left_padded_rows_mean_the_same = None
    test_autocast_to_bfloat16_trains_near_the_float32_loss = None
    test_every_parameter_moves_in_training = None
    test_loss_of_all_targets_falls_when_trained = None


class TestOtherSums(Sums, RecommendInvariants):
    CONFIGS = {"reciprocal-rank": make_ensemble(**ENSEMBLES["reciprocal-rank"]).config}


def test_ranking_is_that_of_the_weighted_sum_over_the_whole_catalog():
    members, weights = [make_item_to_item(), make_sasrec(), make_rpg(), make_latte()], [0.5, 1.0, 0.7, 0.25]
    model = make_ensemble(members, weights=weights, num_candidates=NUM_ITEMS)
    input_ids, mask = histories_of(model.config)
    expected = torch.zeros(3, NUM_ITEMS)
    for weight, member in zip(weights, members, strict=True):
        tokens = torch.where(mask == 1, input_ids - model.config.first_item_token + member.config.first_item_token, 0)
        scores = member.score_items(tokens, mask)
        if "beam" in member.decodings:
            scale = torch.cat([scores, scores.amin(1, keepdim=True) - 0.7], dim=1).std(1, keepdim=True)
        else:
            scale = scores.std(1, keepdim=True)
        expected += weight * scores / scale

    output = model.recommend(input_ids, mask, top_k=NUM_ITEMS)

    order = expected.argsort(dim=1, descending=True)
    assert (output.item_tokens - model.config.first_item_token).tolist() == order.tolist()
    torch.testing.assert_close(output.scores, expected.log_softmax(1).gather(1, order), rtol=1e-4, atol=1e-4)


def test_users_whose_whole_history_is_left_out_have_weights_of_their_own():
    members = [make_item_to_item(), make_sasrec()]
    model = make_ensemble(members, weights=[1.0, 0.0], weights_with_seen=[0.0, 1.0])
    ids, mask = histories_of(model.config)
    left_out = torch.where(mask == 1, ids, 0)
    left_out[1, mask[1].nonzero()[0, 0]] = 0  # of the second user one item may stand

    def lists(rule=None, **settings):
        found = make_ensemble(members, **settings) if settings else model
        return found.recommend(ids, mask, top_k=3, exclude_items=rule).item_tokens.tolist()

    mixed, alone = lists(left_out), lists(left_out, weights=[1.0, 0.0])
    assert mixed == [alone[0], lists(left_out, weights=[0.0, 1.0])[1], alone[2]]
    assert lists() == lists(weights=[0.0, 1.0]) != lists(weights=[1.0, 0.0])
    expected = make_ensemble(members, weights=[0.0, 1.0]).score_items(ids, mask)
    assert torch.equal(model.score_items(ids, mask), expected)


def test_items_that_beams_have_not_listed_lie_under_the_last_one():
    latte = make_latte()
    model = make_ensemble([latte], num_candidates=4, combination="log_probability", listing_floor=2.0)
    input_ids, mask = histories_of(latte.config, (3,))
    listed = latte.recommend(input_ids, mask, top_k=4, num_beams=4)

    (scores,) = model.member_scores(*histories_of(model.config, (3,)))

    items = listed.item_tokens[0] - latte.config.first_item_token
    torch.testing.assert_close(scores[0, items], listed.scores[0])
    others = torch.ones(NUM_ITEMS, dtype=torch.bool).index_fill(0, items, False)
    torch.testing.assert_close(scores[0, others], (listed.scores[0, -1] - 2).expand(NUM_ITEMS - 4))


def test_reciprocal_ranks_are_those_of_the_first_candidates():
    member = make_item_to_item()
    model = make_ensemble([member], combination="reciprocal_rank", num_candidates=3)
    input_ids, _ = histories_of(model.config, (4,))

    (scores,) = model.member_scores(input_ids)

    first = (member.recommend(input_ids, top_k=3).item_tokens[0] - 4).tolist()
    expected = torch.zeros(NUM_ITEMS)
    expected[first] = torch.tensor([1 / 60, 1 / 61, 1 / 62])
    torch.testing.assert_close(scores[0], expected)


def test_dense_head_of_a_member_is_a_score_of_its_own():
    latte = make_latte(dense_head=True, history_attention="causal", history_unit="item")
    model = make_ensemble([latte], weights=[0.0, 1.0])

    tokens = model.recommend(*histories_of(model.config), top_k=5).item_tokens - model.config.first_item_token

    dense = latte.recommend(*histories_of(latte.config), top_k=5, decoding="dense").item_tokens
    assert model.config.scores == ["Latte", "Latte, dense head"]
    assert tokens.tolist() == (dense - latte.config.first_item_token).tolist()


def test_items_are_as_alike_as_the_members_find_them_on_average():
    members = [make_item_to_item(), make_sasrec(), make_latte()]
    unit = torch.nn.functional.normalize
    parts = [members[0].item_embeddings(), members[1].item_embeddings(), members[2].code_vectors()]

    vectors = make_ensemble(members, weights=[1.0, 1.0, 1.0]).item_embeddings()

    expected = sum(unit(part, dim=1) @ unit(part, dim=1).t() for part in parts)
    assert torch.allclose(vectors @ vectors.t(), expected, atol=1e-5)


def test_two_heads_of_a_member_read_a_history_once(monkeypatch):
    latte = make_latte(dense_head=True, history_attention="causal", history_unit="item")
    ensemble, read = make_ensemble([latte], weights=[0.5, 0.5]), []
    latte = ensemble.members[0]
    encode = latte.encode_history
    monkeypatch.setattr(latte, "encode_history", lambda *inputs: read.append(inputs) or encode(*inputs))

    ensemble.recommend(*histories_of(ensemble.config), top_k=3)
    assert len(read) == 1
    ensemble.recommend(*histories_of(ensemble.config, seed=1), top_k=3)
    assert len(read) == 2
    latte.dense_scores(*read[1])  # nothing is remembered behind a request
    assert len(read) == 3


def test_one_folder_holds_all_members_bit_for_bit(tmp_path):
    model = make_ensemble([make_latte(), make_rpg(), make_item_to_item()])
    model.save_pretrained(tmp_path)

    loaded = AutoModel.from_pretrained(tmp_path)

    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    state = loaded.state_dict()
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert loaded.members[0].config.to_diff_dict() == model.members[0].config.to_diff_dict()


def test_damaged_ids_of_a_member_are_refused(tmp_path):
    model = make_ensemble([make_latte(), make_item_to_item()])
    model.members[0].item_codes[0] = model.members[0].item_codes[1]
    model.save_pretrained(tmp_path)

    with pytest.raises(ValueError, match="The semantic-ID table `item_codes`"):
        AutoModel.from_pretrained(tmp_path)


def test_every_kind_of_model_that_scores_all_items_can_be_a_member(tmp_path):
    shape = {"num_items": NUM_ITEMS, "d_model": 16, "num_layers": 1}
    members = [
        make_model(HSTUConfig(**shape), model_class=HSTUForItemGeneration),
        make_model(VQRecConfig(**shape, num_levels=3, codebook_size=5), model_class=VQRecForItemGeneration),
        make_model(GRU4RecConfig(**shape), model_class=GRU4RecForItemGeneration),
        make_model(BERT4RecConfig(**shape), model_class=BERT4RecForItemGeneration),
    ]
    make_ensemble(members, combination="log_probability").save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path)

    found = list(model.member_scores(*histories_of(model.config)))

    assert model.config.scores == ["HSTU", "VQ-Rec", "GRU4Rec", "BERT4Rec"]
    for scores, member in zip(found, members, strict=True):
        torch.testing.assert_close(scores, member.score_items(*histories_of(member.config)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"combination": "vote"}, "`combination` must be one of 'standardised', 'log_probability'"),
        ({"num_candidates": 0}, "`num_candidates` must be at least 1, got 0"),
        ({"listing_floor": -1.0}, "`listing_floor` must be at least 0"),
        ({"weights": [1.0]}, "`weights` must be 2 numbers of at least 0, one for each of SASRec, Sequential ridge"),
        (
            {"weights_with_seen": [1.0, -1.0]},
            "`weights_with_seen` must be 2 numbers of at least 0, .*, got .1.0, -1.0",
        ),
        ({"num_items": 7}, "`members` must have the 7 items of the ensemble, a sasrec has 12"),
        ({"members": [{"model_type": "bert"}]}, "`members` must be configs of latte, .* got 'bert'"),
    ],
)
def test_config_refuses_what_it_cannot_be(changes, message):
    members = [{"model_type": "sasrec", "num_items": 12}, {"model_type": "item_to_item", "num_items": 12}]

    with pytest.raises(ValueError, match=message):
        EnsembleConfig(**({"num_items": 12, "members": members} | changes))


def test_ensemble_without_members_is_refused():
    with pytest.raises(ValueError, match="`members` is empty"):
        EnsembleForItemGeneration(EnsembleConfig(num_items=12))
