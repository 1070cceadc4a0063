"""`--init_from`: a new part starts fresh and is listed; everything else must fit."""
import json
import shutil

import pytest
import torch

from args import get_parser
from bert import load_tokenizer
from lib.checkpoint import describe_model
from lib.checkpoint.official_layout import to_official
from lib.checkpoint.settings import model_settings
from lib.checkpoint.starting import settings_to_start, weights_to_start
from lib.segmentation import ModelConfig, build
from lib.training.recipes import follow_network, recipe_of
from tests.conftest import TEXT
from tools.convert_checkpoint import convert
from utils import UserError


def config_of(toy, model: str, **fields) -> ModelConfig:
    args = get_parser().parse_args(["--model", model, "--swin_type", "nano", "--img_size", "64",
                                    "--ck_bert", str(toy / "bert")])
    return ModelConfig(**{**ModelConfig.from_args(args).__dict__, **fields})


def checkpoint_of(toy, config: ModelConfig) -> dict:
    torch.manual_seed(1)
    return {"model": build(config).state_dict(), **describe_model(config, load_tokenizer(str(toy / "bert")))}


def test_settings_are_the_files_where_no_flag_says_otherwise(toy):
    checkpoint = checkpoint_of(toy, config_of(toy, "lavt"))
    config, tokenizer = settings_to_start(get_parser().parse_args([]), checkpoint)
    assert config == config_of(toy, "lavt") and tokenizer.to_str() == checkpoint["tokenizer"]
    config, _ = settings_to_start(get_parser().parse_args(["--decoder_conv", "arc"]), checkpoint)
    assert config == config_of(toy, "lavt", decoder_conv="arc")
    config, _ = settings_to_start(get_parser().parse_args(["--model", "rmsin"]), checkpoint)
    assert config == config_of(toy, "rmsin")


def test_a_tokenizer_of_another_vocabulary_is_refused(toy, tmp_path):
    """The toy set's tokenizer has 97 entries; a Chinese BERT has 21,128."""
    shutil.copytree(toy / "bert", tmp_path / "bert")
    config = json.loads((tmp_path / "bert/config.json").read_text())
    assert config["vocab_size"] == 97
    (tmp_path / "bert/config.json").write_text(json.dumps({**config, "vocab_size": 21128}))
    args = get_parser().parse_args(["--swin_type", "nano", "--ck_bert", str(tmp_path / "bert"), "--bert_tokenizer",
                                    str(toy / "bert")])
    with pytest.raises(UserError, match="has 97 tokens, far fewer than the 21128 of the text encoder"):
        model_settings(args, {})


def start_from(model: torch.nn.Module, config: ModelConfig, checkpoint: dict, path: str) -> str:
    """Gives the model the weights that a run would begin with, and returns the messages about them."""
    taken, said = weights_to_start(model.state_dict(), config, checkpoint, path)
    model.load_state_dict({**model.state_dict(), **taken})
    return said


def test_parts_that_differ_start_fresh_and_are_listed(toy):
    checkpoint, config = checkpoint_of(toy, config_of(toy, "lavt")), config_of(toy, "rmsin")
    model = build(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    said = start_from(model, config, checkpoint, "lavt.pth")
    changed_part = ("cross_scale.", ".intra_scale.", ".visual_gate.", ".conv2.")
    for name, value in model.state_dict().items():
        expected = before if any(part in name for part in changed_part) else checkpoint["model"]
        assert torch.equal(value, expected[name]), name
    assert "entries start fresh: backbone.stages.0.intra_scale.rounds.0" in said
    assert "3 entries of the file are left out: decoder.levels.0.conv2.weight" in said


def test_an_original_checkpoint_is_a_start_too(toy):
    config = config_of(toy, "lavt", text={**TEXT, "hidden_size": 64, "num_attention_heads": 1})
    torch.manual_seed(1)
    state = build(config).state_dict()
    extended = ModelConfig(**{**config.__dict__, "decoder_conv": "arc"})
    model = build(extended)
    said = start_from(model, extended, to_official(state, split_text=True), "original.pth")
    name = "backbone.patch_embed.proj.weight"
    assert torch.equal(model.state_dict()[name], state[name])
    assert "start fresh" in said


@pytest.mark.parametrize("model", ["rmsin", "lavt"])
def test_what_convert_checkpoint_writes_is_a_start_in_either_layout(toy, model):
    checkpoint = checkpoint_of(toy, config := config_of(toy, model, text={**TEXT, "hidden_size": 64,
                                                                          "num_attention_heads": 1}))
    for layout in ("official", "native"):
        fresh = build(config)
        start_from(fresh, config, convert(checkpoint, layout, "c.pth"), "c.pth")
        assert all(torch.equal(value, checkpoint["model"][name]) for name, value in fresh.state_dict().items())


def test_a_run_from_a_network_follows_the_recipe_for_it(toy):
    """The flags say nothing of a nano network of 64 px; the rate given stays, and the run keeps its name."""
    args = get_parser().parse_args(["--init_from", "nano.pth", "--lr", "1e-5", "--dataset", "rrsisd"])
    follow_network(args, config_of(toy, "lavt", fusion_heads=(1, 2, 1, 1)))
    nano = recipe_of("lavt", "rrsisd", "nano")
    assert (args.model, args.swin_type, args.img_size, args.mha) == ("lavt", "nano", 64, "1-2-1-1")
    assert (args.lr, args.batch_size, args.warmup_iters, args.dice_weight, args.loss) == (
        1e-5, nano.batch_size, nano.warmup_iters, 0.0, "ce:1")
    assert args.model_id == "RMSIN"


@pytest.mark.parametrize("spoil", ["missing", "more", "shape"])
def test_everything_else_must_fit(toy, spoil):
    config = config_of(toy, "lavt")
    checkpoint = checkpoint_of(toy, config)
    name = "backbone.patch_embed.proj.weight"
    if spoil == "missing":
        del checkpoint["model"][name]
    elif spoil == "more":
        name = "backbone.stages.0.fusion.gate.weight"   # the part's own row has not changed
        checkpoint["model"][name] = torch.zeros(1)
    else:
        checkpoint["model"][name] = torch.zeros(1)
    model = build(config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=rf"--init_from x.pth does not fit.*{name}"):
        start_from(model, config, checkpoint, "x.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
