"""The whole network: samples do not mix, every trained parameter gets a gradient, sizes are kept or refused."""
import pytest
import torch

from args import get_parser
from lib.losses import segmentation_loss
from lib.segmentation import SWIN_VARIANTS, ModelConfig
from lib.swin import PatchMerging
from lib.training.optimizer import freeze_text
from lib.windows import MASKED, join_windows, shift_mask, split_windows
from tests.conftest import inputs_for, make_inputs
from utils import UserError

MODELS = ["rmsin", "lavt", "lavt_one", "lgce", "fianet"]


@pytest.mark.parametrize("model", MODELS)
def test_batched_equals_single(nano, model):
    network = nano(model).double()
    image, *sentence = inputs_for(network, 3, 64)
    inputs = [image.double(), *sentence]
    together = network(*inputs)
    alone = [network(*(x[i:i + 1] for x in inputs)) for i in range(3)]
    assert together.shape == (3, 2, 64, 64)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("model", MODELS)
def test_every_trained_parameter_gets_a_gradient(nano, model):
    network = nano(model, text={**nano().text_encoder.config.to_diff_dict(), "num_hidden_layers": 12}).train()
    freeze_text(network, layers=10, embeddings=False)
    image, *sentence = inputs_for(network, 2, 64)
    target = (image[:, 0] > 0).long()
    segmentation_loss(network(image, *sentence), target, "ce:0.9,dice:0.1").backward()

    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert without == frozen
    # The listed exceptions: what nothing reads after the last stage, FIANet's embedding, which nothing reads in any
    # stage, and what the published recipe does not train.
    assert {name for name in frozen if ".unused_embedding." in name} == {
        f"backbone.stages.{stage}.alignment.unused_embedding.weight" for stage in range(4) if model == "fianet"}
    frozen = {name for name in frozen if ".unused_embedding." not in name}
    modules = {".".join(name.split(".")[:3 if name.startswith("backbone") else 4]) for name in frozen}
    assert modules == {"backbone.stages.3", "text_encoder.bert.embeddings.word_embeddings",
                       "text_encoder.bert.embeddings.position_embeddings",
                       "text_encoder.bert.embeddings.token_type_embeddings", "text_encoder.bert.embeddings.LayerNorm",
                       "text_encoder.bert.encoder.layer"}
    assert {name.split(".")[4] for name in frozen if "encoder.layer" in name} == {"10", "11"}
    assert {name.split(".")[3] for name in frozen if name.startswith("backbone")} == (
        {"language_gate"} | {"rmsin": {"visual_gate", "intra_scale"}, "fianet": {"alignment"}}.get(model, set()))


@pytest.mark.parametrize("model", MODELS)
def test_berts_dropouts_while_training_are_the_recipes(nano, model):
    """`lavt`'s text encoder is a module of its own in the original program, which never sets it to training."""
    args, network = get_parser().parse_args(["--model", model]), nano(model, fusion_drop=0.0)
    freeze_text(network, args.bert_layers, args.train_embeddings, args.bert_dropout)
    network.train()
    active = [module for module in network.text_encoder.modules()
              if isinstance(module, torch.nn.Dropout) and module.p > 0 and module.training]
    layers = network.text_encoder.config.num_hidden_layers
    assert len(active) == (0 if model == "lavt" else 1 + 3 * layers)   # embeddings; attention, two outputs a layer
    assert network.backbone.training and network.decoder.training
    _, token_ids, token_mask = make_inputs(2, 64)
    words = [network.text_encoder(token_ids, token_mask) for _ in range(2)]
    assert torch.equal(*words) == (model == "lavt")
    assert not network.eval().text_encoder.training


def test_the_sentence_matters(nano):
    for model in MODELS:
        network = nano(model)
        image, *sentence = inputs_for(network, 2, 64)
        assert not torch.equal(network(image, *sentence), network(image, *(part.flip(0) for part in sentence)))


def test_rmsin_belongs_to_its_size(nano):
    with pytest.raises(UserError, match=r"built for images of 64×64 px and was given 96×64 px"):
        nano("rmsin")(*make_inputs(1, (96, 64)))


@pytest.mark.parametrize("size", [32, 64, 96, 160])
def test_rmsin_at_every_multiple_of_32(nano, size):
    assert nano("rmsin", img_size=size)(*make_inputs(1, size)).shape == (1, 2, size, size)


@pytest.mark.parametrize("size", [(64, 64), (70, 53), (33, 97), (128, 40)])
def test_every_other_network_takes_any_size(nano, size):
    for model in ("lavt", "lgce", "fianet"):
        network = nano(model)
        assert network(*inputs_for(network, 1, size)).shape == (1, 2, *size)


def test_a_network_that_reads_phrases_says_so_and_needs_their_masks(nano):
    for model in MODELS:
        assert nano(model).reads_phrases == ModelConfig.from_args(
            get_parser().parse_args(["--model", model])).reads_phrases == (model == "fianet")
    assert nano("lavt", alignment="object_position").reads_phrases
    with pytest.raises(UserError, match=r"phrase_masks\) with the masks of object and position, \(B, 2, N\)"):
        nano("fianet")(*make_inputs(1, 64))


