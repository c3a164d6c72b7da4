"""What holds for a recommender of every architecture."""

from invariants.recommender import RecommenderInvariants


class TestRecommenders(RecommenderInvariants):
    pass
