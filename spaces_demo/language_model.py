"""
Recommenders around language models: the one kind that brings no code of its own, so the page needs the package.
"""

import importlib
from typing import Any


LANGUAGE_MODEL = "causal_lm"  # model type of such a recommender


def package() -> Any:
    """The part of the package that loads it."""
    try:
        return importlib.import_module("hf_genrec.serving.language_model")
    except ImportError as error:
        raise ImportError(
            "This recommender is a language model, which the page shows with the package `hf-genrec[llm]`: add it to "
            "requirements.txt."
        ) from error
