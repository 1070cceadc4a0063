"""`--text_encoder`: encoders of other families than BERT, their tokenizers, their layers, and what is refused."""
import json
import re
from argparse import Namespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import CLIPTokenizer, RobertaTokenizer, ViTConfig

from args import get_parser
from bert import (
    BertConfig,
    TextEncoder,
    config_from_flags,
    layout_of,
    load_text_weights,
    make_text_encoder,
    plain_config,
    positions,
    reading_problems,
    stored_tokenizer,
    text_config,
    tokenize,
    tokenizer_from_flags,
    words_needed,
)
from bert.encoders import FAMILIES, FamilyEncoder, visible
from data.dataset import RefTokens
from data.toy.scenes import grammar_words
from lib.checkpoint import describe_model, restore, save_checkpoint
from lib.checkpoint.settings import model_settings
from lib.checkpoint.starting import make_network
from lib.predictor import Predictor
from lib.report.attention_maps import heat_strip
from lib.segmentation import build
from lib.training.masked_pass import Disturbance
from lib.training.optimizer import freeze_text
from tests.bert.encoder_folders import KINDS, save_encoder, save_tokenizer
from tests.conftest import TEXT, make_inputs, put_into
from tests.launch import assert_refused, run_script
from utils import UserError, hub

WORDS = [5, 6, 7, 8]


def flags(folder, *more: str) -> Namespace:
    return get_parser().parse_args(["--model", "lavt", "--swin_type", "nano", "--img_size", "64", "--text_encoder",
                                    str(folder), *more])


def rows_of(tokenizer: Tokenizer, sentences: list[str], max_tokens: int) -> list[list]:
    """Token ids and mask as lists."""
    return [part.tolist() for part in tokenize(tokenizer, sentences, max_tokens)]


@pytest.fixture(scope="module", params=[
    kind if kind in ("clip", "siglip", "mpnet") else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS])
def saved(request, tmp_path_factory):
    """A kind, its folder with weights and a tokenizer, and the model that was saved there."""
    folder = tmp_path_factory.mktemp(request.param)
    model = save_encoder(folder, request.param)
    save_tokenizer(folder, request.param)
    return request.param, folder, model


@torch.no_grad()
def test_words_are_the_last_hidden_state_that_transformers_computes(saved):
    """Of the text tower, of a whole CLIP or SigLIP; with the padding of the kind in sentences of two lengths."""
    kind, folder, model = saved
    args = flags(folder)
    config = config_from_flags(args)
    encoder = make_text_encoder(config)
    assert load_text_weights(encoder, str(folder), "--text_encoder")
    token_ids, token_mask = map(torch.from_numpy, tokenize(tokenizer_from_flags(args, config)[0], [
        "the gray ship on the left", "a ship"], 9))
    words = encoder.eval()(token_ids, token_mask)
    own = getattr(model, "text_model", model)
    expected = own(token_ids, attention_mask=None if kind.startswith("siglip") else token_mask).last_hidden_state
    real = token_mask.bool()
    assert words.shape == (2, 9, 16) and real.sum(1).tolist() != [9, 9]
    torch.testing.assert_close(words[real], expected[real], rtol=1e-5, atol=1e-6)


def test_what_is_stored_gives_the_same_configuration_and_tokens_without_the_folder(saved):
    _, folder, _ = saved
    args = flags(folder)
    config = config_from_flags(args)
    plain = json.loads(json.dumps(plain_config(config)))
    again = text_config(plain, "a checkpoint")
    assert type(again) is type(config) and plain_config(again) == plain and positions(again) == positions(config)
    tokenizer = tokenizer_from_flags(args, config)[0]
    stored = stored_tokenizer(tokenizer.to_str(), again)
    assert rows_of(stored, ["the ship", "a " * 12], 8) == rows_of(tokenizer, ["the ship", "a " * 12], 8)
    states = [make_text_encoder(text).state_dict() for text in (config, again)]
    assert {name: value.shape for name, value in states[0].items()} == {
        name: value.shape for name, value in states[1].items()}


