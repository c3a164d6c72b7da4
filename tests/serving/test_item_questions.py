"""Vectors, similar items and reasons: what a recommender says beside its lists."""

import numpy as np
import pytest

from live_shops import rebuilt, shop_of


KINDS = ["latte", "two heads", "rpg", "acerec", "vqrec", "sasrec"]


@pytest.fixture(params=KINDS)
def shop(request):
    return shop_of(request.param)


def test_similar_items_are_the_nearest_of_those_that_may_be_recommended(shop):
    shop.catalog.remove(["i4"])
    vectors = shop.item_vectors()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = [f"i{row}" for row in np.argsort(-(unit @ unit[2]), kind="stable") if row not in (2, 4)]

    found = shop.similar_items("i2", 30)

    assert [item_id for item_id, _ in found] == expected
    assert found[:3] == shop.similar_items("i2", 3)
    with pytest.raises(KeyError, match="'gone'"):
        shop.similar_items("gone")


@pytest.mark.parametrize("kind", ["sasrec", "vqrec"])
def test_vectors_of_users_do_not_depend_on_the_batch_and_give_the_scores_where_items_have_vectors(kind):
    shop, histories = shop_of(kind), [["i1", "i2"], [], ["i3"] * 40]

    users = shop.encode_users(histories)
    shop.batch_size = 1

    np.testing.assert_allclose(shop.encode_users(histories), users, atol=1e-5)
    logits = users @ shop.item_vectors().T
    scores = shop.score_items(histories)
    np.testing.assert_allclose(logits - logits[:, :1], scores - scores[:, :1], atol=1e-4)


def test_every_model_with_a_network_has_a_vector_of_each_user(shop):
    users = shop.encode_users([["i1"], [], ["i5", "i6"]])

    assert users.shape == (3, shop.model.config.d_model)
    assert np.isfinite(users).all()


def test_reasons_are_what_a_score_loses_without_an_item_of_the_history(shop):
    history = ["i1", "i5", "gone", "i7"]
    shop.config = shop.config.updated(dense_weight=0.0) if shop.config.dense_weight else shop.config
    score = shop.score_items([history])[0, 3]

    found = shop.explain(history, "i3")

    assert {reason.item_id for reason in found} == {"i1", "i5", "i7"}
    assert [reason.effect for reason in found] == sorted((reason.effect for reason in found), reverse=True)
    for reason in found:
        left = [item_id for item_id in history if item_id != reason.item_id]
        assert reason.effect == pytest.approx(score - shop.score_items([left])[0, 3], abs=1e-4)
        assert -1.001 <= reason.similarity <= 1.001
    if shop.model.config.has_codes:
        codes = shop.model.item_codes.tolist()
        shared = {reason.item_id: list(reason.shared_codes) for reason in found}
        assert all(codes[int(name[1:])][: len(part)] == codes[3][: len(part)] for name, part in shared.items())


def test_a_removed_item_is_compared_and_never_explained_as_a_recommendation():
    shop = shop_of("rpg")
    shop.catalog.remove(["i3"])

    assert shop.similar_items("i3", 2) == shop.similar_items("i3", 20)[:2]
    assert shop.explain(["i3"], "i5")[0].item_id == "i3"
    with pytest.raises(KeyError, match="may be recommended"):
        shop.explain(["i1"], "i3")


def test_a_long_call_shows_a_bar_where_it_is_asked_for(capfd, monkeypatch):
    monkeypatch.setattr("hf_genrec.serving.recommender.PROGRESS_DELAY", 0)
    shop = shop_of("sasrec")

    lists = shop.recommend([["i1"]] * 200, show_progress=True)
    shown = capfd.readouterr().err
    assert rebuilt(shop).recommend([["i1"]] * 200).item_ids == lists.item_ids

    assert "Recommending" in shown
    assert capfd.readouterr().err == ""
