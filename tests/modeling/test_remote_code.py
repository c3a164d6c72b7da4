"""A saved folder is a complete model: it loads where `hf_genrec` cannot be imported, and recommends the same items."""

import json
from pathlib import Path

import pytest
import torch

from hf_genrec import (
    ACERecConfig,
    ACERecForItemGeneration,
    BERT4RecConfig,
    BERT4RecForItemGeneration,
    DecoderConfig,
    DecoderForItemGeneration,
    GRU4RecConfig,
    GRU4RecForItemGeneration,
    HSTUConfig,
    HSTUForItemGeneration,
    LatteConfig,
    LatteForConditionalGeneration,
    RPGConfig,
    RPGForItemGeneration,
    SASRecConfig,
    SASRecForItemGeneration,
    VQRecConfig,
    VQRecForItemGeneration,
)
from hf_genrec.hub.files import code_files
from hf_genrec.modeling.configuration_ensemble import EnsembleConfig
from hf_genrec.modeling.configuration_item_to_item import ItemToItemConfig
from hf_genrec.modeling.modeling_ensemble import EnsembleForItemGeneration
from hf_genrec.modeling.modeling_item_to_item import ItemToItemForItemGeneration
from hf_genrec.serving.item_graph import build_item_graph
from invariants.model import histories_of, make_model, tiny_config


# What each architecture uploads: its modeling file and all that this imports. A new file belongs here only if saving
# must copy it.
SHARED = {
    "configuration_genrec.py", "genrec_encoder.py", "genrec_folder.py", "genrec_gaps.py", "genrec_lists.py",
    "genrec_recommend.py", "genrec_recommend_config.py", "pipeline_genrec.py",
}  # fmt: skip
CODES = {"genrec_beams.py", "genrec_catalog.py", "genrec_dense.py", "genrec_kept.py"}
PARALLEL = {"genrec_item_graph.py", "genrec_rank_codes.py"} | CODES
UPLOADS = {
    "latte": SHARED | CODES | {"genrec_generate.py", "genrec_rank_beams.py", "genrec_t5_search.py"},
    "decoder": SHARED | CODES | {"genrec_generate.py", "genrec_prompt_attention.py", "genrec_rank_beams.py"},
    "rpg": SHARED | PARALLEL,
    "acerec": SHARED | PARALLEL | {"configuration_rpg.py", "modeling_rpg.py"},
    "sasrec": SHARED | {"genrec_item_rows.py"},
    "hstu": SHARED | {"genrec_item_rows.py"},
    "vqrec": SHARED | {"genrec_catalog.py", "genrec_item_rows.py", "genrec_kept.py"},
    "gru4rec": SHARED | {"genrec_item_rows.py"},
    "bert4rec": SHARED | {"genrec_item_rows.py"},
    "item_to_item": SHARED - {"genrec_encoder.py", "genrec_gaps.py"},
}
UPLOADS["ensemble"] = set.union(*UPLOADS.values()) | {  # of all members that there may be
    f"{kind}_{name}.py" for kind in ("configuration", "modeling") for name in UPLOADS
}
UPLOADS = {name: files | {f"configuration_{name}.py", f"modeling_{name}.py"} for name, files in UPLOADS.items()}
CODE_FILES = UPLOADS["latte"]

