"""Tokens and the text encoder."""
import json

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from bert import (
    TextEncoder,
    load_text_config,
    load_text_weights,
    load_tokenizer,
    reading_problems,
    tokenize,
    tokenizer_from_text,
)
from bert.from_scratch import words_of, write_text_encoder
from tests.conftest import TEXT
from utils import UserError, hub

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "gray", "over", "##pass", "on", "left"]


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return load_tokenizer(str(tmp_path))


def tokens(tokenizer, sentence: str) -> list[str]:
    ids, mask = tokenize(tokenizer, [sentence])
    return [WORDS[i] for i in ids[0][:mask[0].sum()]]


def test_a_sentence_is_lower_cased_split_into_pieces_and_framed(tokenizer):
    assert tokens(tokenizer, "The gray OVERPASS") == ["[CLS]", "the", "gray", "over", "##pass", "[SEP]"]
    assert tokens(tokenizer, "the helipad, left") == ["[CLS]", "the", "[UNK]", "[UNK]", "left", "[SEP]"]


def test_a_sentence_with_a_lone_surrogate_is_refused_plainly(tokenizer):
    with pytest.raises(UserError, match="is not valid Unicode"):
        tokenize(tokenizer, ["the left", "the \udc80 left"])


def test_it_is_padded_with_zeros_to_20(tokenizer):
    ids, mask = tokenize(tokenizer, ["the left", "gray"])
    assert ids.shape == mask.shape == (2, 20) and ids.dtype == mask.dtype == np.int64
    assert ids[0].tolist() == [2, 5, 10, 3] + [0] * 16
    assert mask.tolist() == [[1] * 4 + [0] * 16, [1] * 3 + [0] * 17]


def test_a_long_sentence_is_cut_to_20_and_loses_its_sep(tokenizer):
    ids, mask = tokenize(tokenizer, ["gray " * 30, "gray " * 18])
    assert ids[0].tolist() == [2] + [6] * 19 and mask[0].all()
    assert ids[1].tolist() == [2] + [6] * 18 + [3] and mask[1].all()   # 18 words just fit


def test_an_empty_sentence_is_its_frame(tokenizer):
    assert tokens(tokenizer, "") == ["[CLS]", "[SEP]"]


def test_a_tokenizer_travels_as_text(tokenizer):
    again = tokenizer_from_text(tokenizer.to_str())
    assert tokens(again, "The overpass on the left") == tokens(tokenizer, "The overpass on the left")


def test_words_that_the_vocabulary_lacks_are_named_with_what_is_read_instead(tokenizer):
    assert reading_problems(tokenizer, "The gray, left.") == []
    assert reading_problems(tokenizer, "the Helipad over the overpass") == [
        "the vocabulary of 11 tokens lacks 'Helipad' (read as [UNK]), 'overpass' (read as over ##pass)"]


@pytest.mark.parametrize(("words_before", "said"), [
    (16, []), (17, ["the last word was not read: 'left' (a sentence has at most 20 tokens)"]),
    (19, ["the last 3 words were not read: 'on the left' (a sentence has at most 20 tokens)"])])
def test_words_beyond_the_20_tokens_are_named(tokenizer, words_before, said):
    assert reading_problems(tokenizer, "gray " * words_before + "on the left") == said


def test_a_word_is_not_read_if_one_of_its_pieces_is_cut(tokenizer):
    assert reading_problems(tokenizer, "gray " * 18 + "overpass")[1:] == [
        "the last word was not read: 'overpass' (a sentence has at most 20 tokens)"]


def test_an_encoder_from_scratch_knows_the_words_given_and_spells_others(tmp_path):
    write_text_encoder(tmp_path / "enc", words_of(["The tank, on 2 poles", "A TANK"]))
    tokenizer, config = load_tokenizer(str(tmp_path / "enc")), load_text_config(str(tmp_path / "enc"))
    assert tokenizer.encode("the tank, on 2 poles").tokens == ["[CLS]", "the", "tank", ",", "on", "2", "poles", "[SEP]"]
    assert tokenizer.encode("dam").tokens == ["[CLS]", "d", "##a", "##m", "[SEP]"]
    assert tokenizer.get_vocab_size() == config.vocab_size
    assert not load_text_weights(TextEncoder(config), str(tmp_path / "enc"))


