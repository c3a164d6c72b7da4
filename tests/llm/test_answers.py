import pytest
import torch

from hf_genrec.llm.answers import AnswerLoss, delta_of
from hf_genrec.llm.sft import with_adapter
from hf_genrec.llm.vocabulary import SidVocabulary
from hf_genrec.modeling.genrec_catalog import Catalog
from tests.tiny_llms import KINDS, tiny_llm, tiny_tokenizer


CODES = torch.tensor([[0, 1], [2, 0], [2, 2], [1, 1]])


def answer_loss(kind="llama", *, lora=2, normalization="catalog", is_tied=None):
    tokenizer = tiny_tokenizer()
    model = tiny_llm(kind, is_tied=is_tied)
    vocabulary = SidVocabulary.add_to(tokenizer, num_levels=2, codebook_size=3)
    vocabulary.resize(model, tokenizer)
    adapted = with_adapter(model, vocabulary, lora=lora)
    loss = AnswerLoss(adapted, vocabulary, Catalog(CODES, 3), normalization=normalization)
    torch.manual_seed(7)
    for name, parameter in loss.trained_parameters().items():
        if "lora" in name or "delta" in name:  # LoRA begins with zeros: as if some steps had been made
            parameter.data.normal_(std=0.5)
    return loss.eval(), vocabulary


def batch(vocabulary):
    """Two rows, the second one padded: text that asks for nothing, then items; and a word as an answer."""
    items = vocabulary.item_tokens(CODES)[:, 1:-1]
    first = torch.cat([torch.tensor([40, vocabulary.begin_id]), items[[1, 3, 2]].flatten()])
    second = torch.cat([torch.tensor([50, vocabulary.begin_id]), items[0], torch.tensor([60, 61, 0, 0])])
    input_ids = torch.stack([first, second])
    labels = torch.full_like(input_ids, -100)
    labels[0, 4:], labels[1, 2:6] = first[4:], second[2:6]
    return input_ids, labels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [2, 0])
def test_over_the_whole_vocabulary_the_loss_is_that_of_the_model_itself(kind, lora):
    loss, vocabulary = answer_loss(kind, lora=lora, normalization="vocabulary")
    input_ids, labels = batch(vocabulary)

    expected = loss.causal_lm(input_ids=input_ids, labels=labels).loss

    torch.testing.assert_close(loss(input_ids, labels)["loss"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_compared_with_those_that_the_catalog_allows_and_words_with_all(kind):
    loss, vocabulary = answer_loss(kind)
    input_ids, labels = batch(vocabulary)

    logits = loss.causal_lm(input_ids=input_ids).logits.log_softmax(-1)
    sid = loss.causal_lm(input_ids=input_ids).logits
    codes = vocabulary.code_token_ids
    first = codes[0]
    under = {0: codes[1, [1]], 1: codes[1, [1]], 2: codes[1, [0, 2]]}  # by the first code
    expected = []
    for row, place, code in ((0, 3, 1), (0, 5, 2), (1, 1, 0)):
        expected.append(sid[row, place, first].log_softmax(-1)[code])
        second = under[code]
        target = input_ids[row, place + 2]
        expected.append(sid[row, place + 1, second].log_softmax(-1)[(second == target).nonzero()[0, 0]])
    expected += [logits[1, 3, 60], logits[1, 4, 61]]

    torch.testing.assert_close(loss(input_ids, labels)["loss"], -torch.stack(expected).mean(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "lora"), [("llama", 2), ("qwen3", 2), ("gpt2", 0)])
def test_new_rows_and_adapters_learn_and_rows_of_old_tokens_do_not(kind, lora):
    loss, vocabulary = answer_loss(kind, lora=lora)

    loss(*batch(vocabulary))["loss"].backward()

    names = {name for name, parameter in loss.named_parameters() if parameter.grad is not None}
    assert names <= set(loss.trained_parameters())
    assert any("delta" in name for name in names)
    for module in (loss.plain.get_input_embeddings(), loss.plain.get_output_embeddings()):
        assert getattr(module, "token_adapter", module).base_layer.weight.grad is None
    assert any("lora_B" in name for name in names) == bool(lora)


def test_written_rows_are_those_that_were_trained():
    loss, vocabulary = answer_loss("qwen3")

    loss.write_rows()

    for layer in loss.layers.values():
        assert torch.equal(layer.base_layer.weight[vocabulary.new_token_ids], delta_of(layer))
    assert list(loss.layers) == ["input", "output"]


def test_the_state_holds_what_is_trained_and_comes_back_exactly():
    loss, vocabulary = answer_loss(lora=2)
    other, _ = answer_loss(lora=2)
    for parameter in other.trained_parameters().values():
        parameter.data.zero_()

    other.load_state_dict(loss.state_dict())

    assert torch.equal(other(*batch(vocabulary))["loss"], loss(*batch(vocabulary))["loss"])
    assert sum(tensor.numel() for tensor in loss.state_dict().values()) < 0.2 * sum(
        parameter.numel() for parameter in loss.parameters()
    )


def test_a_state_of_another_training_is_refused():
    loss, _ = answer_loss(lora=2)

    with pytest.raises(ValueError, match="that of another training: .* is on one side only"):
        loss.load_state_dict(answer_loss(lora=0)[0].state_dict())


def test_a_model_that_scales_its_logits_is_refused():
    loss, _ = answer_loss()
    loss.check()
    head = loss.plain.get_output_embeddings()
    loss.plain.register_forward_hook(lambda module, args, output: setattr(output, "logits", output.logits / 8))

    with pytest.raises(ValueError, match="LlamaForCausalLM scales its embeddings or logits"):
        loss.check()
    assert head is loss.plain.get_output_embeddings()
