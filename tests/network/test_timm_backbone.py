"""timm's models as the backbone: the same numbers as this project's Swin, and everything that holds for it."""
import re
from copy import deepcopy

import pytest
import torch
from timm import create_model

from args import get_parser
from lib.accelerate import accelerate, onednn, prepare_for_inference
from lib.checkpoint import load_swin_weights, read_checkpoint
from lib.segmentation import ModelConfig
from lib.training import epoch
from lib.training.optimizer import parameter_groups, recompute_activations
from tests.conftest import make_inputs, put_into
from tests.launch import assert_refused, run_script
from tests.timm_models import SMALL
from utils import UserError

pytestmark = pytest.mark.usefixtures("narrow_nano")
# One family in the fast loop.
FAMILIES = [pytest.param(name, marks=() if name == "test_convnext" else pytest.mark.slow) for name in SMALL]
SWIN_ENTRIES = re.compile(r"patch_embed\.|stages\.\d\.(blocks|downsample)\.")


def originals(backbone: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The entries of this project's Swin as the original Swin's authors store them."""
    return {name.replace("stages.", "layers."): value for name, value in backbone.state_dict().items()
            if SWIN_ENTRIES.match(name)}


@torch.no_grad()
def test_timms_swin_computes_what_ours_does_stage_by_stage(nano):
    """Where neither pads: maps are whole windows, of which the last has one, shifted too."""
    ours, timms = (nano("rmsin", img_size=128, backbone=backbone).double() for backbone in ("swin", "timm:test_swin"))
    for name, value in ours.named_parameters():
        torch.nn.init.normal_(value, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    added = {name: value for name, value in ours.state_dict().items()
             if not SWIN_ENTRIES.match(name.removeprefix("backbone."))}
    given = timms.backbone.from_timm(originals(ours.backbone), "a file")
    timms.load_state_dict({**added, **{f"backbone.{name}": value for name, value in given.items()}})

    image, token_ids, token_mask = make_inputs(2, 128)
    image, words = image.double(), ours.text_encoder(token_ids, token_mask)
    x, y = ours.backbone.patch_embed(image), image
    for stage, timm_stage in zip(ours.backbone.stages, timms.backbone.stages, strict=True):
        (fused, x), (timm_fused, y) = (part(z, words, token_mask) for part, z in ((stage, x), (timm_stage, y)))
        torch.testing.assert_close(timm_fused, fused, rtol=1e-9, atol=1e-9)
    logits, expected = (network(image, token_ids, token_mask) for network in (timms, ours))
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_takes_any_size_trains_every_parameter_and_is_made_faster(nano, name, monkeypatch):
    monkeypatch.setattr(onednn, "LARGE", 0)   # every product in float32 is oneDNN's, if there is one
    monkeypatch.setattr(onednn, "WIDE", 0)
    network = nano("lavt", backbone=f"timm:{name}", drop_path=0.0)
    inputs = make_inputs(2, (70, 101))
    with torch.no_grad():
        assert [tuple(x.shape[-2:]) for x in network.encode(*inputs)] == [(18, 26), (9, 13), (5, 7), (3, 4)]
        plain = network(*inputs)
        fast = accelerate(deepcopy(network), torch.device("cpu"))
        torch.testing.assert_close(fast(*inputs), plain, rtol=1e-4, atol=1e-5)
        prepare_for_inference(fast, fold_batchnorm=True)
        torch.testing.assert_close(fast(*inputs), plain, rtol=1e-4, atol=1e-5)

    gradients = []
    for changed in (False, True):
        trained = deepcopy(network).train()
        if changed:
            recompute_activations(accelerate(trained, torch.device("cpu")))
        torch.manual_seed(1)   # of BERT's dropouts
        trained(*inputs).square().mean().backward()
        gradients.append({key: p.grad for key, p in trained.backbone.named_parameters() if p.requires_grad})
        assert None not in gradients[-1].values()   # for which DistributedDataParallel would wait
        statistics = {key: value for key, value in trained.state_dict().items() if "running" in key}
        gradients[-1] |= statistics   # of BatchNorm, moved once in each step
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["test_swin", "test_swinv2", "test_convnext"])
def test_what_timm_does_not_decay_is_not_decayed(nano, name):
    network = nano("lavt", backbone=f"timm:{name}")
    plain = {id(p) for p in parameter_groups(network)[0]["params"]}
    own = network.backbone.timm_entries()
    declared = {own[key.replace(".", "_")] for key in getattr(create_model(name), "no_weight_decay", set)()
                if key.replace(".", "_") in own}
    assert name != "test_swin" or sum("relative_position_bias_table" in key for key in declared) == 5
    for key, parameter in network.backbone.named_parameters():
        exempt = key in declared or parameter.dim() == 1 if ".timm." in key else key.startswith("norms.")
        assert (id(parameter) in plain) == exempt, key
    groups = parameter_groups(network)
    trained = [p for p in network.parameters() if p.requires_grad]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, trained))


def test_drop_path_rises_to_the_rate_that_is_given(nano):
    rates = [[getattr(part, "drop_prob", getattr(part, "p", None)) for part in nano(
        "lavt", backbone=backbone, drop_path=0.4).backbone.modules() if "drop" in type(part).__name__.lower()
        or type(part).__name__ == "StochasticDepth"] for backbone in ("timm:test_convnext", "swin")]
    assert [max(of) for of in rates] == pytest.approx([0.4, 0.4])


@pytest.mark.parametrize(("name", "reason"), [
    ("test_vit", "its features have the strides 16"), ("nest_tiny", "its features have the strides 4, 8, 16"),
    ("convnext_tin", "has no such model (but convnext_tiny"), ("test_convnext.nope", "Invalid pretrained tag"),
    pytest.param("hiera_tiny_224", "timm does not give its stages as modules that follow each other",
                 marks=pytest.mark.slow),
    pytest.param("maxvit_pico_rw_256", "it does not read images of 64 px, height (4) must be divisible by window (8)",
                 marks=pytest.mark.slow)])
def test_what_is_no_backbone_is_one_line_with_the_families_that_are_tested(nano, name, reason):
    with pytest.raises(UserError) as refused:
        nano("lavt", backbone=f"timm:{name}")
    assert reason in str(refused.value) and "\n" not in str(refused.value)
    assert "tested: swin_…, swinv2_…, convnext_…" in str(refused.value)


def test_train_refuses_what_is_no_backbone_with_status_2(toy, tmp_path):
    flags = ["--refer_data_root", toy, "--ck_bert", toy / "bert", "--bert_tokenizer", toy / "bert", "--workers", 0]
    assert_refused(run_script("train.py", *flags, "--backbone", "timm:test_vit", cwd=tmp_path), "strides 16")


@pytest.mark.parametrize("name", ["resnet50", "timm:", "timm:hf-hub:a/b", "timm:local-dir:/tmp", "Swin", "timm:a b"])
def test_flags_and_checkpoints_name_nothing_but_models_of_timms(nano, name, capsys):
    with pytest.raises(SystemExit):
        get_parser().parse_args(["--backbone", name])
    assert "is neither swin nor timm:NAME" in capsys.readouterr().err
    config = {**config_of(nano), "backbone": name}
    with pytest.raises(UserError, match="config: backbone must be a text, swin or timm:NAME"):
        ModelConfig.from_dict(config)


def config_of(nano) -> dict:
    text = nano("lavt").text_encoder.config.to_diff_dict()
    return ModelConfig("lavt", "nano", 4, 64, (1, 1, 1, 1), 0.0, text).to_dict()


def test_a_network_without_these_settings_is_stored_as_before(nano):
    old = config_of(nano)
    assert not {"backbone", "drop_path"} & old.keys()
    assert ModelConfig.from_dict(old).backbone == "swin"
    new = {**old, "backbone": "timm:test_convnext", "drop_path": 0.1}
    assert ModelConfig.from_dict(new).to_dict() == new


@pytest.mark.parametrize("flag", ["--swin_type=tiny", "--window12"])
def test_sizes_of_our_swin_are_not_timms(flag, capsys):
    with pytest.raises(SystemExit):
        get_parser().parse_args(["--backbone", "timm:convnext_tiny", flag])
    assert f"leave {flag.partition('=')[0]} out" in capsys.readouterr().err
    assert get_parser().parse_args(["--backbone", "timm:convnext_tiny"]).pretrained_swin_weights == ""


@pytest.mark.parametrize("name", FAMILIES)
def test_a_classification_model_of_timms_is_read_whole(nano, hub_cache, tmp_path, name):
    whole = create_model(name, num_classes=7)
    put_into(hub_cache, f"timm/{name}.a_b", whole.state_dict())
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "w.pth")
    backbones = [nano("lavt", backbone=f"timm:{name}").backbone for _ in range(2)]
    for backbone, source in zip(backbones, (f"timm:{name}.a_b", tmp_path / "w.pth"), strict=True):
        assert f"weights of timm:{name} from {source}: " in load_swin_weights(backbone, source)
    image = torch.randn(1, 3, 128, 128)
    maps = whole.eval().forward_intermediates(image, intermediates_only=True)
    expected = next(x for x in maps if x.shape[-1] == 32).permute(0, 2, 3, 1)
    for backbone in backbones:
        torch.testing.assert_close(backbone.eval().stages[0].visual(image), expected)
        for key, value in whole.state_dict().items():
            assert "head" in key or "fc." in key or key.startswith("norm") or torch.equal(
                backbone.state_dict()[backbone.timm_entries()[key.replace(".", "_")]], value)


@pytest.mark.parametrize(("spoil", "message"), [
    ("missing", "1 missing: stages.0.timm.stem_1.weight"), ("unexpected", "1 unexpected: an.other"),
    ("shape", "1 of another shape"), ("nan", "1 with NaN or infinite values"),
    ("original Swin", "these are not the entries of timm:test_convnext|does not fit this network"),
    ("a list", "these are not the entries of timm:test_convnext|another kind")])
def test_a_file_that_does_not_fit_is_one_line(nano, tmp_path, spoil, message):
    state = create_model("test_convnext").state_dict()
    if spoil == "missing":
        del state["stem.1.weight"]
    elif spoil == "unexpected":
        state["an.other"] = torch.zeros(1)
    elif spoil == "original Swin":
        state = originals(nano("lavt").backbone)
    else:
        state["stem.1.weight"] = {"shape": torch.ones(3), "nan": torch.full((24,), torch.nan), "a list": [1, 2]}[spoil]
    torch.save(state, tmp_path / "w.pth")
    backbone = nano("lavt", backbone="timm:test_convnext").backbone
    before = deepcopy(backbone.state_dict())
    with pytest.raises(UserError, match=message) as refused:
        load_swin_weights(backbone, tmp_path / "w.pth")
    assert "\n" not in str(refused.value)
    torch.testing.assert_close(backbone.state_dict(), before, rtol=0, atol=0)


def test_a_name_of_the_hub_is_checked(nano):
    with pytest.raises(UserError, match="names of timm's are like timm:test_convnext"):
        load_swin_weights(nano("lavt", backbone="timm:test_convnext").backbone, "timm:../x")


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.slow
def test_two_processes_resume_to_the_same_bits_and_a_checkpoint_needs_no_download(toy, tmp_path, hub_cache,
                                                                                  monkeypatch):
    """With drop path, whose draws are restored, recomputed activations and an average. Stopped after an epoch."""
    flags = ["--refer_data_root", toy, "--ck_bert", toy / "bert", "--bert_tokenizer", toy / "bert", "--workers", 0,
             "--model", "lavt", "--dataset", "rrsisd", "--img_size", 64, "--batch-size", 4, "--epochs", 2, "--model_id",
             "m", "--deterministic", "--ema", 0.9, "--checkpoint_activations", "--backbone", "timm:test_convnext"]
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    done = run_script("train.py", *flags, cwd=tmp_path / "whole", processes=2)
    assert done.returncode == 0, done.stderr
    assert "timm:test_convnext starts from random weights" in done.stdout

    def stop(*_):
        raise UserError("stopped before validation")

    with monkeypatch.context() as patch:
        patch.setattr(epoch, "validate", stop)
        stopped = run_script("train.py", *flags, cwd=tmp_path / "parts", processes=2)
        assert "stopped before validation" in stopped.stderr
    done = run_script("train.py", *flags, "--resume", "auto", cwd=tmp_path / "parts", processes=2)
    assert done.returncode == 0, done.stderr
    whole, parts = (read_checkpoint(tmp_path / name / "checkpoints/model_last_m.pth") for name in ("whole", "parts"))
    for key in ("model", "ema", "optimizer", "config"):
        assert equal(whole[key], parts[key]), key

    tested = run_script("test.py", "--refer_data_root", toy, "--resume", "checkpoints/model_best_m.pth", "--split",
                        "val", "--workers", 0, "--results", "r.json", cwd=tmp_path / "whole")
    assert tested.returncode == 0, tested.stderr
    assert (tmp_path / "whole/r.json").is_file()