# Vocabularies by hand: 0 to 4 special tokens, then a gray left on ship the; CLIP has three special ones, SigLIP two.
@pytest.mark.parametrize(("kind", "short", "cut"), [
    ("clip", [1, 8, 7, 2, 2, 2], [1, 8, 4, 7, 6, 2]),                     # <|endoftext|> ends, and pads
    ("roberta", [0, 10, 9, 2, 1, 1], [0, 10, 6, 9, 8, 2]),
    ("siglip", [7, 6, 1, 1, 1, 1], [7, 3, 6, 5, 7, 1]),                   # no token begins
    ("modernbert", [2, 10, 9, 3, 0, 0], [2, 10, 6, 9, 8, 3]),
    ("bert", [2, 10, 9, 3, 0, 0], [2, 10, 6, 9, 8, 10]),                  # as in the original programs
])
def test_rows_have_the_encoders_frame_and_padding_and_keep_its_end_when_cut(tmp_path, kind, short, cut):
    save_encoder(tmp_path, kind)
    save_tokenizer(tmp_path, kind)
    args = flags(tmp_path)
    tokenizer = tokenizer_from_flags(args, config_from_flags(args))[0]
    ids, mask = tokenize(tokenizer, ["the ship", "The gray ship on the left"], 6)
    assert ids.tolist() == [short, cut]
    length = short.index(2) + 1 if kind == "clip" else 3 if kind == "siglip" else 4
    assert mask.tolist() == [[1] * length + [0] * (6 - length), [1] * 6]
    assert short[layout_of(tokenizer).words(length, 6)] == [short[length - 3], short[length - 2]]   # the, ship


def test_a_tokenizer_that_pads_on_the_left_is_followed(tmp_path):
    save_encoder(tmp_path, "electra")
    save_tokenizer(tmp_path, "electra", padding_side="left")
    args = flags(tmp_path)
    tokenizer = tokenizer_from_flags(args, config_from_flags(args))[0]
    ids, mask = map(torch.from_numpy, tokenize(tokenizer, ["the ship"], 6))
    assert ids.tolist() == [[0, 0, 2, 10, 9, 3]] and mask.tolist() == [[0, 0, 1, 1, 1, 1]]
    assert ids[0, layout_of(tokenizer).words(4, 6)].tolist() == [10, 9]
    stored = RefTokens(np.array([0, 1]), ids.numpy(), np.array([4]), pads_left=True)(0, 0)
    assert torch.equal(stored["token_ids"], ids[0]) and torch.equal(stored["token_mask"], mask[0])
    strip = heat_strip(torch.ones(6, 2, 2), ids[0], mask[0], tokenizer)
    assert [token for token, _ in strip] == ["[CLS]", "the", "ship", "[SEP]"]


def test_the_published_classes_of_clips_and_robertas_tokenizers_are_read(tmp_path):
    """CLIP's marks the end of a word, RoBERTa's its beginning; "ship" is one token of either."""
    frame = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    clip = {"<|startoftext|>": 0, "<|endoftext|>": 1, **{piece: place for place, piece in enumerate(
        ["s", "h", "i", "p", "p</w>", "sh", "ip</w>", "ship</w>"], 2)}}
    roberta = {**frame, **{piece: place for place, piece in enumerate(
        ["s", "h", "i", "p", "Ġ", "sh", "ip", "ship", "Ġship"], 5)}}
    save_encoder(tmp_path / "clip", "clip")
    CLIPTokenizer(clip, [("s", "h"), ("i", "p</w>"), ("sh", "ip</w>")]).save_pretrained(tmp_path / "clip")
    save_encoder(tmp_path / "roberta", "roberta")
    RobertaTokenizer(roberta, [("s", "h"), ("i", "p"), ("sh", "ip"), ("Ġ", "ship")]).save_pretrained(
        tmp_path / "roberta")
    for kind, expected, problems in (("clip", [0, 9, 9, 1, 1], []), ("roberta", [0, 12, 13, 2, 1], [])):
        args = flags(tmp_path / kind)
        tokenizer = tokenizer_from_flags(args, config_from_flags(args))[0]
        assert tokenize(tokenizer, ["ship ship"], 5)[0].tolist() == [expected]
        assert reading_problems(tokenizer, "ship ship") == problems
        assert "'ship' (a sentence has at most 4 tokens)" in reading_problems(tokenizer, "ship ship ship", 4)[-1]


