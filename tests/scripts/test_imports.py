"""What takes long to import is imported where it is used: starting a script takes little longer than PyTorch does."""
import re
import subprocess
import sys

from args import get_parser
from bert import load_tokenizer
from lib.checkpoint import describe_model, save_checkpoint
from lib.segmentation import ModelConfig, build
from tests.launch import ROOT

SLOW = ("transformers", "torchvision", "torch._dynamo", "torch._inductor", "torch.distributed.tensor", "sympy", "scipy",
        "matplotlib", "h5py", "contourpy", "tensorboard", "wandb")   # of them and of all inside them


def imported(*command: object) -> set[str]:
    """The slow packages that a Python program imports."""
    done = subprocess.run([sys.executable, "-X", "importtime", *map(str, command)], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    modules = re.findall(r"^import time: .*\| +(\S+)$", done.stderr, re.M)
    assert "torch" in modules
    return {slow for slow in SLOW for module in modules if f"{module}.".startswith(f"{slow}.")}


def test_an_evaluation_imports_nothing_slow(toy, tmp_path):
    config = ModelConfig.from_args(get_parser().parse_args(
        ["--swin_type", "nano", "--img_size", "64", "--ck_bert", str(toy / "bert")]))
    save_checkpoint(tmp_path / "nano.pth", {"model": build(config).state_dict(),
                                            **describe_model(config, load_tokenizer(str(toy / "bert")))})
    assert not imported("test.py", "--resume", tmp_path / "nano.pth", "--refer_data_root", toy, "--split", "val",
                        "--workers", 0)


def test_starting_a_training_imports_nothing_slow():
    assert not imported("-c", "import train")
