"""
The models of the library enter the Auto classes and the pipelines of transformers, without importing either.

`import hf_genrec` must be cheap, and yet `AutoModel.from_pretrained(folder)` after it must load our models without
`trust_remote_code`. So a finder on `sys.meta_path` waits until transformers' own registries are imported, whoever
imports them, and then adds entries: config classes, which are light, and stand-ins for model classes, which import
torch and the model's code at their first use. Importing the model classes right away would not do: transformers
imports its registries in the middle of its modelling code, which ours needs whole.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


TASK = "next-item-recommendation"

# model type: its config class, its model class and further registries than MODEL_MAPPING
_MODELS = {
    "latte": ("LatteConfig", "LatteForConditionalGeneration", ["MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING"]),
    "decoder": ("DecoderConfig", "DecoderForItemGeneration", []),
    "rpg": ("RPGConfig", "RPGForItemGeneration", []),
    "acerec": ("ACERecConfig", "ACERecForItemGeneration", []),
    "sasrec": ("SASRecConfig", "SASRecForItemGeneration", []),
    "hstu": ("HSTUConfig", "HSTUForItemGeneration", []),
    "vqrec": ("VQRecConfig", "VQRecForItemGeneration", []),
    "gru4rec": ("GRU4RecConfig", "GRU4RecForItemGeneration", []),
    "bert4rec": ("BERT4RecConfig", "BERT4RecForItemGeneration", []),
    "item_to_item": ("ItemToItemConfig", "ItemToItemForItemGeneration", []),
    "ensemble": ("EnsembleConfig", "EnsembleForItemGeneration", []),
}
_NOT_TRAINED = {"item_to_item", "ensemble"}  # made in closed form or of other models
ARCHITECTURES = tuple(name for name in _MODELS if name not in _NOT_TRAINED)  # of `hf-genrec train`


def register() -> None:
    """Register with what transformers has imported by now, and with the rest as soon as it is imported."""
    waiting = {}
    for name, add in _REGISTRIES.items():
        module = sys.modules.get(name)
        if module is None or getattr(module.__spec__, "_initializing", False):
            waiting[name] = add
        else:
            add(module)
    if waiting and not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(waiting))


class _AfterImport(MetaPathFinder):
    """Calls a function with a module once the module is complete."""

    def __init__(self, waiting: dict[str, Callable[[Any], None]]) -> None:
        self._waiting = waiting

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        add = self._waiting.pop(name, None)
        spec = None if add is None else PathFinder.find_spec(name, path, target)
        if add is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_add(module: ModuleType) -> None:
            execute(module)
            add(module)

        spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]
        return spec


class _Later:
    """Stands for a class that is imported when something is asked of it."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load

    def __getattr__(self, name: str) -> Any:
        return getattr(self._load(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._load()(*args, **kwargs)


def _config_class(model_type: str) -> Any:
    return getattr(importlib.import_module(f"hf_genrec.modeling.configuration_{model_type}"), _MODELS[model_type][0])


def _add_configs(auto: Any) -> None:
    for model_type in _MODELS:
        auto.AutoConfig.register(model_type, _config_class(model_type), exist_ok=True)


def _add_models(auto: Any) -> None:
    for model_type, (_, name, more) in _MODELS.items():
        _add_model(model_type, name, [getattr(auto, mapping) for mapping in ("MODEL_MAPPING", *more)])


def _add_model(model_type: str, name: str, mappings: list[Any]) -> None:
    config_class = _config_class(model_type)

    def load() -> Any:
        model_class = getattr(importlib.import_module(f"hf_genrec.modeling.modeling_{model_type}"), name)
        for mapping in mappings:
            mapping.register(config_class, model_class, exist_ok=True)  # the stand-in has done its work
        return model_class

    for mapping in mappings:
        mapping.register(config_class, _Later(load), exist_ok=True)


def _add_pipeline(pipelines: Any) -> None:
    from transformers import AutoModel

    registry = pipelines.PIPELINE_REGISTRY

    class AutoRecommender(AutoModel):
        """`AutoModel`, and recommenders around language models, whose `config.json` is that of the language model."""

        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            """As of `AutoModel`."""
            from hf_genrec.serving.language_model import load_for_pipeline

            return load_for_pipeline(args, kwargs)

    def load() -> Any:
        from hf_genrec.modeling.pipeline_genrec import NextItemPipeline

        registry.supported_tasks.pop(TASK, None)  # the stand-in; overwriting it would be warned of
        registry.register_pipeline(TASK, pipeline_class=NextItemPipeline, pt_model=AutoRecommender)
        return NextItemPipeline

    registry.supported_tasks[TASK] = {"impl": _Later(load), "pt": (AutoRecommender,)}


_REGISTRIES: dict[str, Callable[[Any], None]] = {
    "transformers.models.auto.configuration_auto": _add_configs,
    "transformers.models.auto.modeling_auto": _add_models,
    "transformers.pipelines": _add_pipeline,
}