def test_a_causal_encoder_reads_the_words_before_and_an_empty_mask_reads_all():
    real, all_near = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0]]).bool(), torch.ones(4, 4).bool()
    before = all_near.tril()
    assert visible(real, before).int().tolist() == [
        [[[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0]]],   # the first sees no real token: all before it
        [before.int().tolist()]]
    assert visible(real, all_near).int().tolist() == [[[[0, 1, 1, 0]] * 4], [[[1] * 4] * 4]]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "changes"), [("clip", [0, 0, 0, 1, 1]), ("roberta", [1] * 5),
                                               ("modernbert", [0, 1, 1, 1, 1])])
def test_a_later_word_changes_what_the_encoders_order_allows(tmp_path, kind, changes):
    """ModernBERT, here with one layer: two places on either side. CLIP: the words after it alone."""
    more = {"layer_types": ["sliding_attention"], "num_hidden_layers": 1} if kind == "modernbert" else {}
    save_encoder(tmp_path, kind, **more)
    encoder = make_text_encoder(config_from_flags(flags(tmp_path))).double().eval()
    ids = torch.tensor([[11, *WORDS], [11, 5, 6, 9, 8]])
    first, second = encoder(ids, torch.ones_like(ids))
    assert (first - second).abs().amax(1).gt(1e-12).int().tolist() == changes


@pytest.mark.usefixtures("narrow_nano")
@pytest.mark.parametrize("model", ["lavt", pytest.param("lgce", marks=pytest.mark.slow),
                                   pytest.param("rmsin", marks=pytest.mark.slow)])
def test_a_network_trains_and_comes_back_from_its_checkpoint_without_the_folder(clip, tmp_path, model):
    args = flags(clip, "--model", model)
    network, config, tokenizer = make_network(args, {})
    freeze_text(network, 10, False, last_layers=1)
    image, ids, mask = make_inputs(2, 64, vocabulary=9)
    network.train()(image, ids, mask).square().mean().backward()
    assert {re.match(r"(encoder\.layers\.\d|\w+)", name)[1] for name, value in
            network.text_encoder.encoder.named_parameters() if value.grad is not None and value.grad.any()
            } == {"encoder.layers.1", "final_layer_norm"}
    torch.optim.SGD([value for value in network.parameters() if value.requires_grad], 0.1).step()
    network.eval()
    save_checkpoint(tmp_path / "c.pth", {"model": network.state_dict(), **describe_model(config, tokenizer)})
    again, config_again, tokenizer_again = restore(str(tmp_path / "c.pth"), None)
    assert config_again == config and "clip_text_model" in config.text["model_type"]
    words = [torch.tensor(part) for part in rows_of(tokenizer_again, ["the gray ship", "a"], 20)]
    assert [part.tolist() for part in words] == rows_of(tokenizer, ["the gray ship", "a"], 20)
    with torch.no_grad():
        assert torch.equal(again(image, *words), network(image, *words))
    predictor = Predictor(tmp_path / "c.pth", device="cpu")
    assert predictor.words("the gray ship") == ["the", "gray", "ship"]
    assert predictor.attention(np.zeros((8, 8, 3), np.uint8), "the gray ship").shape == (3, 8, 8)


def test_layers_train_from_the_words_down(clip):
    encoder = make_text_encoder(config_from_flags(flags(clip)))
    network = Namespace(text_encoder=encoder)

    def trained(**settings) -> set[str]:
        freeze_text(network, 10, **settings)
        return {re.match(r"encoder\.(encoder\.layers\.\d|\w+)", name)[1].removeprefix("encoder.")
                for name, value in encoder.named_parameters() if value.requires_grad}

    assert trained(embeddings=False) == {"layers.0", "layers.1", "final_layer_norm"}
    assert trained(embeddings=False, last_layers=1) == {"layers.1", "final_layer_norm"}
    assert trained(embeddings=True, last_layers=0) == {"embeddings"}
    assert trained(embeddings=False, last_layers=0) == set()
    network.text_encoder = TextEncoder(BertConfig(**{**TEXT, "num_hidden_layers": 4}))
    for settings, expected in (({"layers": 3}, "0 1 2"), ({"layers": 3, "last_layers": 1}, "3")):
        freeze_text(network, embeddings=False, **settings)
        assert {name.split(".")[3] for name, value in network.text_encoder.named_parameters() if value.requires_grad
                } == {*expected.split()}


