"""Checkpoints that somebody made to do harm, or that are broken in ways no checksum shows: one line, little memory."""
import hashlib
import json
import re
import zipfile

import numpy as np
import pytest
import torch

from args import get_parser
from bert import load_tokenizer
from lib.checkpoint import (
    describe_model,
    load_checkpoint,
    load_swin_weights,
    read_checkpoint,
    restore,
    save_checkpoint,
    strict_loading,
)
from lib.checkpoint.starting import make_network
from lib.segmentation import ModelConfig
from utils import UserError


@pytest.fixture
def checkpoint(nano, toy) -> dict:
    network = nano("lavt")
    config = ModelConfig("lavt", "nano", 4, 64, (1, 1, 1, 1), 0.0, network.text_encoder.config.to_diff_dict())
    return {"model": network.state_dict(), "epoch": 3, **describe_model(config, load_tokenizer(str(toy / "bert")))}


def refusal(checkpoint: dict, tmp_path) -> str:
    """The error of restoring a file that holds it."""
    torch.save(checkpoint, tmp_path / "c.pth")
    with pytest.raises(UserError) as refused:
        restore(str(tmp_path / "c.pth"), None)
    assert "\n" not in str(refused.value)
    return str(refused.value)


NAME = "backbone.norms.0.weight"


def spoilt(value: torch.Tensor, number: float) -> torch.Tensor:
    value = value.clone()
    value[3] = number
    return value


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda value: spoilt(value, float("nan")), "1 with NaN or infinite values: " + NAME),
    (lambda value: spoilt(value, float("-inf")), "1 with NaN or infinite values: " + NAME),
    (lambda value: value.to(torch.complex64), NAME + " is of torch.complex64, needed torch.float32"),
    (lambda value: value.to(torch.int64), NAME + " is of torch.int64, needed torch.float32"),
    (lambda value: value > 0, NAME + " is of torch.bool, needed torch.float32"),
    (lambda value: value.to(torch.float8_e4m3fn), NAME + " is of torch.float8_e4m3fn, needed torch.float32"),
    (lambda value: value.to_sparse(), NAME + " is no dense tensor with values (torch.sparse_coo"),
    (lambda value: value.to("meta"), NAME + " is no dense tensor with values (torch.strided, meta"),
    (lambda value: torch.nested.nested_tensor([value, value[:1]]), "holds nested tensors, which no network here has"),
    (lambda value: [1.0], NAME + " is no tensor but a list, needed (32,)"),
    (lambda value: torch.tensor(1.0), NAME + " is (), needed (32,)"),
    (lambda value: value[:1].expand(10**12), NAME + " is (1000000000000,), needed (32,)")])
def test_weights_that_are_no_real_finite_numbers_are_refused_by_name(checkpoint, tmp_path, spoil, message):
    checkpoint["model"][NAME] = spoil(checkpoint["model"][NAME])
    assert message in refusal(checkpoint, tmp_path)


def test_an_integer_weight_does_not_pass_as_a_float_one_nor_the_other_way(checkpoint, nano, tmp_path):
    name = next(name for name in checkpoint["model"] if name.endswith("num_batches_tracked"))
    checkpoint["model"][name] = checkpoint["model"][name].float()
    assert f"{name} is of torch.float32, needed torch.int64" in refusal(checkpoint, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_taken(checkpoint, nano, tmp_path, dtype):
    checkpoint["model"] = {name: value.to(dtype) if value.is_floating_point() else value
                           for name, value in checkpoint["model"].items()}
    torch.save(checkpoint, tmp_path / "c.pth")
    assert restore(str(tmp_path / "c.pth"), None)[0].backbone.norms[0].weight.dtype == torch.float32


def test_swin_weights_are_held_to_the_same(nano, tmp_path):
    backbone = nano("lavt").backbone
    state = {name: value for name, value in backbone.state_dict().items()
             if not any(part in name for part in ("fusion", "gate", "norms."))}
    for table in (torch.zeros(50, 1), torch.zeros(49), torch.zeros(49, 1, dtype=torch.complex64)):
        torch.save({**state, "stages.0.blocks.0.attn.relative_position_bias_table": table}, tmp_path / "s.pth")
        if table.shape != (49, 1) or table.is_complex():
            with pytest.raises(UserError, match=r"relative_position_bias_table is "):
                load_swin_weights(backbone, tmp_path / "s.pth")
    torch.save({**state, 3: torch.zeros(1)}, tmp_path / "s.pth")
    with pytest.raises(UserError, match="its entries are not named"):
        load_swin_weights(backbone, tmp_path / "s.pth")


def text(**changes) -> callable:
    return lambda config: config["text"].update(changes)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda config: config.update(swin_type="gigantic"), "config: swin_type must be one of 'nano', 'tiny'"),
    (lambda config: config.update(model="sam"), "config: model must be one of 'rmsin', 'lavt'"),
    (lambda config: config.pop("window"), "config: window must be a whole number, 1 to 32, but is missing"),
    (lambda config: config.update(depth=3), "config: has 'depth', which is not known"),
    (lambda config: config.update(window="4"), "config: window must be a whole number, 1 to 32, but is '4'"),
    (lambda config: config.update(img_size=10**6), "config: img_size must be a whole number, 1 to 4096"),
    (lambda config: config.update(fusion_heads=[1, 1]), "config: fusion_heads must be a list of 4, but is [1, 1]"),
    (lambda config: config.update(fusion_heads=[0, 1, 1, 1]), "config: fusion_heads[0] must be a whole number"),
    (lambda config: config.update(fusion_drop=float("nan")), "config: fusion_drop must be a number, 0 to 1"),
    (lambda config: config.update(text=[]), "config: text must be an object"),
    (text(num_hidden_layers=10**6), "text: num_hidden_layers must be a whole number, 0 to 96, but is 1000000"),
    (text(hidden_size=2**40), "text: hidden_size must be a whole number"),
    (text(vocab_size=-1), "text: vocab_size must be a whole number"),
    (text(hidden_act="os.system"), "text: hidden_act must be a text, the name of an activation, but is 'os.system'"),
    (text(hidden_act=["gelu"]), "text: hidden_act must be a text"),
    (text(num_attention_heads=3), "text: is impossible: 3 heads do not divide a hidden_size of"),
    (text(pad_token_id=10**6), "text: is impossible: pad_token_id 1000000 is outside the vocabulary"),
    (text(is_decoder=True), "text: is_decoder must be False, but is True"),
    (text(layer_norm_eps="0"), "text: layer_norm_eps must be a number")])
