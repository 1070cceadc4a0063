"""Checkpoints: whole or not at all, strict, plain data only, self-contained; Swin's weights; the official layout."""
import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from args import get_parser
from bert import load_tokenizer
from lib.checkpoint import load_checkpoint, load_swin_weights, read_checkpoint, save_checkpoint
from lib.checkpoint.official_layout import (
    FIANET_NAMES,
    IGNORED,
    NAMES,
    from_official,
    is_ignored,
    native_name,
    official_names,
    to_official,
)
from lib.checkpoint.settings import describe_model, model_settings, refuse_other_heads
from lib.checkpoint.swin_weights import resize_bias_table
from lib.segmentation import ModelConfig, build_model
from tests.launch import ROOT, run_script
from tests.network.parity import fill
from tools.convert_checkpoint import convert as convert_contents
from utils import UserError

PARITY = ROOT / "tests/network/parity"
SPECS = ["rmsin_tiny", "lavt_tiny", "lavt_one_tiny", "rmsin_base", "lavt_base", "lavt_one_base", "lgce_base",
         "fianet_base"]


def official_keys(case: str) -> dict[str, dict[str, list]]:
    """{part: {key: [shape, dtype]}} of an original checkpoint."""
    return json.loads((PARITY / f"{case}.keys.json").read_text())


@pytest.mark.parametrize("case", SPECS)
def test_the_official_names_and_shapes_come_out_exactly(case):
    """The keys of a checkpoint that is written are the original ones, except for those of LGCE that have no effect."""
    model, swin_type = case.rsplit("_", 1)
    flags = ["--model", model, "--swin_type", swin_type, *(["--window12"] if swin_type == "base" else [])]
    with torch.device("meta"):
        network = build_model(get_parser().parse_args(flags))
    written = to_official(network.state_dict(), split_text=model == "lavt")
    shapes = {part: {name: list(value.shape) for name, value in state.items()} for part, state in written.items()}
    assert shapes == {part: {name: shape for name, (shape, _) in keys.items() if not has_no_effect(name)}
                      for part, keys in official_keys(case).items()}


def has_no_effect(name: str) -> bool:
    """Whether an original entry is lost: entries that are computed anew in writing are not."""
    return is_ignored(name) and not name.endswith("index")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["rmsin_tiny", "lavt_tiny", "lavt_one_tiny", "lgce_base", "fianet_base"])
def test_official_to_native_and_back_is_bit_equal(case):
    """The base cases leave out the text encoder, which takes long."""
    spec = {part: {name: row for name, row in keys.items() if case.endswith("tiny") or "text_encoder." not in name}
            for part, keys in official_keys(case).items()}
    published = fill.checkpoint(spec)
    again = to_official(from_official(published), split_text="bert_model" in published)
    assert again.keys() == published.keys()
    for part, state in published.items():
        assert again[part].keys() == {name for name in state if not has_no_effect(name)}
        assert all(torch.equal(state[name], value) for name, value in again[part].items())


def test_every_row_of_the_tables_translates_both_ways():
    for table, mark in ((NAMES, []), (FIANET_NAMES, ["backbone.stages.0.alignment.position_conv.weight"])):
        for native, official in table:
            name = native.replace("*", "2") + "weight"
            assert official_names([name, *mark])[name] == official.replace("*", "2") + "weight"
            assert native_name(official_names([name, *mark])[name]) == name


@pytest.mark.slow
def test_prefixes_poolers_and_index_tables_of_published_files_are_understood(tmp_path):
    published = fill.checkpoint(official_keys("lavt_tiny"))
    plain = from_official(published)
    published = {part: {f"module.{name}": value for name, value in state.items()} for part, state in published.items()}
    published["bert_model"]["module.pooler.dense.weight"] = torch.zeros(768, 768)
    published["bert_model"]["module.embeddings.position_ids"] = torch.arange(512)[None]
    assert from_official(published).keys() == plain.keys()
    assert len(IGNORED) == 6


def small_checkpoint(nano, toy, model="rmsin") -> dict:
    network = nano(model)
    config = ModelConfig(model, "nano", 4, 64, (1, 1, 1, 1), 0.0, network.text_encoder.config.to_diff_dict())
    return {"model": network.state_dict(), "epoch": 3, "args": {"lr": 1e-3},
            **describe_model(config, load_tokenizer(str(toy / "bert")))}


