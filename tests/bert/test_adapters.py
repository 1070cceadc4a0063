"""`--text_lora`: adapters of low rank in the text encoder, trained by peft, and added to the weights afterwards."""
import json
import re
import shutil
import sys
from dataclasses import replace

import pytest
import torch

from args import TRAINING, get_parser
from bert import is_adapter, load_text_weights, make_text_encoder, text_config
from bert.adapters import adapted_layers, add_adapters, layers_with_adapters, merge
from lib.checkpoint import describe_model, read_checkpoint, restore, save_checkpoint, starting, strict_loading
from lib.checkpoint.official_layout import to_official
from lib.checkpoint.starting import make_network
from lib.segmentation import ModelConfig, build
from lib.training.optimizer import freeze_text, parameter_groups
from tests.bert.encoder_folders import save_encoder
from tests.bert.test_encoders import flags
from tests.conftest import TEXT, make_inputs, put_into
from tools import convert_checkpoint, export
from utils import UserError, hub

QUERY = "bert.encoder.layer.0.attention.self.query"
LAYER = "text_encoder.encoder.encoder.layers.0.mlp.fc1"   # of CLIP


def adapted(rank: int = 3, seed: int = 0):
    """A small BERT with adapters whose B is not zero."""
    torch.manual_seed(seed)
    encoder = make_text_encoder(text_config(TEXT, "test")).eval()
    add_adapters(encoder.network, encoder.layers, rank)
    for name, value in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    return encoder


def config_with_rank(rank: int) -> ModelConfig:
    return ModelConfig("lavt", "nano", 4, 64, (1, 1, 1, 1), 0.0, {**TEXT, "num_hidden_layers": 2}, text_lora=rank)


@torch.no_grad()
def test_an_adapted_layer_adds_twice_b_times_a_to_its_weight():
    encoder = adapted()
    parts = encoder.state_dict()
    layer = encoder.get_submodule(QUERY)
    x = torch.randn(5, parts[f"{QUERY}.base_layer.weight"].shape[1])
    weight, bias = parts[f"{QUERY}.base_layer.weight"], parts[f"{QUERY}.base_layer.bias"]
    a, b = parts[f"{QUERY}.lora_A.default.weight"], parts[f"{QUERY}.lora_B.default.weight"]
    assert a.shape == (3, weight.shape[1]) and b.shape == (weight.shape[0], 3)
    torch.testing.assert_close(layer(x), x @ (weight + 2 * b @ a).T + bias)


@torch.no_grad()
def test_every_linear_layer_inside_the_layers_has_one_and_the_sum_gives_the_same_words():
    encoder, plain = adapted(), make_text_encoder(text_config(TEXT, "test")).eval()
    assert sum(map(is_adapter, encoder.state_dict())) == 2 * 6 * TEXT["num_hidden_layers"]
    layers = adapted_layers(plain, plain.layers)
    assert layers == layers_with_adapters(encoder.state_dict())
    plain.load_state_dict(merge(encoder.state_dict(), layers))
    ids, mask = torch.tensor([[2, 5, 6, 3]]), torch.ones(1, 4, dtype=torch.long)
    torch.testing.assert_close(encoder(ids, mask), plain(ids, mask))


@torch.no_grad()
def test_pretrained_weights_come_beside_adapters_that_change_nothing_at_first(tmp_path):
    model = save_encoder(tmp_path, "roberta")
    encoder = make_text_encoder(text_config(model.config.to_dict(), "test")).eval()
    add_adapters(encoder.network, encoder.layers, 2)
    assert load_text_weights(encoder, str(tmp_path), "--text_encoder")
    ids, mask = torch.tensor([[0, 5, 6, 2]]), torch.ones(1, 4, dtype=torch.long)
    torch.testing.assert_close(encoder(ids, mask), model(ids, attention_mask=mask).last_hidden_state)