PROGRAM = """
import json, sys
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM

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
def answers(tmp_path_factory, stranger):
    """The folders, and what a process without the package and the process of the tests answer."""
    root = tmp_path_factory.mktemp("remote")
    model = make_model(tiny_config(num_latent_tokens=2, history_attention="causal"))
    histories = histories_of(model.config)[0]
    folders = [root / name for name in ("first", "second", "third")]
    model.save_pretrained(folders[0])
    process = stranger.run(PROGRAM, folders[0], json.dumps(histories.tolist()), *folders[1:])

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
            "manifest.json",
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


WIDTHS = {"num_items": 29, "d_model": 16, "d_ff": 24, "num_heads": 2}
SIZES = WIDTHS | {"num_levels": 6, "codebook_size": 5}
MODELS = {
    "decoder": (DecoderForItemGeneration, DecoderConfig(**SIZES, d_kv=4)),
    "rpg": (RPGForItemGeneration, RPGConfig(**SIZES)),
    "acerec": (ACERecForItemGeneration, ACERecConfig(**SIZES)),
    "sasrec": (SASRecForItemGeneration, SASRecConfig(**WIDTHS)),
    "hstu": (HSTUForItemGeneration, HSTUConfig(num_items=29, d_model=16, num_heads=2)),
    "vqrec": (VQRecForItemGeneration, VQRecConfig(**SIZES)),
    "gru4rec": (GRU4RecForItemGeneration, GRU4RecConfig(num_items=29, d_model=16)),
    "bert4rec": (BERT4RecForItemGeneration, BERT4RecConfig(**WIDTHS)),
    "item_to_item": (ItemToItemForItemGeneration, ItemToItemConfig(num_items=29, vector_dim=5)),
}
MEMBERS = [{"model_type": "sasrec", **WIDTHS}, {"model_type": "sasrec", **WIDTHS, "num_layers": 1}]
MODELS["ensemble"] = (EnsembleForItemGeneration, EnsembleConfig(num_items=29, members=MEMBERS))
QUESTIONS = """
import json, sys
import torch
from transformers import AutoModel

answers = {}
for name, (folder, histories, decodings) in json.loads(sys.argv[1]).items():
    model, histories = AutoModel.from_pretrained(folder, trust_remote_code=True), torch.tensor(histories)
    model.save_pretrained(folder + "-again")
    again = AutoModel.from_pretrained(folder + "-again", trust_remote_code=True)
    outputs = [model.recommend(histories, decoding=decoding) for decoding in decodings] + [again.recommend(histories)]
    answers[name] = [type(model).__module__.split(".")[0], outputs[0].scores.tolist()]
    answers[name].append([output.item_tokens.tolist() for output in outputs])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def models_that_score_all(tmp_path_factory, stranger):
    """Models, histories, and what one process without the package answers for all of them."""
    root, questions, models = tmp_path_factory.mktemp("score_all"), {}, {}
    for name, (model_class, config) in MODELS.items():
        torch.manual_seed(0)
        model, histories = model_class(config).eval(), histories_of(config)[0]
        if name == "item_to_item":  # which begins with zeros
            torch.nn.init.normal_(model.item_vectors)
        if config.has_codes:
            model.set_catalog(torch.randint(0, 5, (29, 6)))
        model.save_pretrained(root / name)
        if "graph" in model.decodings:
            build_item_graph(model, num_neighbors=29).save(root / name)
        questions[name] = str(root / name), histories.tolist(), list(model.decodings)
        models[name] = model, histories, questions[name][0]
    process = stranger.run(QUESTIONS, json.dumps(questions))
    assert process.returncode == 0, process.stderr
    return models, json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", list(MODELS))
def test_items_of_models_that_score_all_are_the_same_without_the_package(name, models_that_score_all):
    models, answers = models_that_score_all
    model, histories, folder = models[name]
    module, scores, items = answers[name]

    output = model.recommend(histories)

    assert module == "transformers_modules"
    assert Path(folder + "-again", "generation_config.json").exists() == model.can_generate()
    assert all(found == output.item_tokens.tolist() for found in items)
    assert len(items) == len(model.decodings) + 1  # in each way, and saved once more
    torch.testing.assert_close(torch.tensor(scores), output.scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(MODELS))
def test_code_that_travels_is_the_code_of_the_package_and_what_it_imports(name, tmp_path, repository):
    model_class, config = MODELS[name]
    model_class(config).save_pretrained(tmp_path)

    files = {path.name for path in tmp_path.glob("*.py")}

    assert files == code_files(tmp_path) == UPLOADS[name]
    for file in files:
        assert (tmp_path / file).read_bytes() == (repository / "modeling" / file).read_bytes()
