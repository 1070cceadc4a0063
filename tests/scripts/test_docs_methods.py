"""The ablations of docs/methods.md: each command's flags take out the part that the page says, and no other."""
import shlex

import pytest

from args import TRAINING, get_parser
from lib.segmentation import MODELS, PARTS, ModelConfig, build, settings_of
from tests.conftest import TEXT, make_inputs
from tests.launch import ROOT

PAGE = (ROOT / "docs/methods.md").read_text()
SECTION = PAGE[PAGE.index("## The paper's ablations"):].split("\n## ", 1)[0]
COMMANDS = [shlex.split(line)[2:] for line in SECTION.splitlines() if line.startswith("python train.py")]


def parts(flags: list[str]) -> dict[str, str]:
    args = get_parser(*TRAINING).parse_args(flags)
    return {place: getattr(args, place) for place in PARTS}


def test_the_commands_take_out_one_part_each():
    whole = MODELS["rmsin"]
    changed = [{place: part for place, part in parts(flags).items() if part != whole[place]} for flags in COMMANDS]
    assert changed == [{"intra_scale": "none"}, {"cross_scale": "none"}, {"decoder_conv": "plain"}]
    together = [word for flags in COMMANDS for word in flags[flags.index("--model_id") + 2:]]
    assert parts(together) == MODELS["lavt"]


@pytest.mark.parametrize(("flags", "entries"), [
    *zip(COMMANDS, ("intra_scale", "cross_scale", "router"), strict=True)])
def test_the_network_lacks_the_part_and_works(flags, entries):
    args = get_parser(*TRAINING).parse_args([*flags, "--swin_type", "nano", "--img_size", "64"])
    network = build(ModelConfig(**settings_of(args), text=TEXT)).eval()
    assert not [name for name in network.state_dict() if entries in name]
    assert network(*make_inputs(1, 64)).shape == (1, 2, 64, 64)