def test_adapters_train_in_place_of_their_layers():
    network = build(config_with_rank(4))
    trained = {name for name, value in network.text_encoder.named_parameters() if value.requires_grad}
    assert trained and all(map(is_adapter, trained)), "peft freezes all else"
    for settings, layers, embeddings in (({"layers": 1}, "0", False), ({"layers": 0, "last_layers": 1}, "1", True),
                                         ({"layers": 10}, "01", False)):
        freeze_text(network, embeddings=embeddings, **settings)
        trained = {name for name, value in network.text_encoder.named_parameters() if value.requires_grad}
        assert {name.split(".")[3] for name in trained if is_adapter(name)} == {*layers}
        assert any("embeddings" in name for name in trained) == embeddings
        assert all(is_adapter(name) or "embeddings" in name for name in trained)
    assert len(parameter_groups(network)[-1]["params"]) == 2 * 6 * 2


@pytest.fixture
def trained(clip, tmp_path):
    """A network with adapters, and its checkpoint."""
    args = flags(clip, "--text_lora", "2")
    network, config, tokenizer = make_network(args, {})
    for name, value in network.text_encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    file = str(tmp_path / "c.pth")
    save_checkpoint(file, {**describe_model(config, tokenizer), "model": network.state_dict()})
    assert config.text_lora == 2
    return network.eval(), file


