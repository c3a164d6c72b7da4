"""Starting fast: what an import and a help page cost, and that the models are registered all the same."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import hf_genrec
from hf_genrec.cli.main import app


HEAVY = ["torch", "transformers", "pandas", "pyarrow", "datasets", "scipy", "faiss"]


def python(program: str, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "program",
    [
        "import hf_genrec",
        "import hf_genrec.cli.main as cli, sys; sys.argv[1:] = ['--help']; cli.main()",
        "import hf_genrec.cli.main as cli, sys; sys.argv[1:] = ['train', '--help']; cli.main()",
    ],
)
def test_package_and_help_import_nothing_heavy(program):
    ending = f"""
import atexit, sys
atexit.register(lambda: print("heavy:", *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr))
"""

    done = python(ending + program)

    assert done.returncode == 0, done.stderr
    assert done.stderr == "heavy:\n"


REGISTRATIONS = [
    "import hf_genrec; from transformers import AutoConfig, AutoModel, MODEL_MAPPING, pipelines",
    "from transformers import AutoConfig, AutoModel, MODEL_MAPPING, pipelines; import hf_genrec",
    "import hf_genrec.modeling.modeling_latte, hf_genrec.modeling.pipeline_genrec; "
    "from transformers import AutoConfig, AutoModel, MODEL_MAPPING, pipelines",
]
CHECK = """
for name in ("latte", "rpg", "acerec", "sasrec"):
    config = AutoConfig.for_model(name, d_model=8)
    model = AutoModel.from_config(config)
    assert type(model).__module__ == f"hf_genrec.modeling.modeling_{name}", type(model)
    assert MODEL_MAPPING[type(config)] is type(model)
task = pipelines.PIPELINE_REGISTRY.check_task("next-item-recommendation")[1]
assert task["impl"]._load_tokenizer is not None
"""
# One process imports what takes long and has no say in the order, so no `transformers.models.auto`; each program runs
# in a child of it.
CHILDREN = """
import gc, os, sys
gc.disable()
import torch.distributed.fsdp, torch.distributed.tensor, torch._dynamo.convert_frame
import accelerate, huggingface_hub, pandas, pyarrow.parquet, scipy.stats, transformers.generation
gc.freeze()
for program in sys.argv[1:]:
    child = os.fork()
    if not child:
        exec(program)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"failed: {program}")
"""


def test_models_are_registered_in_whatever_order_is_imported():
    done = python(CHILDREN, *(f"{program}\n{CHECK}" for program in REGISTRATIONS))

    assert done.returncode == 0, done.stderr


def test_every_public_name_is_found_at_its_one_address():
    assert sorted(hf_genrec.__all__) == sorted(hf_genrec._ADDRESSES)
    for name, address in hf_genrec._ADDRESSES.items():
        value = getattr(hf_genrec, name)
        assert value.__module__ == f"hf_genrec.{address}"
    assert set(hf_genrec.__all__) <= set(dir(hf_genrec))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hf_genrec.nothing  # noqa: B018


def test_version_is_shown():
    done = CliRunner().invoke(app, ["--version"])

    assert done.stdout == f"hf-genrec {hf_genrec.__version__}\n"


@pytest.mark.parametrize(
    ("words", "meant"), [(["prepaer"], "prepare"), (["recommend", "--hystory", "a"], "--history")]
)
def test_mistyped_words_are_answered_with_what_was_meant(words, meant):
    done = CliRunner().invoke(app, words)

    assert done.exit_code == 2
    assert meant in done.stderr.splitlines()[-1]


def test_ctrl_c_while_a_library_is_imported_ends_without_a_traceback(monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_genrec.data.prepared.PreparedDataset.load", interrupted)

    done = CliRunner().invoke(app, ["embed", "data", "--output", "x"])

    assert (done.exit_code, done.stderr) == (130, "Stopped.\n")
