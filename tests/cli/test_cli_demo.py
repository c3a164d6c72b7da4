"""The quick start is the verbs, one after the other; what is there already is not made again."""

import json
import shutil

from cli_shop import error_of, result_of, run


def test_demo_shows_every_stage_as_a_command_and_goes_on_where_it_stopped(shop, chosen, tmp_path):
    folder = tmp_path / "demo"
    for made, name in ((shop / "data", "data"), (shop / "emb", "vectors"), (chosen, "model")):
        shutil.copytree(made, folder / name)
    first = run("demo", "--output", folder)
    written = json.loads((folder / "model" / "evaluation.json").read_text(encoding="utf-8"))

    again = result_of("demo", "--output", folder)

    assert first.exit_code == 0, first.output
    commands = [line.removeprefix("$ hf-genrec ") for line in first.stdout.splitlines() if line.startswith("$")]
    data, vectors, model = (folder / name for name in ("data", "vectors", "model"))
    encoder = "sentence-transformers/all-MiniLM-L6-v2"
    assert commands[:4] == [
        f"prepare --movielens {folder / 'ml-100k'} --output {data}  # done before",
        f"embed {data} --model {encoder} --output {vectors}  # done before",
        f"train {data} --embeddings {vectors} --output {model} --resume  # done before",
        f"evaluate {model} {data}",
    ]
    assert commands[4].startswith(f"recommend --model {model} --history i")
    for expected in ("Popularity", "item-kNN", "ndcg@10", "log-probability", "thing number", f"is in {folder}."):
        assert expected in first.stdout
    assert (again["folder"], again["evaluation"]) == (str(model), written)


def test_a_stage_that_fails_ends_the_demo(tmp_path):
    assert error_of("demo", "--output", tmp_path).startswith(f"Error: {tmp_path / 'ml-100k'} does not hold MovieLens")