def test_bert_as_text_encoder_is_ck_berts(toy):
    """The same folder under either flag: the same settings, tokenizer and kind of network."""
    folder = str(toy / "bert")
    old = get_parser().parse_args(["--model", "lavt", "--swin_type", "nano", "--img_size", "64", "--ck_bert", folder,
                                   "--bert_tokenizer", folder])
    (config, tokenizer), (other, other_tokenizer) = (model_settings(args, {}) for args in (old, flags(folder)))
    assert config == other and tokenizer.to_str() == other_tokenizer.to_str()
    assert not isinstance(build(other).text_encoder, FamilyEncoder)


def test_the_masked_pass_finds_other_vocabularies_tokens(tmp_path, clip):
    save_encoder(tmp_path, "roberta")
    save_tokenizer(tmp_path, "roberta")
    args = flags(tmp_path)
    disturbance = Disturbance(tokenizer_from_flags(args, config_from_flags(args))[0])
    assert disturbance.mask_token == 4 and disturbance.kept == [0, 2]
    with pytest.raises(UserError, match="needs a tokenizer with a token"):
        Disturbance(tokenizer_from_flags(flags(clip), config_from_flags(flags(clip)))[0])


def test_a_name_is_looked_up_in_the_hubs_cache(tmp_path, hub_cache, monkeypatch):
    save_encoder(tmp_path / "files", "mpnet")
    save_tokenizer(tmp_path / "files", "mpnet")
    put_into(hub_cache, "someone/mpnet", tmp_path / "files")
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    args = flags("someone/mpnet")
    encoder = make_text_encoder(config := config_from_flags(args))
    assert load_text_weights(encoder, args.text_encoder, "--text_encoder") and encoder.name == "mpnet"
    assert rows_of(tokenizer_from_flags(args, config)[0], ["ship"], 4)[0] == [[0, 9, 2, 1]]
    with pytest.raises(UserError, match="--text_encoder nobody/nothing: no such folder, and the Hugging Face hub did"):
        config_from_flags(flags("nobody/nothing"))


@pytest.mark.parametrize(("content", "said"), [
    (ViTConfig().to_dict(), r"of the type 'vit', which is no text encoder that this code has; it has bert, distilbert"),
    ({"model_type": "gpt2"}, "of the type 'gpt2', which is no text encoder"),
    ({"model_type": 3}, "of the type 3, which is no text encoder"),
    ({"hidden_size": 16}, "names no model_type"),
    ({"model_type": "roberta", "num_hidden_layers": 10**6}, "num_hidden_layers must be a whole number, 0 to 96"),
    ({"model_type": "roberta", "is_decoder": True}, "is_decoder must be False"),
    ({"model_type": "roberta", "num_attention_heads": 5}, "is impossible: no roberta can be built of it"),
    ({"model_type": "modernbert", "layer_types": ["full_attention"]}, "is impossible: no modernbert"),
    ({"model_type": "clip", "text_config": {"pad_token_id": 10**6}}, "is impossible: no clip_text_model"),
])
def test_what_is_no_text_encoder_is_one_line(tmp_path, content, said):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=said) as error:
        config_from_flags(flags(tmp_path))
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_does_not_fit_is_one_line(tmp_path, clip):
    save_encoder(tmp_path, "roberta")
    for said, more in (("the folder has no tokenizer", ()),
                       ("pads with token 2, and the encoder counts positions by the padding 1",
                        ("--bert_tokenizer", str(clip)))):
        with pytest.raises(UserError, match=said):
            model_settings(flags(tmp_path, *more), {})
    tokenizer = tokenizer_from_flags(flags(clip), config := config_from_flags(flags(clip)))[0]
    tokenizer.enable_padding(pad_id=10**6, length=512)   # what a stranger's checkpoint may say
    assert words_needed(again := stored_tokenizer(tokenizer.to_str(), config)) == 10**6 + 1
    assert len(again.encode("a ship").ids) == 4
    for words, said in (([f"w{number}" for number in range(12)], "has 17 tokens, more than the 16 of the text encoder"),
                        ((), "has 5 tokens, far fewer than the 16 of the text encoder")):
        save_tokenizer(tmp_path, "roberta", words)
        with pytest.raises(UserError, match=said):
            model_settings(flags(tmp_path), {})
    with pytest.raises(UserError, match="has positions for 38 tokens"):   # RoBERTa's begin after the padding's
        model_settings(flags(tmp_path, "--max_tokens", "39"), {})


