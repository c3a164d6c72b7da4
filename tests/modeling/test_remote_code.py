"""A saved folder is a complete model: it loads where `hf_genrec` cannot be imported, and recommends the same items."""

import json
import os
import subprocess
import sys

import pytest
import torch

from hf_genrec import LatteConfig, LatteForConditionalGeneration
from invariants.model import histories_of, make_model, tiny_config


# What the modeling file imports, itself included. A new sibling belongs here only if saving must copy it.
CODE_FILES = {
    "genrec_layers.py",
    "genrec_beams.py",
    "genrec_catalog.py",
    "genrec_folder.py",
    "configuration_genrec.py",
    "configuration_latte.py",
    "genrec_exact.py",
    "genrec_generate.py",
    "modeling_latte.py",
    "pipeline_genrec.py",
    "genrec_ranking.py",
    "genrec_recommend.py",
    "genrec_recommend_config.py",
    "genrec_rank_beams.py",
    "genrec_rerank.py",
    "genrec_selections.py",
}

PROGRAM = """
import json, sys, warnings

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hf_genrec", "modeling"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocker())
try:
    import hf_genrec
except ImportError:
    pass
else:
    raise SystemExit("hf_genrec could be imported")

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM

torch.set_num_threads(1)
folder, histories, second, third = sys.argv[1:]
histories = torch.tensor(json.loads(histories))
answers = {}
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
answers["config"] = [type(config).__name__, type(config).__module__.split(".")[0], config.first_item_token]
for auto_class in (AutoModel, AutoModelForSeq2SeqLM):
    model = auto_class.from_pretrained(folder, trust_remote_code=True)
    output = model.recommend(histories, top_k=7, num_beams=9)
    rows = model.generate(histories, num_beams=5, num_return_sequences=5)
    answers[auto_class.__name__] = [output.item_tokens.tolist(), output.scores.tolist(), rows.tolist()]

def answer_of(folder):
    output = AutoModel.from_pretrained(folder, trust_remote_code=True).recommend(histories, top_k=7, num_beams=9)
    return output.item_tokens.tolist()

AutoModel.from_pretrained(folder, trust_remote_code=True).save_pretrained(second)
answers["second"] = answer_of(second)
AutoModelForSeq2SeqLM.from_pretrained(second, trust_remote_code=True).save_pretrained(third)
answers["third"] = answer_of(third)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The folders, and what a process without the package and the process of the tests answer."""
    root = tmp_path_factory.mktemp("remote")
    model = make_model(tiny_config(num_latent_tokens=2, history_attention="causal"))
    histories = histories_of(model.config)[0]
    folders = [root / name for name in ("first", "second", "third")]
    model.save_pretrained(folders[0])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(root / "modules")

    process = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            PROGRAM,
            *map(str, folders[:1]),
            json.dumps(histories.tolist()),
            *map(str, folders[1:]),
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment,
        cwd=root,
        timeout=120,
        check=False,
    )

    assert process.returncode == 0, process.stderr
    return model, histories, folders, json.loads(process.stdout.splitlines()[-1])


def names_of(folder):
    return {path.name for path in folder.iterdir()}


def test_process_without_the_package_recommends_the_same_items(answers):
    model, histories, _, found = answers

    output = model.recommend(histories, top_k=7, num_beams=9)
    rows = model.generate(histories, num_beams=5, num_return_sequences=5)

    assert found["config"] == ["LatteConfig", "transformers_modules", model.config.first_item_token]
    for auto_class in ("AutoModel", "AutoModelForSeq2SeqLM"):
        tokens, scores, found_rows = found[auto_class]
        assert tokens == output.item_tokens.tolist()
        torch.testing.assert_close(torch.tensor(scores), output.scores, rtol=1e-5, atol=1e-5)
        assert found_rows == rows.tolist()


def test_saving_a_model_loaded_as_remote_code_keeps_code_and_entries(answers):
    model, histories, folders, found = answers
    tokens = model.recommend(histories, top_k=7, num_beams=9).item_tokens.tolist()

    assert found["second"] == found["third"] == tokens
    for folder in folders:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert {name: entry.split("--")[-1] for name, entry in config["auto_map"].items()} == {
            "AutoConfig": "configuration_latte.LatteConfig",
            "AutoModel": "modeling_latte.LatteForConditionalGeneration",
            "AutoModelForSeq2SeqLM": "modeling_latte.LatteForConditionalGeneration",
        }
        assert names_of(folder) == CODE_FILES | {
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "recommend_config.json",
        }


def test_copied_code_is_the_code_of_the_package(answers, repository):
    _, _, folders, _ = answers

    for folder in folders:
        for name in CODE_FILES:
            assert (folder / name).read_bytes() == (repository / "modeling" / name).read_bytes()


def test_config_alone_takes_its_code_along(tmp_path):
    tiny_config().save_pretrained(tmp_path)

    assert names_of(tmp_path) == {"config.json", "configuration_genrec.py", "configuration_latte.py"}


def test_package_saves_again_what_it_loaded(tmp_path):
    model = make_model(tiny_config())
    for step in range(3):
        model.save_pretrained(tmp_path / str(step))
        model = LatteForConditionalGeneration.from_pretrained(tmp_path / str(step))

    assert names_of(tmp_path / "2") == names_of(tmp_path / "0")
    assert (tmp_path / "2" / "config.json").read_bytes() == (tmp_path / "0" / "config.json").read_bytes()
    assert isinstance(LatteConfig.from_pretrained(tmp_path / "2"), LatteConfig)
