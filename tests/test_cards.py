"""What a model card says about an evaluation."""

from hf_genrec import LatteConfig
from hf_genrec.cards import model_card


def make_record(*, ks, confidence=0.95):
    values = {f"{name}@{k}": k / 100 for name in ("recall", "ndcg") for k in ks}
    values |= {"invalid_rate": 0.0, "intervals": {name: [0.0, 0.5] for name in values}}
    return {
        "protocol": "toy",
        "split": "test",
        "num_users": 1234,
        "num_items": 12,
        "confidence": confidence,
        "model": values,
        "baselines": {},
    }


def test_card_names_the_confidence_of_the_record():
    config = LatteConfig(num_items=12)

    assert "in brackets 95 % bootstrap intervals" in model_card(config, make_record(ks=(1, 10)))
    assert "in brackets 90 % bootstrap intervals" in model_card(config, make_record(ks=(1, 10), confidence=0.9))


def test_card_shows_the_cut_offs_of_the_record():
    config = LatteConfig(num_items=12)

    assert "| system | recall@10 | ndcg@10 | invalid_rate |" in model_card(config, make_record(ks=(1, 5, 10, 20)))
    assert "| system | recall@5 | ndcg@5 | invalid_rate |" in model_card(config, make_record(ks=(1, 5)))
