"""The networks compute what the original programs compute, with and without `lib.accelerate`.

Those made the goldens, in float64, from weights and inputs that `parity/fill.py` makes from names.
Error = ‖ours − theirs‖ / ‖theirs‖.
"""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from args import get_parser
from lib.accelerate import accelerate
from lib.checkpoint import build_with_weights
from lib.segmentation import ModelConfig
from tests.network.parity import fill

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent / "parity"
CASES = ["lavt_one_tiny", "lavt_one_tiny_wide", "rmsin_tiny", "lavt_base", "lavt_one_base", "rmsin_base", "lgce_base",
         "fianet_base"]
KEYS = {"lavt_one_tiny_wide": "lavt_one_tiny"}
ACCELERATED = ["lavt_base", "lavt_one_base", "rmsin_base"]   # the other cases are of the plain network
TOLERANCE = {torch.float64: {"values": 1e-6, "sums": 1e-9}, torch.float32: {"values": 5e-5, "sums": None}}


def error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours.double().numpy() - theirs) / np.linalg.norm(theirs))


def flags(meta: dict) -> list[str]:
    """The command-line flags of a golden's network."""
    size = meta["img_size"] if isinstance(meta["img_size"], int) else 480
    return ["--model", meta["model"], "--swin_type", meta["swin_type"], "--mha", meta["mha"],
            "--img_size", str(size), *(["--window12"] if meta["window_size"] == 12 else []),
            *(["--num_tmem", str(meta["num_tmem"])] if "num_tmem" in meta else [])]


def inputs(meta: dict, case: str) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The arguments of a golden's network, phrase masks included if it reads them, and the target mask."""
    image, token_ids, token_mask, target = fill.inputs(case, meta["batch"], meta["img_size"],
                                                       tokens=meta.get("tokens", 20))
    phrases = [phrase_masks(token_mask)] if meta["model"] == "fianet" else []
    return [image, token_ids, token_mask, *phrases], target


def phrase_masks(token_mask: torch.Tensor) -> torch.Tensor:
    """The masks of FIANet's goldens: (B, N) -> (B, 2, N) int64.

    The object's words are tokens 1 and 2, and none in the last sample. Those of its position are the whole sentence in
    odd samples; in even ones all tokens from 2 on that are neither [SEP] nor padding, and token 2 at least.
    """
    objects, positions = torch.zeros_like(token_mask), token_mask.clone()
    objects[:-1, 1:3] = 1
    for sample in range(0, len(token_mask), 2):
        positions[sample] = 0
        positions[sample, 2:max(3, int(token_mask[sample].sum()) - 1)] = 1
    return torch.stack([objects, positions], dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_evaluation_equals_the_published_program(case):
    golden = np.load(FOLDER / f"{case}.npz")
    meta = json.loads(str(golden["meta"]))
    spec = json.loads((FOLDER / f"{KEYS.get(case, case)}.keys.json").read_text())
    config = ModelConfig.from_args(get_parser().parse_args(flags(meta)))
    model = build_with_weights(config, fill.checkpoint(spec), case).eval()
    if case in ACCELERATED:
        accelerate(model, torch.device("cpu"))
    stages: list[torch.Tensor] = []
    # The goldens' stages come after CIM or TMEM, which the original keeps in its backbone, and before LGCE's blocks.
    reader = model.cross_scale if meta["model"] == "lgce" else model.decoder
    reader.register_forward_pre_hook(lambda _, inputs: stages.__setitem__(slice(None), inputs[0]))
    (image, *sentence), _ = inputs(meta, meta["case"])

    for dtype, tolerance in TOLERANCE.items():
        model.to(dtype)
        with torch.inference_mode():
            logits = model(image.to(dtype), *sentence)
        for number, stage in enumerate(stages, start=1):
            step = max(1, stage.shape[-1] // 15)
            assert error(stage[:, :16, ::step, ::step], golden[f"stage{number}"]) < tolerance["values"], number
            if tolerance["sums"]:
                assert error(stage.abs().mean((1, 2, 3)), golden[f"stage{number}_abs"]) < tolerance["sums"], number
        assert logits.shape[-2:] == image.shape[-2:]
        assert error(logits[:, :, ::8, ::8], golden["logits"]) < tolerance["values"]
        if tolerance["sums"]:
            axes = (2, 3) if golden["logits_sum"].shape else (0, 1, 2, 3)
            assert error(logits.sum(axes), golden["logits_sum"]) < tolerance["sums"]
            assert error(logits.abs().sum(axes), golden["logits_abs"]) < tolerance["sums"]
