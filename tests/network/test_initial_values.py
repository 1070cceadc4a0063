"""A new network starts from the distributions that the original programs draw from, parameter by parameter.

`parity/init_*.json` hold shape, mean, standard deviation and bounds of each parameter of the original networks, over
three seeds, under their official names. The spread tells the distributions apart: the largest value of a uniform
one is √3 standard deviations, that of a (truncated) normal one of so many values three and more.
"""
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bert import BertConfig
from lib.checkpoint.official_layout import is_ignored, official_names
from lib.segmentation import ModelConfig, build

FOLDER = Path(__file__).parent / "parity"
ENOUGH = 200     # numbers, for a standard deviation within 15 % of the table's
UNIFORM = 2.1     # standard deviations: between the largest value of a uniform and of a normal distribution
TEXT = BertConfig(vocab_size=100, num_hidden_layers=1).to_diff_dict()   # of BERT only its width matters here


def family(name: str) -> str:
    """Parameters that differ by stage or block alone."""
    return re.sub(r"\d+", "*", name)


def faults_of(value: Tensor, row: list, reach: float) -> str:
    """How a parameter differs from its row [shape, mean, deviation, minimum, maximum] of the table; '' if it fits.

    `reach` is the largest magnitude in the row's family.
    """
    shape, mean, deviation, lowest, highest = row
    if list(value.shape) != shape and list(value.shape) != shape[:-1]:   # Conv1d of width 1 there, linear here
        return f"shape {list(value.shape)}, {shape} there"
    if lowest == highest:
        return "" if bool((value == lowest).all()) else f"not {lowest} throughout"
    if value.numel() < ENOUGH:
        return "" if value.abs().max() <= 3 * reach and value.abs().max() > 0 else f"beyond ±{reach}"
    own = value.std().item()
    if abs(own / deviation - 1) > 0.15:
        return f"standard deviation {own:.4f}, {deviation:.4f} there"
    if abs(value.mean().item() - mean) > 10 * deviation / value.numel() ** 0.5:
        return f"mean {value.mean().item():.4f}, {mean:.4f} there"
    ours, theirs = (largest / spread for largest, spread in (
        (value.abs().max().item(), own), (max(-lowest, highest), deviation)))
    if (ours < UNIFORM) != (theirs < UNIFORM):
        return f"largest value {ours:.1f} standard deviations, {theirs:.1f} there"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("case", ["rmsin_base", "lavt_tiny", "lgce_base", "fianet_base"])
def test_every_parameter_starts_as_in_the_original(case):
    rows = json.loads((FOLDER / f"init_{case}.json").read_text())
    table = {name: row for name, row in rows.items() if not is_ignored(name)}
    model, swin_type = case.split("_")
    torch.manual_seed(0)
    network = build(ModelConfig(model, swin_type, 12, 480, (1, 1, 1, 1), 0.0, TEXT))
    official = official_names(network.state_dict())
    parameters = {official[name]: value.detach() for name, value in network.named_parameters()
                  if not name.startswith("text_encoder.")}
    assert parameters.keys() == table.keys()

    reach = defaultdict(float)
    for name, (*_, lowest, highest) in table.items():
        reach[family(name)] = max(reach[family(name)], -lowest, highest)
    faults = defaultdict(list)
    for name, row in table.items():
        if fault := faults_of(parameters[name], row, reach[family(name)]):
            faults[family(name)].append(fault)
    assert not faults, "\n".join(f"{name}: {found[0]}" for name, found in faults.items())
