"""Swin's weights by timm's names and in timm's layout: from a hub cache written here, without a network."""
import pytest
import torch
from safetensors.torch import save_file
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn

from lib.checkpoint import load_swin_weights
from lib.windows import padded_size, shift_mask
from tests.conftest import put_into
from tests.launch import assert_refused, nano_flags, run_script
from utils import UserError, hub

NAME = "swin_tiny_patch4_window7_224.ms_in1k"   # the weights under it are a nano network's here


def timm_swin(img_size=224, **settings) -> SwinTransformer:
    """timm's network of the nano variant, with window 7 and random weights."""
    torch.manual_seed(1)
    network = SwinTransformer(img_size=img_size, window_size=7, embed_dim=32, depths=(2, 2, 2, 2),
                              num_heads=(1, 2, 4, 8), num_classes=10, **settings).eval()
    for name, value in network.named_parameters():
        if "norm" in name or "bias" in name:   # which begin as ones and zeros
            torch.nn.init.normal_(value, 1.0 if name.endswith("weight") else 0.0, 0.2)
    return network


@pytest.fixture(scope="module")
def timm_state() -> dict[str, torch.Tensor]:
    return timm_swin().state_dict()


@pytest.mark.parametrize("settings", [{"img_size": 448}, {"img_size": 224, "always_partition": True}],
                         ids=["448", "224"])
@torch.no_grad()
def test_the_stages_compute_what_timms_own_network_does(nano, hub_cache, settings):
    """Where neither pads: maps are whole windows, and a map of one window is shifted too."""
    theirs = timm_swin(**settings)
    put_into(hub_cache, f"timm/{NAME}", theirs.state_dict())
    backbone = nano("lavt", window=7).backbone
    assert "0 bias tables resized" in load_swin_weights(backbone, f"timm:{NAME}")
    image = torch.randn(1, 3, settings["img_size"], settings["img_size"], dtype=torch.float64)
    expected = theirs.double().forward_intermediates(image, norm=False, intermediates_only=True)
    x = backbone.double().patch_embed(image)
    for stage, map_of_theirs in zip(backbone.stages, expected, strict=True):
        mask = shift_mask(*padded_size(*x.shape[1:3], 7), 7, like=x)
        for block in stage.blocks:
            x = block(x, mask)
        torch.testing.assert_close(x, map_of_theirs.permute(0, 2, 3, 1), rtol=1e-9, atol=1e-9)
        x = stage.downsample(x) if stage.downsample else x


def test_original_weights_through_timms_filter_come_back_bit_for_bit(nano, tmp_path):
    backbone = nano("lavt", window=7).backbone
    swin = {name: value for name, value in backbone.state_dict().items()
            if not any(part in name for part in ("fusion", "gate", "norms."))}
    original = {name.replace("stages.", "layers."): torch.randn_like(value) for name, value in swin.items()}
    as_timms = checkpoint_filter_fn({"model": original}, timm_swin())
    assert "layers.3.downsample.reduction.weight" in as_timms and "layers.0.downsample.norm.bias" not in as_timms
    save_file(as_timms, tmp_path / "timm.safetensors")
    load_swin_weights(backbone, tmp_path / "timm.safetensors")
    state = backbone.state_dict()
    assert all(torch.equal(state[name], original[name.replace("stages.", "layers.")]) for name in swin)


@pytest.mark.parametrize("form", ["safetensors", "pth", "train.py"])
def test_a_file_of_timms_is_known_by_its_names(nano, tmp_path, timm_state, form):
    path = tmp_path / ("swin.safetensors" if form == "safetensors" else "swin.pth")
    if form == "safetensors":
        save_file(timm_state, path)
    else:
        torch.save({"state_dict": timm_state} if form == "train.py" else timm_state, path)
    backbone = nano("lavt").backbone   # of window 4
    assert "8 bias tables resized" in load_swin_weights(backbone, path)
    assert torch.equal(backbone.stages[0].downsample.norm.weight, timm_state["layers.1.downsample.norm.weight"])


@pytest.mark.parametrize("spoil", ["missing", "cut", "other", "nan"])
def test_a_file_that_does_not_fit_or_is_damaged_is_one_line(nano, tmp_path, timm_state, spoil):
    state, path = dict(timm_state), tmp_path / "swin.safetensors"
    if spoil == "missing":
        del state["layers.2.downsample.norm.bias"]
    elif spoil == "nan":
        state["patch_embed.proj.bias"] = torch.full((32,), float("nan"))
    save_file(state, path)
    if spoil == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif spoil == "other":
        path.write_text("a text")
    message = {"missing": "1 missing: stages.1.downsample.norm.bias", "nan": "1 with NaN or infinite values",
               "cut": "is damaged or not a safetensors file", "other": "is damaged or not a safetensors file"}[spoil]
    with pytest.raises(UserError, match=message) as refused:
        load_swin_weights(nano("lavt", window=7).backbone, path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("source", "message"), [
    ("timm:swin_s3_tiny_224.ms_in1k", "Swin-S3 has another window in each stage"),
    ("folder/swin_s3_tiny_224.safetensors", "Swin-S3 has another window in each stage"),
    ("timm:resnet50.a1_in1k", "not one of timm's swin_tiny_…, swin_small_…"),
    ("timm:swin_base_patch4/window12", "not one of timm's swin_tiny_…, swin_small_…"),
    ("timm:", "not one of timm's swin_tiny_…, swin_small_…"),
    ("none.pth", "timm:swin_base_patch4_window12_384.ms_in22k fetches the same weights by name")])
def test_what_no_variant_here_is_or_what_is_not_there_is_refused_by_name(nano, source, message):
    with pytest.raises(UserError, match=message):
        load_swin_weights(nano("lavt").backbone, source)


def test_without_a_network_a_name_that_was_never_fetched_is_one_line(toy, hub_cache, tmp_path):
    done = run_script("train.py", *nano_flags(toy, "--pretrained_swin_weights", f"timm:{NAME}"), cwd=tmp_path)
    assert_refused(done, f"timm:{NAME}: neither this machine's cache nor the Hugging Face hub provided it")


def test_what_the_cache_lacks_is_fetched_by_timm(nano, hub_cache, monkeypatch, timm_state):
    asked = []
    monkeypatch.setattr("timm.models.load_state_dict_from_hf", lambda *names: asked.append(names) or timm_state)
    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    load_swin_weights(nano("lavt", window=7).backbone, f"timm:{NAME}")
    assert asked == [(f"timm/{NAME}", "model.safetensors")]
