"""Saved folders of models that score all items answer the same where `hf_genrec` cannot be imported."""

import json
import os
import subprocess
import sys

import pytest
import torch
from test_remote_code import PROGRAM

from hf_genrec import (
    ACERecConfig,
    ACERecForItemGeneration,
    RPGConfig,
    RPGForItemGeneration,
    SASRecConfig,
    SASRecForItemGeneration,
)
from hf_genrec.serving.item_graph import build_item_graph
from invariants.model import histories_of


WIDTHS = {"num_items": 29, "d_model": 16, "d_ff": 24, "num_heads": 2}
SIZES = WIDTHS | {"num_levels": 6, "codebook_size": 5}
MODELS = {
    "rpg": (RPGForItemGeneration, RPGConfig(**SIZES)),
    "acerec": (ACERecForItemGeneration, ACERecConfig(**SIZES)),
    "sasrec": (SASRecForItemGeneration, SASRecConfig(**WIDTHS)),
}
BLOCKED = PROGRAM.partition("import torch\n")[0]
QUESTIONS = """
import torch
from transformers import AutoModel

torch.set_num_threads(1)
folder, second, histories = sys.argv[1], sys.argv[2], torch.tensor(json.loads(sys.argv[3]))
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
model.save_pretrained(second)
again = AutoModel.from_pretrained(second, trust_remote_code=True)
exact, graph = (model.recommend(histories, decoding=name) for name in sys.argv[4:])
other = again.recommend(histories)
print(json.dumps([exact.item_tokens.tolist(), exact.scores.tolist(), graph.item_tokens.tolist(),
                  other.item_tokens.tolist(), type(model).__module__.split(".")[0]]))
"""


@pytest.mark.parametrize("name", list(MODELS))
def test_process_without_the_package_recommends_the_same_items(name, tmp_path):
    model_class, config = MODELS[name]
    torch.manual_seed(0)
    model = model_class(config).eval()
    histories = histories_of(config)[0]
    has_codes = config.has_codes
    if has_codes:
        model.set_catalog(torch.randint(0, 5, (29, 6)))
    model.save_pretrained(tmp_path / "first")
    if has_codes:
        build_item_graph(model, num_neighbors=29).save(tmp_path / "first")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")

    process = subprocess.run(
        [sys.executable, "-I", "-c", BLOCKED + QUESTIONS, tmp_path / "first", tmp_path / "second"]
        + [json.dumps(histories.tolist()), "exact", "graph" if has_codes else "exact"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )

    assert process.returncode == 0, process.stderr
    exact, scores, by_graph, second, module = json.loads(process.stdout.splitlines()[-1])
    output = model.recommend(histories)
    assert module == "transformers_modules"
    assert exact == by_graph == second == output.item_tokens.tolist()
    torch.testing.assert_close(torch.tensor(scores), output.scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(MODELS))
def test_code_that_travels_is_the_code_of_the_package_and_no_more_than_it_imports(name, tmp_path, repository):
    model_class, config = MODELS[name]
    model_class(config).save_pretrained(tmp_path)

    files = {path.name for path in tmp_path.glob("*.py")}

    of_codes = {"genrec_rank_codes.py", "genrec_beams.py", "genrec_catalog.py", "genrec_item_graph.py"}
    own, foreign = (of_codes, set()) if config.has_codes else (set(), of_codes)
    assert {f"modeling_{name}.py", f"configuration_{name}.py", "genrec_recommend.py"} | own <= files
    unused = {"modeling_latte.py", "genrec_generate.py", "genrec_rank_beams.py", "genrec_exact.py"} | foreign
    assert not unused & files
    for file in files:
        assert (tmp_path / file).read_bytes() == (repository / "modeling" / file).read_bytes()
