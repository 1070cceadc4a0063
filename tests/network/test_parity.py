"""The networks compute what the published programs compute: goldens made by those, in float64, from weights
and inputs that `parity/fill.py` makes from names. Error = ‖ours − theirs‖ / ‖theirs‖."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from args import get_parser
from lib.checkpoint import read_checkpoint
from lib.checkpoint.strict_loading import load_weights
from lib.segmentation import build_model
from tests.network.parity import fill

FOLDER = Path(__file__).parent / "parity"
CASES = ["lavt_one_tiny", "lavt_one_tiny_wide", "rmsin_tiny", "lavt_base", "lavt_one_base", "rmsin_base"]
KEYS = {"lavt_one_tiny_wide": "lavt_one_tiny"}
TOLERANCE = {torch.float64: {"values": 1e-6, "sums": 1e-9}, torch.float32: {"values": 5e-5, "sums": None}}


def error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours.double().numpy() - theirs) / np.linalg.norm(theirs))


def flags(meta: dict) -> list[str]:
    """The command-line flags of a golden's network."""
    size = meta["img_size"] if isinstance(meta["img_size"], int) else 480
    return ["--model", meta["model"], "--swin_type", meta["swin_type"], "--mha", meta["mha"],
            "--img_size", str(size), *(["--window12"] if meta["window_size"] == 12 else [])]


@pytest.mark.parametrize("case", CASES)
def test_evaluation_equals_the_published_program(case, tmp_path):
    golden = np.load(FOLDER / f"{case}.npz")
    meta = json.loads(str(golden["meta"]))
    spec = json.loads((FOLDER / f"{KEYS.get(case, case)}.keys.json").read_text())
    torch.save(fill.checkpoint(spec), tmp_path / "official.pth")
    model = build_model(get_parser().parse_args(flags(meta))).eval()
    load_weights(model, read_checkpoint(tmp_path / "official.pth"), "official.pth")
    stages: list[torch.Tensor] = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: stages.__setitem__(slice(None), inputs[0]))
    image, token_ids, token_mask, _ = fill.inputs(meta["case"], meta["batch"], meta["img_size"])

    for dtype, tolerance in TOLERANCE.items():
        model.to(dtype)
        with torch.inference_mode():
            logits = model(image.to(dtype), token_ids, token_mask)
        for number, stage in enumerate(stages, start=1):
            step = max(1, stage.shape[-1] // 15)
            assert error(stage[:, :16, ::step, ::step], golden[f"stage{number}"]) < tolerance["values"], number
            if tolerance["sums"]:
                assert error(stage.abs().mean((1, 2, 3)), golden[f"stage{number}_abs"]) < tolerance["sums"], number
        assert logits.shape[-2:] == image.shape[-2:]
        assert error(logits[:, :, ::8, ::8], golden["logits"]) < tolerance["values"]
        if tolerance["sums"]:
            assert error(logits.sum((2, 3)), golden["logits_sum"]) < tolerance["sums"]
            assert error(logits.abs().sum((2, 3)), golden["logits_abs"]) < tolerance["sums"]