def test_a_config_that_describes_no_network_is_refused_field_by_field(checkpoint, tmp_path, damage, message):
    damage(checkpoint["config"])
    assert message in refusal(checkpoint, tmp_path)


def test_a_checkpoint_whose_config_is_no_object_is_one_line(checkpoint, tmp_path):
    assert "the checkpoint's config: must be an object with model, " in refusal({**checkpoint, "config": 7}, tmp_path)


def test_what_does_not_change_the_text_encoder_may_stand_in_its_config(checkpoint, tmp_path):
    checkpoint["config"]["text"].update(_name_or_path="x", output_hidden_states=True, return_dict=False)
    torch.save(checkpoint, tmp_path / "c.pth")
    network = restore(str(tmp_path / "c.pth"), None)[0]
    assert network(torch.zeros(1, 3, 64, 64), torch.zeros(1, 20).long(), torch.ones(1, 20).long()).shape[1] == 2


def test_a_huge_network_is_refused_before_it_takes_memory(checkpoint, tmp_path, monkeypatch):
    """The config is within all limits, but larger than its weights: shapes are compared on `meta` first."""
    built = []

    def build(config):
        built.append(torch.get_default_device().type)
        return strict_build(config)

    strict_build = strict_loading.build
    monkeypatch.setattr(strict_loading, "build", build)
    checkpoint["config"]["text"].update(hidden_size=4096, num_hidden_layers=96, intermediate_size=16384)   # 100 GB
    assert "missing: " in refusal(checkpoint, tmp_path)
    assert built == ["meta"]


def test_starting_from_a_huge_or_nameless_file_is_one_line(checkpoint, tmp_path):
    """`--init_from` reads untrusted files, too."""
    flags = ["--init_from", str(tmp_path / "c.pth"), "--model", "lavt"]
    huge = {**checkpoint["config"], "text": {**checkpoint["config"]["text"], "hidden_size": 4096,
                                             "num_hidden_layers": 96, "intermediate_size": 16384}}
    for change, message in (({"config": huge}, "missing: "), ({"model": None}, "no 'model'"),
                            ({"tokenizer": "x"}, "text is damaged")):
        torch.save({**checkpoint, **change}, tmp_path / "c.pth")
        with pytest.raises(UserError, match=message):
            make_network(get_parser().parse_args(flags), {})


def test_entries_that_inflate_are_refused_before_they_are_read(tmp_path):
    torch.save({"model": {"a": torch.zeros(1 << 20)}}, tmp_path / "c.pth")
    with zipfile.ZipFile(tmp_path / "c.pth") as stored, \
            zipfile.ZipFile(tmp_path / "d.pth", "w", zipfile.ZIP_DEFLATED) as deflated:
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    with pytest.raises(UserError, match="its entries inflate to 4 MiB, more than the file has"):
        read_checkpoint(tmp_path / "d.pth")
    digest = hashlib.sha256((tmp_path / "d.pth").read_bytes()).hexdigest()
    (tmp_path / "d.pth.sha256").write_text(f"{digest}  d.pth\n")
    with pytest.raises(UserError, match="its entries inflate"):   # a stranger writes the SHA-256 as well
        read_checkpoint(tmp_path / "d.pth")


# A regular expression that takes gigabytes to build.
REPLACE = {"type": "Replace", "pattern": {"Regex": "(((a{100}){100}){100}){100}"}, "content": "b"}