def test_the_encoder_ignores_padding():
    torch.manual_seed(0)
    encoder = TextEncoder(BertConfig(**TEXT)).double().eval()
    ids, mask = torch.randint(1, 100, (1, 20)), (torch.arange(20) < 6).long()[None]
    changed = torch.where(mask.bool(), ids, 7)
    torch.testing.assert_close(encoder(ids, mask)[:, :6], encoder(changed, mask)[:, :6], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(encoder(ids, mask)[:, :6], encoder(ids[:, :6], mask[:, :6]), rtol=1e-12, atol=1e-12)


def test_a_mask_of_zeros_reads_every_token_as_berts_does():
    """`BertModel` subtracts the same number from every score of a row; in float64 what remains is exact."""
    torch.manual_seed(0)
    encoder = TextEncoder(BertConfig(**TEXT)).double().eval()
    ids = torch.randint(1, 100, (2, 20))
    zeros, ones = torch.zeros_like(ids), torch.ones_like(ids)
    torch.testing.assert_close(encoder(ids, zeros), encoder(ids, ones), rtol=0, atol=0)
    additive = torch.full((2, 1, 20, 20), -1e4, dtype=torch.float64)
    expected = encoder.bert(ids, attention_mask=additive).last_hidden_state
    torch.testing.assert_close(encoder(ids, zeros), expected, rtol=1e-9, atol=1e-9)


def test_its_channels_follow_from_its_config():
    encoder = TextEncoder(BertConfig(**TEXT))
    assert encoder.dim == 16
    assert encoder(torch.ones(2, 20, dtype=torch.long), torch.ones(2, 20, dtype=torch.long)).shape == (2, 20, 16)


def test_bert_base_needs_no_file_for_its_shape():
    config = load_text_config("bert-base-uncased")
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (768, 12, 30522)


def test_weights_come_from_a_folder(tmp_path):
    torch.manual_seed(0)
    pretrained = BertModel(BertConfig(**TEXT))          # with its pooler, as published
    pretrained.save_pretrained(tmp_path)
    encoder = TextEncoder(load_text_config(str(tmp_path)))
    assert load_text_weights(encoder, str(tmp_path))
    for name, value in encoder.bert.state_dict().items():
        assert torch.equal(value, pretrained.state_dict()[name]), name


def test_a_folder_without_weights_starts_from_random_ones(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**TEXT, "model_type": "bert"}))
    assert not load_text_weights(TextEncoder(load_text_config(str(tmp_path))), str(tmp_path))


@pytest.mark.parametrize("kind", ["roberta", "clip", 3])
def test_a_text_encoder_of_another_kind_is_refused_by_its_type(tmp_path, kind):
    """RoBERTa's weights would load into BERT and compute something else."""
    (tmp_path / "config.json").write_text(json.dumps({**TEXT, "model_type": kind}))
    with pytest.raises(UserError, match=rf"config\.json describes a text encoder of the type {kind!r}; this code has"):
        load_text_config(str(tmp_path))


@pytest.mark.parametrize(("file", "content", "message"), [
    ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS"),
    ("model.safetensors", b"\x10\0\0\0\0\0\0\0{}", "the files in this folder cannot be loaded"),
    ("pytorch_model.bin", b"no weights", "the weights are damaged, or hold more than tensors"),
    ("tf_model.h5", b"x", r"its weights are tf_model\.h5, of another program; needed is model\.safetensors or"),
])
def test_weights_that_are_none_are_one_line(tmp_path, file, content, message):
    (tmp_path / "config.json").write_text(json.dumps({**TEXT, "model_type": "bert"}))
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_text_weights(TextEncoder(load_text_config(str(tmp_path))), str(tmp_path))


def test_truncated_weights_are_one_line(tmp_path):
    BertModel(BertConfig(**TEXT)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"the files in this folder cannot be loaded .* fetch them again"):
        load_text_weights(TextEncoder(load_text_config(str(tmp_path))), str(tmp_path))


def test_weights_of_other_shapes_are_one_line(tmp_path):
    BertModel(BertConfig(**{**TEXT, "intermediate_size": 24})).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**TEXT, "model_type": "bert"}))
    with pytest.raises(UserError, match=r"6 of the weights have another shape .* encoder\.layer\.0\.intermediate\."
                                        r"dense\.bias is \(24,\), needed \(32,\); give the configuration that belongs"):
        load_text_weights(TextEncoder(load_text_config(str(tmp_path))), str(tmp_path))


def test_a_fraction_may_be_written_as_a_whole_number(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**TEXT, "model_type": "bert", "initializer_range": 0,
                                                      "hidden_dropout_prob": 0}))
    assert load_text_config(str(tmp_path)).hidden_dropout_prob == 0.0


def test_a_folder_without_what_is_needed_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_text_config(str(tmp_path))
    with pytest.raises(UserError, match=r"neither vocab\.txt nor tokenizer\.json"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("load", [load_text_config, load_tokenizer])
def test_without_a_network_the_hub_is_not_asked(load, monkeypatch):
    """The hub's client would try again for most of a minute."""
    asked = []
    monkeypatch.setattr(hub, "hub_answers", lambda: asked.append(1) or False)
    with pytest.raises(UserError, match="nobody/nothing: no such folder, and the Hugging Face hub did not provide it"):
        load("nobody/nothing")
    assert asked == [1]
