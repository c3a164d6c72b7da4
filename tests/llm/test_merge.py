import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from hf_genrec import Recommender
from hf_genrec.cli.main import app
from hf_genrec.llm.merge import merge_adapter
from tiny_llms import save_llm_run


PROGRAM = """
import sys
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, prompt, target = sys.argv[1:]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
inputs = tokenizer(prompt, return_tensors="pt")
save_file({"ids": inputs.input_ids, "logits": model(**inputs).logits.detach()}, target)
assert "hf_genrec" not in sys.modules
"""


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def saved(request, tmp_path_factory):
    folder, model = save_llm_run(tmp_path_factory.mktemp("merge"), request.param, adapter=True)
    return folder, model, merge_adapter(folder, folder.parent / "merged")


def test_merged_folder_is_answered_by_plain_transformers_without_the_package(saved, stranger, tmp_path):
    _, model, merged = saved
    prompt = "a user has taken: <|sid_begin|><s_a_3><s_b_0><s_c_1><|sid_end|> next: <|sid_begin|>"

    process = stranger.run(PROGRAM, merged, prompt, tmp_path / "found.safetensors")

    assert process.returncode == 0, process.stderr
    found = load_file(tmp_path / "found.safetensors")
    assert found["ids"].tolist() == [model.tokenizer(prompt).input_ids]
    torch.testing.assert_close(found["logits"], model.llm(found["ids"]).logits.detach(), rtol=1e-4, atol=1e-4)


def test_merged_recommender_recommends_the_same(saved):
    folder, _, merged = saved
    histories = [["i3", "i8"], [], ["i12"]]

    found = Recommender.from_pretrained(merged, device="cpu").recommend(histories, top_k=7)

    expected = Recommender.from_pretrained(folder, device="cpu").recommend(histories, top_k=7)
    assert found.item_ids == expected.item_ids
    assert not (merged / "adapter_config.json").exists()
    assert type(AutoModelForCausalLM.from_pretrained(merged).get_output_embeddings()) is torch.nn.Linear


def test_command_merges_and_refuses_what_has_no_adapter(saved, tmp_path):
    folder, _, merged = saved

    done = CliRunner().invoke(app, ["merge", str(folder), "--output", str(tmp_path / "one"), "--json"])
    refused = CliRunner().invoke(app, ["merge", str(merged), "--output", str(tmp_path / "two")])

    assert json.loads(done.stdout) == {"output": str(tmp_path / "one")}
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()
    assert refused.exit_code == 2
    assert "holds no adapter (CausalLMForItemGeneration)" in refused.stderr