@pytest.mark.parametrize("damage", [
    lambda tokenizer: "{", lambda tokenizer: "", lambda tokenizer: 7, lambda tokenizer: "[" * 100_000,
    lambda tokenizer: json.dumps({**json.loads(tokenizer), "model": None}),
    lambda tokenizer: json.dumps({**json.loads(tokenizer), "normalizer": {"type": "None such"}}),
    lambda tokenizer: json.dumps({**json.loads(tokenizer), "normalizer": REPLACE}),
    lambda tokenizer: json.dumps({**json.loads(tokenizer), "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Lowercase"}, {"type": "Sequence", "normalizers": [REPLACE]}]}}),
    lambda tokenizer: json.dumps({**json.loads(tokenizer), "pre_tokenizer": {
        "type": "Split", "pattern": REPLACE["pattern"], "behavior": "Isolated", "invert": False}}),
    lambda tokenizer: tokenizer[:len(tokenizer) // 2]])
def test_a_damaged_tokenizer_is_one_line(checkpoint, tmp_path, damage):
    assert "the tokenizer's text is damaged" in refusal(
        {**checkpoint, "tokenizer": damage(checkpoint["tokenizer"])}, tmp_path)


def with_vocabulary(content: dict) -> None:
    content["model"]["vocab"]["ship"] = 100_000


def with_frame(content: dict) -> None:
    for token in content["post_processor"].get("special_tokens", {}).values():
        token["ids"] = [100_000]
    for name in {"cls", "sep"} & content["post_processor"].keys():
        content["post_processor"][name][1] = 100_000


@pytest.mark.parametrize("damage", [with_vocabulary, with_frame])
def test_token_ids_beyond_the_vocabulary_are_refused(checkpoint, tmp_path, damage):
    damage(content := json.loads(checkpoint["tokenizer"]))
    assert "the checkpoint's tokenizer has 100001 tokens, more than the " in refusal(
        {**checkpoint, "tokenizer": json.dumps(content)}, tmp_path)


@pytest.mark.parametrize("saved", [{"mha": 3}, {"mha": "1-2"}, {"mha": "x" * 50}, {"img_size": "480"}])
def test_saved_flags_of_a_file_are_checked_before_they_are_believed(nano, tmp_path, saved):
    torch.save({"model": nano("lavt_one").state_dict(), "args": saved}, tmp_path / "c.pth")
    flags = ["--model", "lavt_one", "--swin_type", "nano", "--resume", str(tmp_path / "c.pth")]
    with pytest.raises(UserError, match="the checkpoint's args: "):
        restore(str(tmp_path / "c.pth"), get_parser().parse_args(flags))


@pytest.mark.parametrize("content", [
    {"model": {}}, {"model": {3: torch.zeros(1)}}, {"model": {"x": 3}}, {"model": {}, "bert_model": [1]},
    {"model": {"backbone.layers.0.fusion.vis_project.0.weight": 7}, "bert_model": {"x": None}},
    {"model": {"patch_embed.proj.weight": torch.tensor(1.0)}}, {"model": []}, {3: 4}])
def test_whatever_a_file_holds_is_one_line(nano, tmp_path, content):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(UserError, match=r"c\.pth"):
        load_checkpoint(nano("lavt"), tmp_path / "c.pth")


# The SHA-256 beside a file

@pytest.mark.parametrize("form", ["{digest}  c.pth\n", "{upper}  c.pth\n", "SHA256 (c.pth) = {digest}\n",
                                  "SHA256 (c.pth) = {upper}", "{digest} *c.pth\r\n", "\\{digest}  c.pth\n"])
def test_every_usual_form_of_a_sha256_is_understood(tmp_path, form):
    save_checkpoint(tmp_path / "c.pth", {"model": {}})
    digest = hashlib.sha256((tmp_path / "c.pth").read_bytes()).hexdigest()
    for right, wrong in ((digest, False), (digest[::-1], True)):
        (tmp_path / "c.pth.sha256").write_text(form.format(digest=right, upper=right.upper()))
        if wrong:
            with pytest.raises(UserError, match="its SHA-256 is not the one in"):
                read_checkpoint(tmp_path / "c.pth")
        else:
            assert read_checkpoint(tmp_path / "c.pth") == {"model": {}}


def test_a_sha256_that_is_none_counts_as_damage(tmp_path):
    save_checkpoint(tmp_path / "c.pth", {"model": {}})
    (tmp_path / "c.pth.sha256").write_text("3f2a  c.pth\n")
    with pytest.raises(UserError, match="its SHA-256 is not the one in"):
        read_checkpoint(tmp_path / "c.pth")


def test_a_failing_disk_is_one_line(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "c.pth", {"model": {}})

    def fail(path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("lib.checkpoint.files.sha256_of", fail)
    with pytest.raises(UserError, match=r"c\.pth is damaged: it cannot be read \(\[Errno 5\] Input/output error\)"):
        read_checkpoint(tmp_path / "c.pth")


def test_a_number_of_numpy_is_refused_whole_and_with_the_remedy(checkpoint, tmp_path):
    said = refusal({**checkpoint, "best_oIoU": np.float64(51.5)}, tmp_path)
    assert re.search(r"a number or array of NumPy \(numpy\S*\.scalar\); write float\(x\)", said)
    assert "save the weights alone" in said