@torch.no_grad()
def test_a_checkpoint_is_used_without_peft(trained, monkeypatch):
    network, file = trained
    monkeypatch.setitem(sys.modules, "peft", None)
    again, config, _ = restore(file, None)
    assert config.text_lora == 0 and not any(map(is_adapter, again.state_dict()))
    inputs = make_inputs(2, 64, vocabulary=9)
    torch.testing.assert_close(again(*inputs), network(*inputs), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_conversions_and_exports_have_them_in_the_weights(trained, tmp_path):
    network, file = trained
    save_checkpoint(tmp_path / "native.pth", convert_checkpoint.convert(read_checkpoint(file), "native", file))
    export.run(export.parser().parse_args(["--resume", file, "--to", "folder", "--out", str(tmp_path / "folder")]))
    inputs = make_inputs(2, 64, vocabulary=9)
    for written in ("native.pth", "folder"):
        checkpoint = read_checkpoint(tmp_path / written)
        assert "text_lora" not in checkpoint["config"] and not any(map(is_adapter, checkpoint["model"]))
        torch.testing.assert_close(restore(str(tmp_path / written), None)[0](*inputs), network(*inputs), rtol=1e-4,
                                   atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("more", "adapters", "kept"), [((), True, True), (("--text_lora", "2"), True, True),
                                                        (("--text_lora", "3"), True, False),
                                                        (("--text_lora", "0"), False, False)])
def test_a_run_may_start_from_it_with_or_without_adapters(trained, more, adapters, kept):
    """Adapters of the same rank go on; with another rank, they become part of the weights, and new ones start."""
    network, file = trained
    begun, config, _ = make_network(get_parser(*TRAINING).parse_args(["--init_from", file, *more]), {})
    name = f"{LAYER}.lora_B.default.weight"
    assert any(map(is_adapter, begun.state_dict())) == adapters == bool(config.text_lora)
    if adapters:
        assert torch.equal(begun.state_dict()[name], network.state_dict()[name]) == kept
    inputs = make_inputs(2, 64, vocabulary=9)
    torch.testing.assert_close(begun.eval()(*inputs), network(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("changes", "said"), [
    ({f"{LAYER}.base_layer.weight": None}, f"1 missing: {LAYER}.base_layer.weight"),
    ({f"{LAYER}.lora_A.default.weight": None}, f"1 missing: {LAYER}.lora_A"),
    ({f"{LAYER}.lora_{part}.default.weight": None for part in "AB"}, f"2 missing: {LAYER}.lora_A"),
    ({f"{LAYER}.lora_A.default.weight": torch.ones(3, 16), f"{LAYER}.lora_B.default.weight": torch.ones(32, 3)},
     f"2 of another shape: {LAYER}.lora_A.default.weight is (3, 16), needed (2, 16)"),
    ({f"{LAYER}.lora_A.default.weight": torch.ones(2, 16, dtype=torch.int64)}, f"{LAYER}.lora_A.default.weight is of"),
    ({f"{LAYER}.lora_A.default.weight": torch.ones(2, 16, dtype=torch.float8_e5m2)}, "is of torch.float8_e5m2"),
    ({f"{LAYER}.lora_A.default.weight": torch.ones(2, 16, device="meta")}, "is no dense tensor with values"),
    ({f"{LAYER}.lora_A.default.weight": torch.full((2, 16), torch.nan)}, "1 with NaN or infinite values"),
    ({f"{LAYER}.weight": torch.ones(32, 16)}, f"1 unexpected: {LAYER}.weight"),
    ({"text_encoder.lora_B.default.weight": torch.ones(1)}, "1 unexpected: text_encoder.lora_B.default.weight"),
])
def test_adapters_that_do_not_fit_are_one_line(trained, monkeypatch, changes, said):
    """Before anything is multiplied; for a network that is used, and for one that training starts with."""
    _, file = trained
    checkpoint = read_checkpoint(file)
    state = {name: value for name, value in {**checkpoint["model"], **changes}.items() if value is not None}
    save_checkpoint(file, {**checkpoint, "model": state})
    monkeypatch.setattr(strict_loading, "merge", None)
    monkeypatch.setattr(starting, "merge", lambda given, layers: given)   # what lies outside the layers is seen later
    with pytest.raises(UserError, match=re.escape(said)):
        restore(file, None)
    for rank in ("2", "3"):
        with pytest.raises(UserError, match=r"--init_from .* does not fit this network"):
            make_network(get_parser(*TRAINING).parse_args(["--init_from", file, "--text_lora", rank]), {})


def test_adapters_of_which_the_settings_say_nothing_are_not_added(trained):
    """Their scale would be a guess."""
    _, file = trained
    checkpoint = read_checkpoint(file)
    del checkpoint["config"]["text_lora"]
    save_checkpoint(file, checkpoint)
    with pytest.raises(UserError, match="24 missing"):
        restore(file, None)


@torch.no_grad()
def test_an_original_checkpoint_may_be_trained_with_adapters(tmp_path):
    model = build(config := replace(config_with_rank(0), model="lavt_one"))
    torch.save(to_official(model.state_dict(), split_text=False), tmp_path / "official.pth")
    needed, layers = strict_loading.needed_entries(replace(config, text_lora=2))
    taken, said = starting.weights_to_start(needed, replace(config, text_lora=2),
                                            read_checkpoint(tmp_path / "official.pth"), "official.pth")
    assert len(layers) == 12 and "24 entries start fresh" in said
    weight = model.get_submodule(f"text_encoder.{QUERY}").weight
    assert torch.equal(taken[f"text_encoder.{QUERY}.base_layer.weight"], weight)


def test_an_encoder_without_layers_has_none_to_adapt():
    config = replace(config_with_rank(2), text={**TEXT, "num_hidden_layers": 0})
    with pytest.raises(UserError, match="--text_lora 2: the text encoder has no layers"):
        build(config)


def test_a_text_encoder_that_peft_saved_with_adapters_is_refused_in_one_line(tmp_path, hub_cache, monkeypatch):
    """transformers would read the model that the adapters name, add them, and scale them by their own configuration."""
    import peft  # its import takes seconds, in each process that collects tests
    model = save_encoder(tmp_path / "base", "roberta")
    model.save_pretrained(tmp_path / "own")
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query"])).save_pretrained(tmp_path / "own")
    shutil.copy(tmp_path / "base/config.json", tmp_path / "own")
    description = json.loads((tmp_path / "own" / "adapter_config.json").read_text())
    (tmp_path / "own" / "adapter_config.json").write_text(json.dumps({
        **description, "base_model_name_or_path": str(tmp_path / "base")}))
    put_into(hub_cache, "someone/adapted", tmp_path / "own")
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    encoder = make_text_encoder(text_config(model.config.to_dict(), "test"))
    for source in (str(tmp_path / "own"), "someone/adapted"):
        with pytest.raises(UserError, match=f"{source} has adapters of peft .adapter_config.json.: merge"):
            load_text_weights(encoder, source, "--text_encoder")


def test_without_peft_training_is_refused_in_one_line(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"--text_lora 2 needs the package peft, .* pip install --upgrade"):
        make_network(flags(clip, "--text_lora", "2"), {})