def test_a_network_that_marks_words_needs_one_token_before_them(tmp_path, clip):
    assert model_settings(flags(clip, "--model", "fianet"), {})[0].reads_phrases
    save_encoder(tmp_path, "siglip")
    save_tokenizer(tmp_path, "siglip", [f"w{number}" for number in range(10)])
    with pytest.raises(UserError, match=r"fianet marks phrases from the second token .* has 0 tokens before the words"):
        model_settings(flags(tmp_path, "--model", "fianet"), {})


def test_weights_that_lack_entries_are_one_line(tmp_path):
    model = save_encoder(tmp_path, "distilbert")
    model.transformer.layer = model.transformer.layer[:1]
    model.save_pretrained(tmp_path, safe_serialization=True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "distilbert", **KINDS["distilbert"][1]}))
    encoder = make_text_encoder(config_from_flags(flags(tmp_path)))
    with pytest.raises(UserError, match=r"--text_encoder .* the weights lack 16 entries of distilbert"):
        load_text_weights(encoder, str(tmp_path), "--text_encoder")


@pytest.mark.parametrize("more", [("--ck_bert", "x"), ("--init_from", "x"),
                                  ("--text_layers", "1", "--bert_layers", "2")])
def test_flags_that_contradict_each_other_are_one_line(more, capsys):
    with pytest.raises(SystemExit) as ended:
        flags("x", *more)
    assert ended.value.code == 2 and "exclude each other" in capsys.readouterr().err


def test_train_refuses_in_one_line_and_with_status_2(clip, toy, tmp_path):
    common = ["train.py", "--refer_data_root", toy, "--swin_type", "nano", "--img_size", 64, "--workers", 0]
    assert_refused(run_script(*common, "--ck_bert", clip, cwd=tmp_path), "of the type 'clip'",
                   f"give --text_encoder {clip}")
    assert_refused(run_script(*common, "--text_encoder", clip, "--bert_layers", 1, cwd=tmp_path),
                   "--bert_layers 1 counts the first layers of a BERT, and the text encoder is clip_text_model")


@pytest.mark.slow
@pytest.mark.usefixtures("narrow_nano")
def test_a_run_goes_on_and_is_evaluated_where_the_folder_is_gone(toy, tmp_path):
    save_encoder(tmp_path / "clip", "clip", vocab_size=60)
    save_tokenizer(tmp_path / "clip", "clip", grammar_words())
    data = ["--refer_data_root", toy, "--dataset", "rrsisd", "--workers", 0]
    train = ["train.py", *data, "--swin_type", "nano", "--img_size", 64, "--model", "lavt", "--batch-size", 8,
             "--epochs", 1, "--passes", 1, "--text_encoder", "clip", "--text_lora", 2, "--model_id", "clip"]
    done = run_script(*train, cwd=tmp_path)
    assert done.returncode == 0 and "clip_text_model starts from clip" in done.stdout, done.stderr
    assert "UNEXPECTED" not in done.stdout + done.stderr
    (tmp_path / "clip").rename(tmp_path / "gone")
    done = run_script(*train, "--resume", "auto", cwd=tmp_path)
    assert done.returncode == 0 and "resuming from" in done.stdout, done.stderr
    done = run_script("test.py", *data, "--resume", "checkpoints/model_last_clip.pth", "--split", "val", "--report",
                      "report", "--report_attention", cwd=tmp_path)
    assert done.returncode == 0 and "Mean IoU is" in done.stdout, done.stderr


def test_every_family_has_a_test():
    assert {*FAMILIES} <= {*KINDS, *(f"{kind}_text_model" for kind in KINDS)}
