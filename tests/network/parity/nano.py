"""The nano goldens: what each method computes with nano sizes, for the fast tests.

The original programs know no such sizes, so these numbers are of this code, made while it passed the originals'
goldens: they say that the network has not changed since. `python -m tests.network.parity.nano` writes the file anew,
which only a deliberate change of the network needs, and only after `pytest tests/network` passed in full.
"""
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import StochasticDepth
from transformers import BertConfig

from lib.checkpoint.official_layout import official_names
from lib.losses import segmentation_loss
from lib.model import ReferringSegmenter
from lib.segmentation import ModelConfig, build
from lib.training.optimizer import freeze_text, make_optimizer
from lib.training.recipes import recipe_of
from tests.network.parity import fill
from tests.network.test_parity import phrase_masks

FILE = Path(__file__).parent / "nano.npz"
METHODS = ("rmsin", "lavt", "lgce", "fianet")
SIZE_PX, BATCH, STEPS, WARMUP, TOTAL = 96, 2, 3, 2, 5
TEXT = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                  max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def network(method: str) -> ReferringSegmenter:
    """A nano network in float64 with weights from `fill.py`, without dropout."""
    model = build(ModelConfig(method, "nano", 4, SIZE_PX, (2, 1, 1, 2), 0.0, TEXT.to_diff_dict(), num_tmem=2)).double()
    official = official_names(model.state_dict())
    model.load_state_dict({name: fill.fill(official[name], tuple(value.shape), str(value.dtype).removeprefix("torch."))
                           for name, value in model.state_dict().items()})
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout | StochasticDepth):
            module.p = 0.0
    return model


def inputs(method: str, step: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The network's arguments and the target mask of a step; real tokens fill the sentence only in part."""
    image, token_ids, token_mask, target = fill.inputs(f"nano/{step}", BATCH, SIZE_PX, vocab=1050, tokens=12)
    token_ids = token_ids % 50
    phrases = [phrase_masks(token_mask)] if method == "fianet" else []
    return [image.double(), token_ids, token_mask, *phrases], target


def computed(method: str) -> dict[str, np.ndarray]:
    """Logits in evaluation; losses, rates and gradient norms of steps of training; logits after them."""
    model = network(method).eval()
    arguments, _ = inputs(method, 0)
    found = {}
    with torch.no_grad():
        found["logits"] = model(*arguments)[:, :, ::6, ::6].numpy()
    recipe = recipe_of(method, "", "base")
    freeze_text(model, layers=1, embeddings=False)
    optimizer, schedule = make_optimizer(model.train(), recipe.lr, 1e-2, TOTAL, WARMUP)
    losses, rates, norms = [], [], []
    for step in range(STEPS):
        arguments, target = inputs(method, step)
        loss = segmentation_loss(model(*arguments), target, recipe.loss)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        losses.append(loss.item())
        rates.append(schedule.get_last_lr()[0])
        norms.append([torch.nn.utils.get_total_norm([parameter.grad for parameter in group["params"]]).item()
                      for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found["trained"] = model.eval()(*inputs(method, 0)[0])[:, :, ::6, ::6].numpy()
    return {**found, "losses": np.array(losses), "rates": np.array(rates), "norms": np.array(norms)}


if __name__ == "__main__":
    np.savez_compressed(FILE, **{f"{method}/{name}": values for method in METHODS
                                 for name, values in computed(method).items()})
