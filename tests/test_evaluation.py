"""Pixel counts and metrics against values computed by hand, and the published lines."""
import numpy as np
import pytest
import torch

from lib.evaluation import compute_metrics, count_pixels, evaluate, format_metrics


def test_counts_are_of_the_larger_logit_against_the_mask():
    logits = torch.zeros(1, 2, 2, 3)
    logits[0, 1] = torch.tensor([[1.0, -1.0, 0.0], [2.0, 3.0, -1.0]])   # object where positive; a tie is background
    target = torch.tensor([[[1, 1, 0], [0, 1, 0]]])
    assert count_pixels(logits, target).tolist() == [[2, 4, 3]]         # intersection, union, object


def test_metrics_by_hand():
    intersection, union = np.array([5, 0, 9, 0]), np.array([10, 4, 10, 0])   # IoU 0.5, 0, 0.9, and 0 where U = 0
    metrics = compute_metrics(intersection, union)
    assert metrics["mIoU"] == pytest.approx(100 * 1.4 / 4)
    assert metrics["oIoU"] == pytest.approx(100 * 14 / 24)
    assert metrics["precision"] == {"0.5": 50.0, "0.6": 25.0, "0.7": 25.0, "0.8": 25.0, "0.9": 25.0}


def test_nothing_to_predict_and_nothing_predicted_is_not_a_division_by_zero():
    assert compute_metrics(np.array([0]), np.array([0]))["oIoU"] == 0


def test_metrics_are_printed_as_the_published_scripts_print_them():
    lines = format_metrics(compute_metrics(np.array([5, 9]), np.array([10, 10]))).splitlines()
    assert lines[0] == "Mean IoU is 70.00"
    assert lines[1] == "    precision@0.5 = 100.00"
    assert lines[5] == "    precision@0.9 = 50.00"
    assert lines[6] == "    overall IoU = 70.00"


def test_evaluate_counts_every_sample_and_restores_the_mode():
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

    model = Corner().train()
    rows = evaluate(model, [batch(0, 1), batch(5)], torch.device("cpu"))
    assert rows.tolist() == [[0, 1, 4, 4], [1, 1, 4, 4], [5, 1, 4, 4]]
    assert model.training
    assert evaluate(model, [], torch.device("cpu")).shape == (0, 4)   # a process without a share
