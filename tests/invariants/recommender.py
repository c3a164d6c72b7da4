"""
What must hold for a recommender of every architecture. A test class inherits `RecommenderInvariants` and names the
architectures of `saved_folders.py` that it means.
"""

import pytest

from hf_genrec import Recommender
from saved_folders import ARCHITECTURES, ITEM_IDS, make_folder


HISTORIES = [["i3", "i8", "i1"], [], ["i12"], ["i5"] * 40]


class RecommenderInvariants:
    """Tests of one loaded recommender with 29 items."""

    ARCHITECTURES = ARCHITECTURES

    def pytest_generate_tests(self, metafunc):
        if "architecture" in metafunc.fixturenames:
            metafunc.parametrize("architecture", self.ARCHITECTURES, scope="class")

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls, architecture, tmp_path_factory):
        folder = make_folder(tmp_path_factory.mktemp("runs") / architecture, architecture)
        return Recommender.from_pretrained(folder, device="cpu")

    def test_one_history_answers_the_flat_lists_of_its_batch(self, recommender):
        batch = recommender.recommend(HISTORIES, top_k=4)

        for user, history in enumerate(HISTORIES):
            if history:  # an empty list is a batch of no users
                one = recommender.recommend(history, top_k=4)
                assert one.item_ids == batch.item_ids[user]
                assert list(one.scores) == pytest.approx(batch.scores[user], abs=1e-4)

    def test_lists_are_full_distinct_ranked_and_without_items_of_the_history(self, recommender):
        found = recommender.recommend(HISTORIES, top_k=7)

        for history, items, scores in zip(HISTORIES, found.item_ids, found.scores, strict=True):
            assert len(set(items)) == 7
            assert set(items).isdisjoint(history)
            assert scores == sorted(scores, reverse=True)

    def test_size_of_the_batches_changes_nothing(self, recommender):
        whole = recommender.recommend(HISTORIES, top_k=4)

        pieces = Recommender(recommender.model, recommender.items, batch_size=1).recommend(HISTORIES, top_k=4)

        assert pieces.item_ids == whole.item_ids

    def test_rules_hold_and_unknown_ids_are_ignored_and_counted(self, recommender, caplog):
        with caplog.at_level("WARNING"):
            found = recommender.recommend(
                ["i3", "gone"], top_k=29, exclude_items=["i4", "gone too"], allow_items=["i4", "i5", "i6", "i3"]
            )

        assert sorted(found.item_ids) == ["i5", "i6"]
        assert found.num_unknown == 1
        assert "1 ids in `exclude_items` are not in the catalog and are ignored: 'gone too'" in caplog.text

    def test_more_items_than_there_are_give_the_whole_catalog(self, recommender):
        found = recommender.recommend(["i3"], top_k=1000, exclude_seen=False)

        assert sorted(found.item_ids) == sorted(ITEM_IDS)

    def test_options_saved_beside_the_weights_are_read_and_overridden(self, recommender, tmp_path):
        recommender.save_pretrained(tmp_path)
        config = recommender.model.recommend_config.updated(top_k=3)
        config.save(tmp_path, known=recommender.model.recommend_options)

        loaded = Recommender.from_pretrained(tmp_path, device="cpu")

        assert len(loaded.recommend(["i3"]).item_ids) == 3
        assert len(loaded.recommend(["i3"], top_k=5).item_ids) == 5
        assert loaded.search_options == {"top_k": 3}

    def test_options_that_do_not_exist_are_refused_with_the_nearest_name(self, recommender):
        with pytest.raises(TypeError, match="There is no option `num_beam`: .* Did you mean `num_beams`?"):
            recommender.recommend(["i3"], num_beam=3)
        with pytest.raises(TypeError, match="The option `table_dtype` was removed"):
            recommender.recommend(["i3"], table_dtype="int8")