def test_a_checkpoint_comes_back_as_it_was(nano, toy, tmp_path):
    checkpoint = small_checkpoint(nano, toy)
    save_checkpoint(tmp_path / "new" / "c.pth", checkpoint)
    network = nano()
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    assert load_checkpoint(network, tmp_path / "new" / "c.pth")["epoch"] == 3
    assert all(torch.equal(value, checkpoint["model"][name]) for name, value in network.state_dict().items())
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["c.pth", "c.pth.sha256"]   # no temporary file remains


def test_a_checkpoint_needs_nothing_beside_it(nano, toy, tmp_path):
    save_checkpoint(tmp_path / "c.pth", small_checkpoint(nano, toy, "lavt"))
    checkpoint = read_checkpoint(tmp_path / "c.pth")
    args = get_parser().parse_args(["--ck_bert", "/nowhere", "--bert_tokenizer", "/nowhere"])
    config, tokenizer = model_settings(args, checkpoint)
    assert (config.model, config.swin_type, config.window, config.img_size) == ("lavt", "nano", 4, 64)
    assert tokenizer.encode("the ship").tokens == ["[CLS]", "the", "ship", "[SEP]"]


@pytest.mark.parametrize(("flags", "message"), [
    ("--model rmsin", "--model rmsin was given, but the checkpoint was trained with lavt"),
    ("--swin_type base", "--swin_type base was given, but the checkpoint was trained with nano"),
    ("--img_size 480", "--img_size 480 was given, but the checkpoint was trained with 64"),
    ("--window12", "--window12: window 12 was given, but the checkpoint was trained with 4"),
    ("--mha 2-2-2-2", r"--mha \(2, 2, 2, 2\) was given, but the checkpoint was trained with \(1, 1, 1, 1\)"),
])
def test_a_flag_that_contradicts_the_checkpoint_is_an_error(nano, toy, flags, message):
    checkpoint = small_checkpoint(nano, toy, "lavt")
    with pytest.raises(UserError, match=message):
        model_settings(get_parser().parse_args(flags.split()), checkpoint)
    agreeing = "--model lavt --swin_type nano --img_size 64 --mha 1-1-1-1"
    model_settings(get_parser().parse_args(agreeing.split()), checkpoint)


@pytest.mark.parametrize(("flags", "noted"), [("", True), ("--dataset rrsisd", False), ("--dataset risbench", False)])
def test_the_default_dataset_is_noted_if_the_checkpoint_was_trained_on_another(nano, toy, capsys, flags, noted):
    checkpoint = {**small_checkpoint(nano, toy, "rmsin"), "args": {"dataset": "risbench"}}
    model_settings(get_parser().parse_args(flags.split()), checkpoint)
    said = "trained on risbench, but the default, rrsisd, is read: give --dataset if you mean another"
    assert (said in capsys.readouterr().out) == noted


