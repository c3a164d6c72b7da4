"""
Time of decoding with a language model: transformers' `generate()` with a prefix function, with our logits processor,
and `recommend()`, in one run.

    python scripts/evidence/smollm2_folder.py smollm2-cut6 --layers 6
    python scripts/evidence/benchmark_llm_decoding.py smollm2-cut6
    python scripts/evidence/benchmark_llm_decoding.py --quick

The language model gets tokens for 25,000 random items of 3 codes out of 256, and rows drawn for them. Prompts are
filled up to a number of tokens with items and words. All ways must return the same best items with the same scores,
log-probabilities over the whole vocabulary as plain language models have them; `recommend()` over the catalog alone,
its default, is measured beside them. Figures are medians; on a CPU they are CPU seconds, which load changes little;
`generate()` takes minutes and runs once.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_genrec.files import write_json
from hf_genrec.llm.recommender import as_recommender
from hf_genrec.llm.vocabulary import SidVocabulary
from tokenizers import Tokenizer, models, pre_tokenizers


DEFAULT_OUTPUT = Path("scripts/evidence/records/llm_decoding_speed.json")
TOLERANCE = 2e-3  # of scores; float32 sums in another order, of 49,920 logits


@dataclass(frozen=True)
class Sizes:
    """How much of everything is measured."""

    num_items: int = 25_000
    codebook_size: int = 256
    num_users: int = 16
    num_beams: int = 50
    prompt_lengths: tuple[int, ...] = (100, 400)
    slow_turns: int = 1  # of the two ways through `generate()`, which take minutes
    turns: int = 3


QUICK = Sizes(num_items=60, codebook_size=8, num_users=3, num_beams=7, prompt_lengths=(25,), slow_turns=1, turns=1)


@dataclass(frozen=True)
class Ids:
    """What the recommender has to know of a table of semantic IDs."""

    codes: torch.Tensor
    codebook_size: int

    @property
    def num_items(self) -> int:
        return len(self.codes)

    @property
    def num_levels(self) -> int:
        return self.codes.shape[1]


def main() -> None:
    arguments = parse_arguments()
    sizes = QUICK if arguments.quick else Sizes()
    llm, tokenizer = tiny() if arguments.quick else read(arguments.model, arguments.device)
    output = arguments.output or (None if arguments.quick else DEFAULT_OUTPUT)
    rows: list[dict[str, Any]] = []
    for length in sizes.prompt_lengths:
        rows.append(measured(llm, tokenizer, sizes, length, arguments.seed))
        Console().print(table_of(rows))
        if not output:
            continue
        device = llm.device
        report: dict[str, Any] = {
            "machine": {
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
                "threads": torch.get_num_threads(),
                "load_average": round(os.getloadavg()[0], 2),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "model": {"layers": llm.config.num_hidden_layers, "width": llm.config.hidden_size},
            "sizes": vars(sizes),
            "seed": arguments.seed,
            "rows": rows,
        }
        write_json(report, output)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder or name of a causal LM; needed but for --quick")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes and a random model: shows that everything runs"
    )
    parser.add_argument("--output", type=Path, help=f"JSON file (default {DEFAULT_OUTPUT}; none with --quick)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not arguments.quick and arguments.model is None:
        parser.error("a model is needed, or --quick")
    return arguments


def read(name: str, device: str) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(name).to(device).eval(), AutoTokenizer.from_pretrained(name)


def tiny() -> tuple[Any, Any]:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "tea": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=2, **shape)).eval(), PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>"
    )


def recommender_of(llm: Any, tokenizer: Any, sizes: Sizes, prompt_length: int, seed: int) -> tuple[Any, torch.Tensor]:
    """The recommender, and item tokens of the histories whose prompts have the length."""
    generator = torch.Generator().manual_seed(seed)
    powers = sizes.codebook_size ** torch.arange(2, -1, -1)
    numbers = torch.randperm(sizes.codebook_size**3, generator=generator)[: sizes.num_items]
    vocabulary = SidVocabulary.add_to(tokenizer, num_levels=3, codebook_size=sizes.codebook_size)
    vocabulary.resize(llm, tokenizer)
    spread = llm.get_input_embeddings().weight[: vocabulary.begin_id].std().item()
    for matrix in {llm.get_input_embeddings().weight, llm.get_output_embeddings().weight}:
        rows = torch.randn(len(vocabulary.new_token_ids), matrix.shape[1], generator=generator)
        matrix.data[vocabulary.new_token_ids] = (spread * rows).to(matrix)
    ids = Ids(numbers.unsqueeze(1) // powers % sizes.codebook_size, sizes.codebook_size)
    num_read = (prompt_length - 10) // 5
    word = next(name for name in (" tea", "tea") if len(tokenizer(name, add_special_tokens=False)["input_ids"]) == 1)
    prefix = (
        word * (prompt_length - 1 - 5 * num_read)
        if word[0] == " "
        else " ".join([word] * (prompt_length - 1 - 5 * num_read))
    )
    model = as_recommender(llm, tokenizer, ids, prefix=prefix, max_history_length=num_read, normalization="vocabulary")
    items = torch.randint(sizes.num_items, (sizes.num_users, num_read), generator=generator)
    return model.eval(), (items + model.config.first_item_token).to(llm.device)


def measured(llm: Any, tokenizer: Any, sizes: Sizes, prompt_length: int, seed: int) -> dict[str, Any]:
    """Seconds of each way for prompts of one length, after a check that all find the same."""
    model, histories = recommender_of(llm, tokenizer, sizes, prompt_length, seed)
    prompts, _ = model.prompt_tokens(histories)
    if prompts.shape[1] != prompt_length:
        raise ValueError(f"The prompts have {prompts.shape[1]} tokens, wanted are {prompt_length}.")
    beams = sizes.num_beams
    follow = followers(model)

    def legal(user: int, tokens: torch.Tensor) -> list[int]:
        return follow[tuple(tokens[prompt_length:].tolist())]

    def generated(**options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        found = model.llm.generate(
            prompts, attention_mask=torch.ones_like(prompts), num_beams=beams, num_return_sequences=beams,
            max_new_tokens=3, eos_token_id=None, pad_token_id=model.config.end_id, length_penalty=0.0, do_sample=False,
            return_dict_in_generate=True, output_scores=True, **options,
        )  # fmt: skip
        return model.items_of(found.sequences).view(-1, beams), found.sequences_scores.view(-1, beams)

    def recommended(normalization: str) -> tuple[torch.Tensor, torch.Tensor]:
        model.config.normalization = normalization
        found = model.recommend(histories, top_k=beams, num_beams=beams)
        return found.item_tokens - model.config.first_item_token, found.scores

    ways: dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor]]] = {
        "prefix_function": lambda: generated(prefix_allowed_tokens_fn=legal),
        "processor": lambda: generated(logits_processor=[model.logits_processor()]),
        "recommend": lambda: recommended("vocabulary"),
        "recommend_in_catalog": lambda: recommended("catalog"),
    }
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    clock = time.process_time if llm.device.type == "cpu" else time.perf_counter
    seconds = defaultdict(list)
    ways["recommend"]()  # warms up
    for turn in range(sizes.turns):
        for name, way in ways.items():
            if turn < sizes.slow_turns or name.startswith("recommend"):
                start = clock()
                found[name] = way()
                seconds[name].append(clock() - start)
    for name in ("processor", "recommend"):
        check_same(found["prefix_function"], found[name], name)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    fast = medians["recommend"]
    return {
        "prompt_length": prompt_length,
        "seconds": medians,
        "spread": {name: [min(values), max(values)] for name, values in seconds.items()},
        "to_prefix_function": medians["prefix_function"] / fast,
        "to_processor": medians["processor"] / fast,
    }


def followers(model: Any) -> dict[tuple[int, ...], list[int]]:
    """The trie as people write it: from the tokens so far to those that may follow."""
    levels = torch.arange(model.config.num_levels)
    paths = model.code_token_ids.cpu()[levels, model.item_codes.cpu().long()].tolist()
    follow = defaultdict(set)
    for path in paths:
        for depth, token in enumerate(path):
            follow[tuple(path[:depth])].add(token)
    return {prefix: sorted(tokens) for prefix, tokens in follow.items()}


def check_same(
    expected: tuple[torch.Tensor, torch.Tensor], found: tuple[torch.Tensor, torch.Tensor], name: str
) -> None:
    """Same scores, and the same items but where scores are ties."""
    (items, scores), (other_items, other_scores) = expected, found
    if not torch.allclose(scores, other_scores, atol=TOLERANCE, rtol=0):
        raise ValueError(f"{name} has other scores, by up to {(scores - other_scores).abs().max():.2g}.")
    last = scores[:, -1:] + TOLERANCE
    for row, other, is_sure in zip(items.tolist(), other_items.tolist(), (scores > last).tolist(), strict=True):
        sure = {item for item, known in zip(row, is_sure, strict=True) if known}
        if not sure <= set(other):
            raise ValueError(f"{name} lacks the items {sorted(sure - set(other))[:5]}.")


def table_of(rows: list[dict[str, Any]]) -> Table:
    table = Table("prompt", "prefix function", "processor", "recommend", "in the catalog", "ratios")
    for row in rows:
        ratios = f"{row['to_prefix_function']:.1f}, {row['to_processor']:.1f}"
        table.add_row(str(row["prompt_length"]), *(f"{value:.3f} s" for value in row["seconds"].values()), ratios)
    return table


if __name__ == "__main__":
    main()
