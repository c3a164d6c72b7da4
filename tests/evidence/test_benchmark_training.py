"""The training benchmark at tiny sizes: that its baseline is the same model, and what it writes."""

import json

import pytest
import torch

from hf_genrec.modeling.configuration_rpg import RPGConfig
from hf_genrec.modeling.modeling_rpg import RPGForItemGeneration


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("benchmark_training")


def test_the_plain_model_has_the_loss_of_ours(script):
    config = RPGConfig(num_items=11, num_levels=3, codebook_size=5, d_model=12, d_ff=20, num_heads=3)
    model = RPGForItemGeneration(config).eval()
    model.set_catalog(torch.randint(5, (11, 3)))
    torch.nn.init.normal_(model.heads.weight)
    plain = script.PlainRPG(model).eval()
    names = plain.encoder.load_state_dict(model.encoder.state_dict(), strict=False)
    first = config.first_item_token
    history = torch.tensor([[first, first + 4, first + 9, first], [first + 3, first + 7, 0, 0]])
    labels = torch.tensor([[first + 4, -100, first, first + 2], [first + 7, first + 1, -100, -100]])

    loss = plain(history, (history > 0).long(), labels).loss

    assert not names.unexpected_keys
    torch.testing.assert_close(loss, model(history, (history > 0).long(), labels).loss)


def test_medians_are_compared_with_the_baseline_in_float32_and_in_the_same_precision(script):
    speeds = {"plain fp32": [40.0, 50.0, 90.0], "plain bf16": [100.0], "ours fp32": [75.0], "ours bf16": [600.0]}

    report = script.summary(speeds, "plain", 300)

    assert report["targets_per_second"] == {
        "plain fp32": 50.0, "plain bf16": 100.0, "ours fp32": 75.0, "ours bf16": 600.0
    }  # fmt: skip
    assert report["seconds_per_epoch"] == {"plain fp32": 6.0, "plain bf16": 3.0, "ours fp32": 4.0, "ours bf16": 0.5}
    assert report["ratio_to_stock_fp32"]["ours bf16"] == 12.0
    assert report["ratio_to_stock_same_precision"]["ours bf16"] == 6.0


def test_the_report_knows_the_epoch_and_each_model_has_its_batch_size(script, make_prepared, tmp_path, monkeypatch):
    prepared = make_prepared({f"u{number}": ["a", "b", "c", "d", "e"][number % 2 :] for number in range(4)})
    sizes = []

    def make(prepared, size, precision, latents):
        sizes.append((precision, size))
        return lambda: size

    monkeypatch.setattr(script.PreparedDataset, "load", lambda folder: prepared)
    monkeypatch.setattr(script, "keep_freed_memory", bool)  # it would change the process of all tests
    monkeypatch.setattr(script, "has_bfloat16", lambda: True)
    monkeypatch.setitem(script.MODELS, "parallel", ("plain", {"plain": make}, 1536))

    script.main(["folder", "--models", "parallel", "--output", str(tmp_path / "speed.json"), "--turns", "1"])

    report = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    assert sizes == [("fp32", 1536), ("bf16", 1536)]
    assert report["settings"]["batch_size"] == 1536
    assert report["targets_per_epoch"] == 6  # of the first three or two items of a user, all but the first


def test_profile_tells_the_share_of_each_operation(script):
    weight = torch.randn(300, 300)

    def step():
        return len(weight.mm(weight).mm(weight)[:9].exp())

    shares = script.profile_of(step)

    assert next(iter(shares)) == "aten::mm"
    assert 0.5 < shares["aten::mm"] < 1
    assert sum(shares.values()) <= 1.001