def test_loading_is_strict_and_changes_nothing_when_it_fails(nano, toy, tmp_path):
    checkpoint = small_checkpoint(nano, toy)
    state = checkpoint["model"]
    del state["decoder.head.bias"]
    state["decoder.extra"] = torch.zeros(1)
    state["decoder.head.weight"] = state["decoder.head.weight"].transpose(0, 1)
    save_checkpoint(tmp_path / "c.pth", checkpoint)
    network = nano()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UserError) as refused:
        load_checkpoint(network, tmp_path / "c.pth")
    text = str(refused.value)
    assert "1 missing: decoder.head.bias;" in text
    assert "1 unexpected: decoder.extra;" in text
    assert "1 of another shape: decoder.head.weight is (128, 2, 1, 1), needed (2, 128, 1, 1)" in text
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_missing_or_damaged_file_is_said_plainly(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(tmp_path / "c.pth")
    torch.save({"model": {"a": torch.zeros(1000)}}, tmp_path / "c.pth")
    content = (tmp_path / "c.pth").read_bytes()
    for damaged in (b"", b"hello", content[:len(content) // 2], content[: -20]):
        (tmp_path / "c.pth").write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged"):
            read_checkpoint(tmp_path / "c.pth")
    torch.save([1], tmp_path / "c.pth")
    with pytest.raises(UserError, match="holds a list"):
        read_checkpoint(tmp_path / "c.pth")
    torch.save({"weights": {}}, tmp_path / "c.pth")
    with pytest.raises(UserError, match="no 'model' entry with weights; it has weights"):
        load_checkpoint(torch.nn.Linear(1, 1), tmp_path / "c.pth")


class Touch:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_checkpoint_that_would_run_code_is_refused_and_nothing_runs(tmp_path):
    torch.save({"model": {}, "args": Touch(tmp_path / "canary")}, tmp_path / "c.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"model": Touch(tmp_path / "canary")}))
    for name in ("c.pth", "old.pth"):
        with pytest.raises(UserError, match=r"nothing in it was run|damaged"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "canary").exists()


def test_a_published_files_namespace_is_allowed(tmp_path):
    torch.save({"model": {}, "args": Namespace(lr=5e-5)}, tmp_path / "c.pth")
    assert read_checkpoint(tmp_path / "c.pth")["args"].lr == 5e-5


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "c.pth", {"model": {"a": torch.ones(1)}})

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"No space left on device; it needs about 4 MiB, \d+ MiB are free"):
        save_checkpoint(tmp_path / "c.pth", {"model": {"a": torch.ones(1 << 20)}})
    assert read_checkpoint(tmp_path / "c.pth")["model"]["a"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.pth", "c.pth.sha256"]


def test_a_flipped_bit_is_found(tmp_path):
    save_checkpoint(tmp_path / "c.pth", {"model": {"a": torch.ones(1000)}})
    content = bytearray((tmp_path / "c.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged: its SHA-256 is not the one in .*c\.pth\.sha256"):
        read_checkpoint(tmp_path / "c.pth")


def test_the_digest_is_sha256sums(tmp_path):
    save_checkpoint(tmp_path / "c.pth", {"model": {}})
    digest = hashlib.sha256((tmp_path / "c.pth").read_bytes()).hexdigest()
    assert (tmp_path / "c.pth.sha256").read_text() == f"{digest}  c.pth\n"


def test_kill_9_while_saving_leaves_a_loadable_checkpoint(tmp_path):
    fork = multiprocessing.get_context("fork")   # PyTorch is loaded here already

    def save_again_and_again(ready) -> None:
        for n in range(10**6):
            save_checkpoint(tmp_path / "c.pth", {"model": {"a": torch.ones(1 << 18)}, "n": n})
            ready.set()

    for delay in (0.0, 0.011, 0.023, 0.037):
        ready = fork.Event()
        saving = fork.Process(target=save_again_and_again, args=(ready,))
        saving.start()
        assert ready.wait(60)
        time.sleep(delay)
        saving.kill()
        saving.join()
        assert saving.exitcode == -signal.SIGKILL and read_checkpoint(tmp_path / "c.pth")["n"] >= 0


def swin_file(nano, window=4) -> dict[str, torch.Tensor]:
    """The content of a classification checkpoint of the nano variant, if there were one."""
    state = {}
    for name, value in nano("lavt", window=window).backbone.state_dict().items():
        if not any(part in name for part in ("fusion", "gate", "norms.")):
            state[name.replace("stages.", "layers.")] = torch.randn_like(value)
    extra = {"norm.weight": torch.ones(256), "head.bias": torch.zeros(1000),
             "layers.0.blocks.1.attn_mask": torch.ones(2),
             "layers.0.blocks.0.attn.relative_position_index": torch.zeros(2)}
    return {**state, **extra}


@pytest.mark.parametrize("form", [
    lambda state: {"model": state},
    lambda state: {"state_dict": state},
    lambda state: state,
    lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
    lambda state: {"state_dict": {f"backbone.{name}": value for name, value in state.items()}},
    lambda state: {"model": {f"encoder.{name}": value for name, value in state.items()}},
], ids=["model", "state_dict", "bare", "module.", "backbone.", "encoder."])
@pytest.mark.parametrize("model", ["rmsin", "lavt"])
def test_swin_weights_of_every_published_form(nano, tmp_path, form, model):
    state = swin_file(nano)
    torch.save(form(state), tmp_path / "swin.pth")
    backbone = nano(model).backbone
    said = load_swin_weights(backbone, tmp_path / "swin.pth")
    assert torch.equal(backbone.stages[1].blocks[1].mlp.fc1.weight, state["layers.1.blocks.1.mlp.fc1.weight"])
    assert torch.equal(backbone.patch_embed.norm.bias, state["patch_embed.norm.bias"])
    assert "0 bias tables resized" in said and "\n" not in said


def test_bias_tables_of_another_window_are_resized(nano, tmp_path):
    torch.save({"model": swin_file(nano, window=7)}, tmp_path / "swin.pth")
    backbone = nano("lavt").backbone
    assert "8 bias tables resized" in load_swin_weights(backbone, tmp_path / "swin.pth")


def test_resizing_a_bias_table_keeps_flat_ones_flat_and_the_middle_in_the_middle():
    assert torch.allclose(resize_bias_table(torch.full((49, 3), 2.5), 169), torch.full((169, 3), 2.5))
    peak = torch.zeros(7, 7, 2)
    peak[3, 3] = 1
    assert resize_bias_table(peak.view(49, 2), 169).view(13, 13, 2)[..., 0].argmax() == 6 * 13 + 6
    table = torch.randn(169, 3)
    torch.testing.assert_close(resize_bias_table(table, 169), table)


def test_swin_weights_of_another_variant_are_refused(nano, tmp_path):
    state = swin_file(nano)
    state["patch_embed.proj.weight"] = torch.zeros(96, 3, 4, 4)
    torch.save({"model": state}, tmp_path / "swin.pth")
    with pytest.raises(UserError, match=r"of another shape: .*patch_embed"):
        load_swin_weights(nano("lavt").backbone, tmp_path / "swin.pth")
    del state["layers.2.blocks.1.attn.qkv.weight"]
    torch.save({"model": state}, tmp_path / "swin.pth")
    with pytest.raises(UserError, match="1 missing"):
        load_swin_weights(nano("lavt").backbone, tmp_path / "swin.pth")
    with pytest.raises(UserError, match=r"does not exist; pretrained_weights/README\.md says where"):
        load_swin_weights(nano("lavt").backbone, tmp_path / "none.pth")


# What does not fit is explained


def refusal(network, state, tmp_path) -> str:
    """The error of loading a checkpoint in the original layout that holds `state`'s weights."""
    torch.save({"model": state}, tmp_path / "published.pth")
    with pytest.raises(UserError) as refused:
        load_checkpoint(network, tmp_path / "published.pth")
    return str(refused.value)


@pytest.mark.parametrize("model", ["rmsin", "lavt_one"])
def test_a_published_file_with_an_entry_less_one_more_and_one_turned_is_refused_by_name(nano, tmp_path, model):
    state = to_official(nano(model).state_dict(), split_text=False)["model"]
    load_checkpoint_of(nano(model), state, tmp_path)
    del state["backbone.layers.1.fusion.image_lang_att.f_key.0.bias"]
    state["backbone.layers.1.fusion.surplus"] = torch.zeros(1)
    state["classifier.conv1_4.weight"] = state["classifier.conv1_4.weight"].transpose(0, 1)
    text = refusal(nano(model), state, tmp_path)
    assert "1 missing: backbone.layers.1.fusion.image_lang_att.f_key.0.bias" in text
    assert "1 unexpected: backbone.layers.1.fusion.surplus" in text
    assert "1 of another shape: classifier.conv1_4.weight is (384, 128, 3, 3), needed (128, 384, 3, 3)" in text
    assert "suggest" not in text   # no flag would help


def load_checkpoint_of(network, state, tmp_path) -> None:
    torch.save({"model": state}, tmp_path / "whole.pth")
    load_checkpoint(network, tmp_path / "whole.pth")


def test_a_shape_that_loading_would_spread_is_refused(nano, tmp_path):
    """A scalar where a vector belongs, and something that is no tensor at all."""
    state = to_official(nano("lavt").state_dict(), split_text=False)["model"]
    state["backbone.norm0.weight"], state["backbone.norm0.bias"] = torch.tensor(1.0), [0.0] * 32
    text = refusal(nano("lavt"), state, tmp_path)
    assert "backbone.norm0.weight is (), needed (32,)" in text
    assert "backbone.norm0.bias is no tensor but a list, needed (32,)" in text


@pytest.mark.slow
@pytest.mark.parametrize(("stored", "built", "advice"), [
    ({"model": "rmsin"}, {"model": "lavt"}, "the weights suggest --model rmsin, --img_size 64"),
    ({"model": "lavt"}, {"model": "rmsin"}, "the weights suggest --model lavt"),
    ({"model": "lgce"}, {"model": "lavt"}, "the weights suggest --model lgce"),
    ({"model": "fianet", "num_tmem": 1}, {"model": "fianet"}, "the weights suggest --num_tmem 1"),
    ({"window": 12}, {}, "the weights suggest --window12"),
    ({}, {"window": 12}, "no --window12, for a window of 4, and --pretrained_swin_weights ''"),
    ({"img_size": 96}, {}, "the weights suggest --img_size 96"),
    ({"swin_type": "tiny", "window": 7}, {"window": 7}, "the weights suggest --swin_type tiny"),
    ({"swin_type": "small", "window": 7}, {"swin_type": "tiny", "window": 7}, "the weights suggest --swin_type small"),
])
def test_the_error_names_the_flags_that_would_fit(nano, tmp_path, stored, built, advice):
    text = refusal(nano(**built), to_official(nano(**stored).state_dict(), split_text=False)["model"], tmp_path)
    assert advice in text.partition("Nothing was loaded")[0]   # first, before what is wrong
    assert len(text) < 1000   # a summary, not a list of a thousand names


def test_remotesams_rmsin_was_trained_at_896(nano):
    """At this size CIM resizes 1080 tokens to 784."""
    assert nano("rmsin", img_size=896).cross_scale.block.attention1.token_project.weight.shape == (784, 1080)
    assert nano("rmsin", img_size=480).cross_scale.block.attention1.token_project.weight.shape == (225, 314)


# Conversion


def convert(source: Path, target: Path, layout: str) -> subprocess.CompletedProcess:
    return run_script("tools/convert_checkpoint.py", source, target, "--to", layout, cwd=target.parent)


def digests(state: dict[str, torch.Tensor]) -> dict[str, str]:
    return {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in state.items()}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lavt", "lavt_one", "rmsin"])
def test_conversion_there_and_back_keeps_every_bit(nano, toy, tmp_path, model):
    checkpoint = small_checkpoint(nano, toy, model)
    save_checkpoint(tmp_path / "native.pth", checkpoint)
    assert convert(tmp_path / "native.pth", tmp_path / "official.pth", "official").returncode == 0
    assert convert(tmp_path / "official.pth", tmp_path / "again.pth", "native").returncode == 0
    official, again = read_checkpoint(tmp_path / "official.pth"), read_checkpoint(tmp_path / "again.pth")
    assert ("bert_model" in official) == (model == "lavt")
    assert "classifier.conv1_1.weight" in official["model"] and official["args"] == Namespace(lr=1e-3)
    assert digests(again["model"]) == digests(checkpoint["model"])
    assert again["config"] == checkpoint["config"] and again["args"] == {"lr": 1e-3}
    load_checkpoint(nano(model), tmp_path / "official.pth")


@pytest.mark.parametrize("model", ["lgce", "fianet"])
def test_a_published_file_tells_lgce_and_fianet_apart(nano, toy, model):
    """The entries tell the network and the number of TMEM's blocks, which in turn tells the number of tokens."""
    network = nano(model, num_tmem=2)
    published = to_official(network.state_dict(), split_text=False)
    native = convert_contents(published, "native", "official.pth")
    config = ModelConfig.from_dict(native["config"])
    assert (config.model, config.swin_type, config.window) == (model, "nano", 4)
    assert (config.num_tmem, config.max_tokens) == ((2, 22) if model == "fianet" else (3, 20))
    assert digests(native["model"]) == digests(network.state_dict())
    assert digests(convert_contents(native, "official", "native.pth")["model"]) == digests(published["model"])


def test_a_published_file_becomes_native_by_what_its_weights_show(nano, tmp_path):
    text = {**nano().text_encoder.config.to_diff_dict(), "hidden_size": 64, "num_attention_heads": 1}
    network = nano("lavt", fusion_heads=(2, 2, 4, 4), text=text)
    published = {**to_official(network.state_dict(), split_text=True), "args": Namespace(mha="2-2-4-4", img_size=480)}
    torch.save(published, tmp_path / "official.pth")
    done = convert(tmp_path / "official.pth", tmp_path / "native.pth", "native")
    assert done.returncode == 0, done.stderr
    native = read_checkpoint(tmp_path / "native.pth")
    config = ModelConfig.from_dict(native["config"])
    assert (config.model, config.swin_type, config.window, config.fusion_heads) == ("lavt", "nano", 4, (2, 2, 4, 4))
    assert digests(native["model"]) == digests(network.state_dict())


def test_a_published_file_that_knows_its_heads_is_heard():
    """The number of heads does not show in weights: they would load and compute something else."""
    config = ModelConfig.from_args(get_parser().parse_args(["--mha", "1-2-4-8"]))
    for saved in (None, {}, Namespace(mha="1-2-4-8"), {"mha": "1-2-4-8"}):
        refuse_other_heads(config, saved)
    with pytest.raises(UserError, match=r"trained with --mha '', the flags say '1-2-4-8'"):
        refuse_other_heads(config, Namespace(mha=""))


def test_a_changed_network_has_no_published_layout(nano):
    state = {**nano().state_dict(), "decoder.attention.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"no name for 1 entries.* first of which is decoder\.attention\.weight"):
        to_official(state, split_text=False)


def test_conversion_refuses_what_would_not_load(nano, toy, tmp_path):
    checkpoint = small_checkpoint(nano, toy)
    del checkpoint["model"]["decoder.head.bias"]
    save_checkpoint(tmp_path / "c.pth", checkpoint)
    done = convert(tmp_path / "c.pth", tmp_path / "out.pth", "official")
    assert done.returncode == 2 and "decoder.head.bias" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out.pth").exists()
