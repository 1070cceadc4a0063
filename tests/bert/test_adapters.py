"""`--text_lora`: adapters of low rank in the text encoder, trained by peft, and added to the weights afterwards."""
import json
import shutil
import sys

import peft
import pytest
import torch

from args import TRAINING, get_parser
from bert import fit_adapters, is_adapter, load_text_weights, make_text_encoder, text_config
from bert.adapters import add_adapters
from bert.encoder import PEFT_CONFIG
from lib.checkpoint import describe_model, read_checkpoint, restore, save_checkpoint
from lib.checkpoint.starting import make_network
from lib.segmentation import ModelConfig, build
from lib.training.optimizer import freeze_text, parameter_groups
from tests.bert.encoder_folders import save_encoder, save_tokenizer
from tests.bert.test_encoders import flags
from tests.conftest import TEXT, make_inputs, put_into
from tools import convert_checkpoint, export
from utils import UserError, hub

QUERY = "bert.encoder.layer.0.attention.self.query"


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
    plain.load_state_dict(fit_adapters(encoder.state_dict(), plain.state_dict()))
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
    assert trained == {name for name in trained if is_adapter(name)}, "peft freezes all else"
    for settings, layers, embeddings in (({"layers": 1}, "0", False), ({"layers": 0, "last_layers": 1}, "1", True),
                                         ({"layers": 10}, "01", False)):
        freeze_text(network, embeddings=embeddings, **settings)
        trained = {name for name, value in network.text_encoder.named_parameters() if value.requires_grad}
        assert {name.split(".")[3] for name in trained if is_adapter(name)} == {*layers}
        assert any("embeddings" in name for name in trained) == embeddings
        assert all(is_adapter(name) or "embeddings" in name for name in trained)
    assert len(parameter_groups(network)[-1]["params"]) == 2 * 6 * 2


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    save_encoder(folder, "clip")
    save_tokenizer(folder, "clip")
    return folder


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
    name = "text_encoder.encoder.encoder.layers.0.mlp.fc1.lora_B.default.weight"
    assert any(map(is_adapter, begun.state_dict())) == adapters == bool(config.text_lora)
    if adapters:
        assert torch.equal(begun.state_dict()[name], network.state_dict()[name]) == kept
    inputs = make_inputs(2, 64, vocabulary=9)
    torch.testing.assert_close(begun.eval()(*inputs), network(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [
    lambda state: state.pop(QUERY + ".base_layer.weight"),
    lambda state: state.pop(QUERY + ".lora_B.default.weight"),
    lambda state: state.update({QUERY + ".lora_A.default.weight": torch.ones(1, 1)}),
    lambda state: state.update({QUERY + ".lora_A.default.weight": torch.ones(3, dtype=torch.int64)}),
    lambda state: state.update({QUERY + ".base_layer.weight": torch.ones(1).expand(2**20, 2**20),
                                QUERY + ".lora_A.default.weight": torch.ones(1).expand(2**20, 2**20),
                                QUERY + ".lora_B.default.weight": torch.ones(1).expand(2**20, 2**20)}),
])
def test_adapters_that_do_not_fit_stay_visible(change):
    """Neither guessed nor computed: the comparison of names and shapes that follows refuses them."""
    plain = make_text_encoder(text_config(TEXT, "test")).state_dict()
    state = adapted().state_dict()
    change(state)
    assert any(QUERY in name and is_adapter(name) for name in fit_adapters(state, plain))


def test_a_text_encoder_that_peft_saved_with_adapters_is_refused_in_one_line(tmp_path, hub_cache, monkeypatch):
    """transformers would read the model that the adapters name, add them, and scale them by their own configuration."""
    model = save_encoder(tmp_path / "base", "roberta")
    model.save_pretrained(tmp_path / "own")
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query"])).save_pretrained(tmp_path / "own")
    shutil.copy(tmp_path / "base/config.json", tmp_path / "own")
    description = json.loads((tmp_path / "own" / PEFT_CONFIG).read_text())
    (tmp_path / "own" / PEFT_CONFIG).write_text(json.dumps({
        **description, "base_model_name_or_path": str(tmp_path / "base")}))
    put_into(hub_cache, "someone/adapted", tmp_path / "own")
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    encoder = make_text_encoder(text_config(model.config.to_dict(), "test"))
    for source in (str(tmp_path / "own"), "someone/adapted"):
        with pytest.raises(UserError, match=f"--text_encoder {source} has adapters of peft"):
            load_text_weights(encoder, source, "--text_encoder")


def test_without_peft_training_is_refused_in_one_line(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="--text_lora 2 needs the package peft, which trains the adapters: pip install"):
        make_network(flags(clip, "--text_lora", "2"), {})
