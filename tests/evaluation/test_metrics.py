"""Pixel counts and metrics against values computed by hand, and the original program's lines."""
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from lib.evaluation.metrics import (
    boundary,
    compute_metrics,
    count_pixels,
    evaluate,
    format_metrics,
    predict,
    warning_of_empty_predictions,
)


def test_counts_are_of_the_larger_logit_against_the_mask():
    logits = torch.zeros(1, 2, 2, 3)
    logits[0, 1] = torch.tensor([[1.0, -1.0, 0.0], [2.0, 3.0, -1.0]])   # object where positive; a tie is background
    target = torch.tensor([[[1, 1, 0], [0, 1, 0]]])
    # In so small an image all of a mask is its boundary.
    assert count_pixels(predict(logits), target).tolist() == [[2, 4, 3, 2, 4]]


@pytest.mark.parametrize(("height", "width", "depth"), [(40, 30, 1), (96, 96, 3), (480, 480, 14), (60, 90, 2)])
def test_the_boundary_is_what_erosion_takes_away(height, width, depth):
    """2 % of the diagonal deep, and along the image's border too (Cheng et al., CVPR 2021)."""
    masks = np.random.RandomState(0).rand(2, height, width) > 0.002
    masks[0, height // 4:] = False
    padded = np.pad(masks, ((0, 0), (depth, depth), (depth, depth)))
    eroded = [binary_erosion(mask, np.ones((3, 3)), iterations=depth)[depth:-depth, depth:-depth] for mask in padded]
    assert np.array_equal(boundary(torch.from_numpy(masks)).numpy(), masks & ~np.stack(eroded))


def test_metrics_by_hand():
    counts = np.array([[5, 10, 7, 1, 4], [0, 4, 2, 0, 4], [9, 10, 9, 3, 4], [0, 0, 0, 0, 0]])
    metrics = compute_metrics(counts)   # IoU 0.5, 0, 0.9, and 0 where U = 0
    assert metrics["mIoU"] == pytest.approx(100 * 1.4 / 4)
    assert metrics["oIoU"] == pytest.approx(100 * 14 / 24)
    assert metrics["boundary_IoU"] == pytest.approx(100 * (0.25 + 0.75) / 4)
    assert metrics["precision"] == {"0.5": 50.0, "0.6": 25.0, "0.7": 25.0, "0.8": 25.0, "0.9": 25.0}


def test_a_warning_says_so_if_every_prediction_is_empty():
    empty, object_missed, nothing_there = [0, 7, 7, 0, 4], [0, 9, 7, 0, 4], [0, 0, 0, 0, 0]
    warning = warning_of_empty_predictions(np.array([empty, nothing_there]))
    assert warning.startswith("WARNING: all 2 predictions are empty: the network marks no pixel as the object.")
    assert warning_of_empty_predictions(np.array([empty, object_missed])) == ""
    assert warning_of_empty_predictions(np.array([[3, 7, 7, 0, 4], empty])) == ""


def test_nothing_to_predict_and_nothing_predicted_is_not_a_division_by_zero():
    metrics = compute_metrics(np.zeros((1, 5), dtype=np.int64))
    assert metrics["oIoU"] == metrics["boundary_IoU"] == 0


def test_metrics_are_printed_as_the_published_scripts_print_them():
    lines = format_metrics(compute_metrics(np.array([[5, 10, 7, 1, 1], [9, 10, 9, 1, 1]]))).splitlines()
    assert lines[0] == "Mean IoU is 70.00"
    assert lines[1] == "    precision@0.5 = 100.00"
    assert lines[5] == "    precision@0.9 = 50.00"
    assert lines[6] == "    overall IoU = 70.00"


class Corner(torch.nn.Module):
    """Finds the object in the top left pixel, in evaluation mode only."""

    def forward(self, image, token_ids, token_mask):
        assert not self.training
        logits = torch.zeros(len(image), 2, *image.shape[-2:])
        logits[:, 1, 0, 0] = 1
        return logits


def batch(*indices):
    n = len(indices)
    return {"image": torch.zeros(n, 3, 2, 2, dtype=torch.uint8), "target": torch.ones(n, 2, 2, dtype=torch.uint8),
            "token_ids": torch.zeros(n, 20, dtype=torch.int64), "token_mask": torch.ones(n, 20, dtype=torch.int64),
            "index": torch.tensor(indices)}


def test_evaluate_counts_every_sample_and_restores_the_mode():
    model = Corner().train()
    rows = evaluate(model, [batch(0, 1), batch(5)], torch.device("cpu"))
    assert rows[:, :4].tolist() == [[0, 1, 4, 4], [1, 1, 4, 4], [5, 1, 4, 4]]
    assert model.training
    assert evaluate(model, [], torch.device("cpu")).shape == (0, 6)   # a process without a share


def test_an_observer_sees_every_batch():
    seen = []
    evaluate(Corner(), [batch(0, 1), batch(5)], torch.device("cpu"),
             observe=lambda indices, logits: seen.append((indices, tuple(logits.shape))))
    assert seen == [([0, 1], (2, 2, 2, 2)), ([5], (1, 2, 2, 2))]
