"""What all verbs share: errors of one line, help with examples."""

import pytest
from cli_shop import error_of, run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prepare", "--output", "x"], "exactly one of --interactions, --sequences, --movielens, --amazon"),
        (["prepare", "--output", "x", "--interactions", "log.csv"], "`--items` is missing"),
        (["prepare", "--output", "x", "--amazon", "2023"], "needs `--category`"),
        (
            [
                "prepare",
                "--output",
                "x",
                "--movielens",
                "ml-100k",
                "--k-core",
                "3",
                "--min-history",
                "2",
                "--no-strict",
            ],
            "`--k-core`, `--min-history`, `--strict` would have no effect with `--movielens`",
        ),
        (
            ["prepare", "--output", "x", "--amazon", "2014", "--category", "Beauty", "--benchmark", "last_out"],
            "`--benchmark` would have no effect with `--amazon 2014`",
        ),
        (
            ["prepare", "--output", "x", "--amazon", "2023", "--category", "Beauty", "--user-column", "user_id"],
            "`--user-column` would have no effect with `--amazon 2023`",
        ),
        (["prepare", "--output", "x", "--sequences", "y", "--min-rating", "3"], "`--min-rating` would have no effect"),
        (["prepare", "--output", "x", "--sequences", "nope.tsv", "--items", "y"], "There is no file nope.tsv."),
        (["prepare", "--output", "x", "--sequences", ".", "--items", "y"], ".: Is a directory."),
        (["compare", "nowhere"], "There is no file nowhere."),
        (["tokenize", "x", "--output", "misspelt", "--report"], "misspelt holds no ids to report on"),
        (["tokenize", "x", "--output", "y"], "either `--embeddings` or `--ids`"),
        (["train", "x", "--output", "y"], "x is not a prepared folder"),
        (["train", "x", "--output", "y", "--architecture", "latte"], "either `--ids`"),
        (
            ["train", "x", "--output", "y", "--ids", "z", "--embeddings", "e"],
            "`--embeddings` are for a new model that",
        ),
        (["train", "x", "--output", "y", "--ids", "z"], "x is not a prepared folder"),
        (["recommend", "--model", "x"], "either `--history`"),
        (["recommend", "--model", "./x", "--history", "a"], "no run folder ./x"),
        (["evaluate", "a/b/c", "x"], "no run folder a/b/c"),
        (["serve", "./x"], "no run folder ./x"),
        (["serve", "x", "--dtype", "float16"], "'--dtype': 'float16' is not one of 'float32', 'bfloat16'"),
        (["serve", "x", "--max-queue", "9"], "`--max-queue` must be at least `max_histories` (256), got 9"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_wrong_calls_end_with_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert message in error_of(*words)


def test_unexpected_errors_are_one_line_unless_the_traceback_is_asked_for(shop, monkeypatch):
    words = ["recommend", "--model", shop / "run", "--history", "i3"]

    def broken(*_, **__):
        raise KeyError("weights")

    monkeypatch.setattr("hf_genrec.serving.recommender.Recommender.from_pretrained", broken)
    short, long = run(*words), run("--traceback", *words)

    assert short.exit_code == long.exit_code == 1
    assert short.stderr.startswith("Error: KeyError: 'weights'. ")
    assert len(short.stderr.splitlines()) == 1
    assert long.stderr.startswith("Traceback")
    assert "--traceback" not in run("--help").stdout


@pytest.mark.parametrize("verb", ["prepare", "embed", "tokenize", "train", "evaluate", "recommend", "demo"])
def test_help_has_examples_and_json(verb):
    result = run(verb, "--help")

    assert result.exit_code == 0
    assert f"hf-genrec {verb}" in result.stdout.split("Examples:")[1]
    assert "--json" in result.stdout
