"""Shared by all tests: no GPU, one thread, so that figures do not depend on the machine; a tiny toy data set."""
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import BertConfig

from args import get_parser
from bert import load_tokenizer
from data.toy import make_toy_rrsisd
from lib.checkpoint import describe_model, save_checkpoint
from lib.segmentation import SWIN_VARIANTS, ModelConfig, build
from refer.refer import REFER

os.environ["CUDA_VISIBLE_DEVICES"] = ""   # also for the programs that tests start
torch.set_num_threads(1)
# At its first backward pass autograd starts a thread for each GPU, and once torch.export or fake tensors were in use it
# takes GPUs for there. Tests fork, which these threads do not survive: the first pass is here, before any of that.
torch.ones(1, requires_grad=True).sum().backward()

TEXT = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 32}


# The files that take longest, longest first, and those that train. pytest-xdist hands out files in this order, so that
# the workers end at about the same time; a short file at the end costs less than a long one.
LONGEST = ("network/test_training_parity.py", "network/test_parity.py", "faults/test_faults.py",
           "training/test_resume.py", "scripts/test_scripts.py", "faults/test_two_nodes.py", "scripts/test_docs.py",
           "data/test_layouts.py", "scripts/test_docs_extending.py", "scripts/test_reading_phrases.py",
           "checkpoint/test_swin_weights.py", "tools/test_make_text_encoder.py", "tools/test_compare_methods.py",
           "tools/test_export.py", "checkpoint/test_checkpoint.py")
# The goldens stay with one worker: two at a time would need more memory than many machines have.
GOLDENS = LONGEST[:2]


@pytest.hookimpl(optionalhook=True)   # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Hands out whole files, and the goldens as if they were one file."""
    from xdist.scheduler import LoadFileScheduling

    class WholeFiles(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "goldens" if nodeid.split("::")[0].endswith(GOLDENS) else super()._split_scope(nodeid)

    return WholeFiles(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the files that take longest to the front; within a file the order stays."""
    order = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(LONGEST)))


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """A toy RRSIS-D of 20 images of 64 px, with its text encoder's folder `bert`. Tests only read it."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    make_toy_rrsisd(folder, images=20, size=64, seed=3)
    config = json.loads((folder / "bert" / "config.json").read_text())
    assert config["num_hidden_layers"] <= 4   # small enough for tests
    return folder


@pytest.fixture(scope="session")
def refer(toy) -> REFER:
    """The index over the toy set."""
    return REFER(toy, "rrsisd")


@pytest.fixture(scope="session")
def tokenizer(toy) -> Tokenizer:
    """The toy set's tokenizer."""
    return load_tokenizer(str(toy / "bert"))


@pytest.fixture(scope="session")
def nltk_data(tmp_path_factory) -> Path:
    """A folder with the part of nltk's data that the tests need, the only one where nltk looks from then on."""
    from tests.nltk_stand_in import write_nltk_data
    nltk = pytest.importorskip("nltk")
    folder = tmp_path_factory.mktemp("nltk_data")
    write_nltk_data(folder)
    nltk.data.path[:] = [str(folder)]
    return folder


NARROW_NANO = replace(SWIN_VARIANTS["nano"], dim=16, depths=(2, 1, 1, 1))


@pytest.fixture(scope="module")
def narrow_nano():
    """Makes nano half as wide and five blocks deep in a module's tests and the processes forked from them.

    A fifth of the weights is to be trained, saved and hashed then, and nothing that these tests are about changes.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SWIN_VARIANTS, "nano", NARROW_NANO)
        yield


def equal_samples(a: dict, b: dict) -> bool:
    """Whether two samples have the same entries, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])) for key in a)


@pytest.fixture
def nano():
    """Builds a nano network, in evaluation mode: nano(model='rmsin', img_size=64, **ModelConfig fields)."""
    def make(model="rmsin", img_size=64, **fields):
        torch.manual_seed(0)
        settings = {"swin_type": "nano", "window": 4, "fusion_heads": (1, 1, 1, 1), "fusion_drop": 0.0,
                    "text": BertConfig(**TEXT).to_diff_dict(), **fields}
        return build(ModelConfig(model=model, img_size=img_size, **settings)).eval()
    return make


def save_nano_checkpoint(path: Path, toy: Path, model: str = "rmsin") -> Path:
    """Writes the checkpoint of a nano network for images of 64 px with random weights and the toy set's vocabulary."""
    config = ModelConfig.from_args(get_parser().parse_args(
        ["--model", model, "--swin_type", "nano", "--img_size", "64", "--ck_bert", str(toy / "bert")]))
    torch.manual_seed(0)
    save_checkpoint(path, {"model": build(config).state_dict(),
                           **describe_model(config, load_tokenizer(str(toy / "bert")))})
    return path


def make_inputs(batch: int, size: int | tuple[int, int], vocabulary: int = 100) -> tuple[torch.Tensor, ...]:
    """Random image (B, 3, S, S), token ids and token mask (B, 20), with sentences of different lengths."""
    generator = torch.Generator().manual_seed(batch)
    height, width = (size, size) if isinstance(size, int) else size
    image = torch.randn(batch, 3, height, width, generator=generator)
    token_ids = torch.randint(1, vocabulary, (batch, 20), generator=generator)
    token_mask = (torch.arange(20) < torch.arange(batch)[:, None] % 5 + 4).long()
    return image, token_ids * token_mask, token_mask


def inputs_for(network: torch.nn.Module, batch: int, size: int | tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """`make_inputs`, and the phrase masks (B, 2, 20) if the network reads them; the last sample names no object."""
    image, token_ids, token_mask = make_inputs(batch, size)
    if not network.reads_phrases:
        return image, token_ids, token_mask
    objects, positions = torch.zeros_like(token_mask), token_mask.clone()
    objects[:-1, 1:3] = 1
    positions[::2, :2] = 0
    return image, token_ids, token_mask, torch.stack([objects, positions], dim=1)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub, whose client has no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_into(cache: Path, repository: str, files: Path | dict) -> None:
    """Writes a repository as the hub's client leaves it: a folder of files, or tensors of model.safetensors."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    if isinstance(files, Path):
        shutil.copytree(files, snapshot)
    else:
        snapshot.mkdir(parents=True)
        save_file(files, snapshot / "model.safetensors")
