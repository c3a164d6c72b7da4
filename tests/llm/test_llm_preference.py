"""The objectives of the small models on a language model: the same trainer, its adapter, and a run folder."""

import pytest
import torch

from hf_genrec import Recommender, prepare
from hf_genrec.training.initial import start_from
from hf_genrec.training.preference import PreferenceTrainingArguments, make_preference_trainer
from hf_genrec.training.runs import train_run
from tests.tiny_llms import ITEM_IDS, save_llm_run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Items in the order of the saved models."""
    folder = tmp_path_factory.mktemp("circle")
    lines = [f"u{user}\t{' '.join(ITEM_IDS[(user + step) % 29] for step in range(6))}\n" for user in range(29)]
    (folder / "log.tsv").write_text("".join(lines), encoding="utf-8")
    items = [{"item_id": item, "title": f"T{number}"} for number, item in enumerate(ITEM_IDS)]
    return prepare(folder / "data", sequences=folder / "log.tsv", items=items)


@pytest.mark.parametrize(("objective", "adapter"), [("grpo", True), ("sdpo", False)])
def test_language_model_is_trained_on_its_own_lists_and_served(objective, adapter, data, tmp_path):
    folder, _ = save_llm_run(tmp_path, adapter=adapter)
    args = PreferenceTrainingArguments(
        output_dir=str(tmp_path / "tuned" / "checkpoints"), objective=objective, rewards="diversity=1", max_steps=2,
        per_device_train_batch_size=7, num_generations=4, learning_rate=1e-2, logging_steps=1,
        eval_steps=1, save_steps=1, eval_num_beams=10, num_eval_users=9, report_to="none",
        disable_tqdm=True, precision="fp32",
    )  # fmt: skip
    starting = start_from(data, folder)
    before = {name: value.clone() for name, value in starting.model.llm.state_dict().items()}

    record = train_run(data, starting, tmp_path / "tuned", args, make=make_preference_trainer)

    assert [line["kl"] for line in record["log_history"] if "kl" in line][0] == pytest.approx(0.0, abs=1e-5)
    changed = {name for name, value in starting.model.llm.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not adapter or all(".default" in name for name in changed)
    served = Recommender.from_pretrained(tmp_path / "tuned", device="cpu").recommend([["i3", "i4"]], top_k=5)
    tuned = Recommender(starting.model, data.items).recommend([["i3", "i4"]], top_k=5)
    assert served.item_ids == tuned.item_ids
