"""The last step of a search of which only the best leaves are read: the same lists from fewer computed beams."""

import pytest
import torch

from hf_genrec.modeling.genrec_beams import beam_search, num_distinct_items
from invariants.model import NUM_ITEMS, histories_of, make_decoder, make_model, tiny_config


MAKERS = {"encoder-decoder": lambda **changes: make_model(tiny_config(**changes)), "decoder-only": make_decoder}


@pytest.fixture(params=[(name, norm) for name in MAKERS for norm in ("vocabulary", "catalog")], ids="-".join)
def model(request):
    name, normalization = request.param
    model = MAKERS[name](normalization=normalization)
    model.get_input_embeddings().weight.data.mul_(4)  # far from uniform, as a trained model is
    return model


def both(model, num_beams, num_wanted, monkeypatch, **options):
    """Beams of a whole search and of one for a short list, and how many beams each computed at its last step."""
    widths, plain, found = [], model.decode_states, []

    def watched(tokens, history, cache):
        widths.append(tokens.shape[1])
        return plain(tokens, history, cache)

    monkeypatch.setattr(model, "decode_states", watched)
    with torch.no_grad():
        history = model.encode_history(*histories_of(model.config))
        for wanted in (None, num_wanted):
            widths.clear()
            beams = beam_search(model, history, num_beams=num_beams, num_wanted=wanted, **options)
            found.append((beams, sum(widths[model.config.num_levels - 1 :])))
    return found


def assert_same_list(whole, short, num_wanted):
    assert short.leaves[:, :num_wanted].tolist() == whole.leaves[:, :num_wanted].tolist()
    torch.testing.assert_close(short.scores[:, :num_wanted], whole.scores[:, :num_wanted])


def test_short_list_of_a_wide_search_is_the_same_from_fewer_beams(model, monkeypatch):
    (whole, num_all), (short, num_computed) = both(model, 31, 2, monkeypatch)

    assert_same_list(whole, short, 2)
    assert num_computed < num_all
    assert short.num_alive.tolist() == num_distinct_items(model.catalog, whole).tolist()


def test_list_as_long_as_the_search_is_the_same(model, monkeypatch):
    (whole, _), (short, _) = both(model, 13, 13, monkeypatch)

    assert_same_list(whole, short, 13)


def test_short_list_under_a_rule_is_the_same(model, monkeypatch):
    allowed = torch.zeros(3, NUM_ITEMS, dtype=torch.bool)
    allowed[0, ::3] = allowed[1, 1::2] = allowed[2, 4] = True  # the last list has one item, whatever is asked for

    (whole, _), (short, _) = both(model, 19, 3, monkeypatch, allowed_items=allowed)

    assert_same_list(whole, short, 3)
    assert short.num_alive.tolist() == num_distinct_items(model.catalog, whole).tolist()


def test_only_children_are_as_good_as_their_beams_and_not_computed(monkeypatch):
    model = MAKERS["encoder-decoder"](num_items=5, normalization="catalog")
    model.set_catalog(torch.tensor([[0, 0, 3], [1, 4, 0], [2, 2, 2], [3, 0, 1], [3, 1, 1]]))

    (whole, num_all), (short, num_computed) = both(model, 5, 4, monkeypatch)

    assert_same_list(whole, short, 4)
    assert (num_all, num_computed) == (5, 0)


def test_scores_that_are_no_numbers_are_not_taken_for_bad_ones():
    model = MAKERS["encoder-decoder"]()
    model.lm_head.weight.data.fill_(float("nan"))

    with pytest.raises(ValueError, match="no finite numbers"):
        model.recommend(*histories_of(model.config), top_k=2, num_beams=31)