def test_fianets_attentions_have_the_stages_heads_but_tmem_has_one(nano):
    network = nano("fianet", fusion_heads=(1, 2, 4, 8))
    for attention in ("object_attention", "position_attention"):
        assert [getattr(stage.alignment, attention).heads for stage in network.backbone.stages] == [1, 2, 4, 8]
    assert [stage.fusion.heads for stage in network.backbone.stages] == [1, 2, 4, 8]
    assert {block.attention.heads for block in network.cross_scale.block} == {1} and len(network.cross_scale.block) == 3


def test_the_readings_in_one_pass_are_those_of_three(nano):
    network = nano("fianet").double()
    _, token_ids, token_mask, phrase_masks = inputs_for(network, 3, 64)
    words, (phrases, masks) = network.read(token_ids, token_mask, phrase_masks)
    assert phrases.shape == (3, 2, 20, 16) and masks is phrase_masks
    for found, mask in ((words, token_mask), (phrases[:, 0], phrase_masks[:, 0]), (phrases[:, 1], phrase_masks[:, 1])):
        torch.testing.assert_close(found, network.text_encoder(token_ids, mask))


def test_each_phrase_matters_and_reaches_its_own_sample_alone(nano):
    network = nano("fianet").double()
    image, token_ids, token_mask, phrase_masks = inputs_for(network, 2, 64)
    before = network(image.double(), token_ids, token_mask, phrase_masks)
    for phrase in (0, 1):
        changed = phrase_masks.clone()
        changed[0, phrase] = torch.tensor([0, 0, 0, 1] + 16 * [0])
        after = network(image.double(), token_ids, token_mask, changed)
        assert not torch.allclose(after[0], before[0]) and torch.allclose(after[1], before[1])


def test_patch_merging_pads_odd_maps_and_orders_its_corners():
    merging = PatchMerging(1)
    merging.norm, merging.reduction = torch.nn.Identity(), torch.nn.Identity()
    x = torch.arange(6.0).view(1, 2, 3, 1)                       # rows 0 1 2 and 3 4 5
    assert merging(x)[0, 0].tolist() == [[0, 3, 1, 4], [2, 5, 0, 0]]


def test_windows_come_back_where_they_were():
    x = torch.randn(2, 6, 9, 5)
    windows = split_windows(x, 3)
    assert windows.shape == (2, 6, 9, 5)
    assert torch.equal(windows[0, 1], x[0, :3, 3:6].reshape(9, 5))   # row-major: the second is to the right
    assert torch.equal(join_windows(windows, 3, 6, 9), x)


def test_the_shift_mask_separates_three_bands_each_way():
    mask = shift_mask(8, 4, 4, like=torch.zeros(1))   # 2 windows, one above the other; shift 2
    assert mask.shape == (2, 16, 16)
    top, bottom = mask[0].view(4, 4, 4, 4), mask[1].view(4, 4, 4, 4)
    assert (top[:, :2, :, :2] == 0).all() and (top[:, :2, :, 2:] == MASKED).all()   # columns only
    assert (bottom[:2, :2, :2, :2] == 0).all() and (bottom[:2, :2, 2:, :2] == MASKED).all()


def test_drop_path_grows_linearly_over_all_blocks(nano):
    with torch.device("meta"):
        stages = nano("lavt", swin_type="tiny", window=7).backbone.stages
    rates = [block.drop_path.p for stage in stages for block in stage.blocks]
    assert rates == pytest.approx([0.3 * i / 11 for i in range(12)])


def test_the_variants():
    rows = {name: (row.dim, row.depths, row.heads, row.window, row.drop_path) for name, row in SWIN_VARIANTS.items()}
    assert rows == {
        "nano": (32, (2, 2, 2, 2), (1, 2, 4, 8), 4, 0.0),
        "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24), 7, 0.3),
        "small": (96, (2, 2, 18, 2), (3, 6, 12, 24), 7, 0.3),
        "base": (128, (2, 2, 18, 2), (4, 8, 16, 32), 7, 0.3),
        "large": (192, (2, 2, 18, 2), (6, 12, 24, 48), 7, 0.3),
    }


@pytest.mark.parametrize(("flags", "window"), [
    ("--swin_type tiny", 7), ("--swin_type tiny --window12", 12), ("--model lavt", 7), ("", 12),
    ("--model lavt --pretrained_swin_weights x/swin_base_patch4_window12_384_22k.pth", 12),
    ("--model lavt --pretrained_swin_weights swin_base_window12/weights.pth", 12),
    ("--pretrained_swin_weights timm:swin_base_patch4_window12_384.ms_in22k", 12),
    ("--pretrained_swin_weights=", 7), ("--swin_type nano", 4)])
def test_the_window_follows_the_flag_or_the_swin_files_name(flags, window):
    assert ModelConfig.from_args(get_parser().parse_args(flags.split())).window == window


def test_a_config_survives_a_checkpoint():
    config = ModelConfig.from_args(get_parser().parse_args(["--mha", "1-2-4-8"]))
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_heads_must_divide_the_width(nano):
    with pytest.raises(UserError, match="3 heads in a stage of 32"):
        nano("lavt", fusion_heads=(3, 1, 1, 1))
