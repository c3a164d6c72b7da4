"""Language models in two processes against one."""

import numpy as np
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from torch.distributed.fsdp import FSDPModule

from hf_genrec import Recommender
from hf_genrec.llm.runs import train_llm
from hf_genrec.llm.sft import SftSettings, SftTrainer
from hf_genrec.training.arguments import training_arguments
from processes import in_processes, shard_on_a_cpu


pytestmark = pytest.mark.slow

QUIET = {
    "precision": "fp32", "disable_tqdm": True, "report_to": "none", "logging_steps": 1, "eval_strategy": "steps",
    "save_strategy": "steps", "eval_steps": 6, "save_steps": 6, "max_steps": 6, "learning_rate": 1e-2,
}  # fmt: skip


def trained(world, output, lora, batch_size, resume=False, **changes):
    """Loss, gradient norm and metrics by step."""
    data, folder = world
    args = training_arguments(output, settings=QUIET | changes | {"per_device_train_batch_size": batch_size})
    settings = SftSettings(lora=lora, first_stage=0.34, rows_learning_rate=0.05)
    record = train_llm(data, folder / "ids", output, args, backbone=folder / "llama", settings=settings, resume=resume)
    kept = ("loss", "grad_norm", "eval_loss", "eval_ndcg@10")
    return [{name: line[name] for name in kept if name in line} for line in record["log_history"]]


def scores(world, run):
    return Recommender.from_pretrained(run, device="cpu").score_items([[thing] for thing in world[0].item_ids])


@pytest.mark.parametrize("lora", [0, 2])
def test_two_processes_train_a_language_model_like_one_with_twice_the_answers(lora, world, tmp_path):
    alone = trained(world, tmp_path / "one", lora, 24)

    two = in_processes(trained, world, tmp_path / "two", lora, 12)

    for logs in two:
        for mine, theirs in zip(alone, logs, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4, rel=1e-3)
    np.testing.assert_allclose(scores(world, tmp_path / "two"), scores(world, tmp_path / "one"), atol=1e-3)


@pytest.mark.parametrize("lora", [0, 2])
def test_a_network_sharded_by_fsdp_is_trained_validated_and_saved_as_a_whole_one(lora, world, tmp_path):
    alone = trained(world, tmp_path / "one", lora, 24)

    def sharded():
        shard_on_a_cpu()
        seen, train = [], SftTrainer.train

        def watched(self, *args, **kwargs):
            output = train(self, *args, **kwargs)
            seen.append([type(module).__name__ for module in self.model.modules() if isinstance(module, FSDPModule)])
            return output

        SftTrainer.train = watched
        return trained(world, tmp_path / "two", lora, 12), seen

    for logs, seen in in_processes(sharded):
        assert seen == [["FSDPAnswerLoss", *["FSDPLlamaDecoderLayer"] * 3]]
        for mine, theirs in zip(alone, logs, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4, rel=1e-3)
    np.testing.assert_allclose(scores(world, tmp_path / "two"), scores(world, tmp_path / "one"), atol=1e-3)


@pytest.mark.parametrize("lora", [0, 2])
def test_a_sharded_training_that_was_interrupted_ends_as_one_that_was_not(lora, world, tmp_path):
    changes = {"eval_steps": 2, "save_steps": 2, "save_total_limit": 4, "load_best_model_at_end": False}

    def sharded():
        shard_on_a_cpu()
        whole = trained(world, tmp_path / "whole", lora, 12, **changes)
        checkpoint = tmp_path / "whole" / "checkpoints" / "checkpoint-4"
        return whole, trained(world, tmp_path / "again", lora, 12, resume=str(checkpoint), **changes)

    for whole, again in in_processes(sharded):
        assert len(whole) == len(again) > 6
        for mine, theirs in zip(whole, again, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5, rel=1e-4)
    np.testing.assert_allclose(scores(world, tmp_path / "again"), scores(world, tmp_path / "whole"), atol=1e-4)


@pytest.mark.parametrize(("name", "kind"), [("fsdp", "FSDP"), ("deepspeed_zero2", "DEEPSPEED")])
def test_accelerate_reads_the_example(name, kind, repository):
    config = load_config_from_file(str(repository / "scripts" / "accelerate" / f"{name}.yaml"))

    assert config.distributed_type == kind
    assert (config.fsdp_config.get("fsdp_version"), config.deepspeed_config.get("zero_stage")) == (
        (2, None) if kind == "FSDP" else (None, 2)
    )
