"""What transformers' own `generate()` answers, in the form in which other decoders are compared with it."""

import torch


def items_of(model, sequences):
    """Items of raw rows of `generate()`, -1 where a row is no item."""
    config = model.config
    codes = sequences[:, -config.num_levels :] - config.first_code_token
    return model.catalog.item_of(codes - torch.arange(config.num_levels) * config.codebook_size)


def generate_beams(model, histories, num_beams):
    output = model.generate(
        histories[0],
        attention_mask=histories[1],
        num_beams=num_beams,
        num_return_sequences=num_beams,
        return_dict_in_generate=True,
        output_scores=True,
    )
    batch_size = len(histories[0])
    items = items_of(model, output.sequences).view(batch_size, num_beams)
    return items, output.sequences_scores.view(batch_size, num_beams)


def best_of_each(items, scores):
    """Items in the order of their first appearance, and that score: what `recommend()` must return."""
    first = {}
    for item, score in zip(items.tolist(), scores.tolist(), strict=True):
        first.setdefault(item, score)
    return list(first), list(first.values())
