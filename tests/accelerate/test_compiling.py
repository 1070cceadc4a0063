"""`--compile` makes one graph of the whole network and compiles it once in a run.

A backend that counts graphs and computes them as they are stands for the compiler, which would take minutes.
"""
import os
import subprocess
import sys

import pytest
import torch

from lib.accelerate import WholeBatches, compiled
from lib.evaluation.metrics import evaluate
from tests.conftest import make_inputs
from tests.launch import PATIENCE_S, ROOT, launcher_variables

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class CountingBackend:
    """Computes a graph as it is; `graphs` says how many were asked for."""

    def __init__(self):
        torch._dynamo.reset()
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def eval_batches(side: int, *sizes: int) -> list[dict[str, torch.Tensor]]:
    batches = []
    for size in sizes:
        image, token_ids, token_mask = make_inputs(size, side)
        batches.append({"image": (image * 50 + 120).clamp(0, 255).byte(), "token_ids": token_ids,
                        "token_mask": token_mask, "target": torch.ones(size, side, side, dtype=torch.uint8),
                        "index": torch.arange(size)})
    return batches


@pytest.mark.slow
def test_a_run_under_ddp_compiles_its_training_step_once(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "tests/accelerate/compiled_steps.py", "50"], cwd=tmp_path, text=True,
                          env={**os.environ, **launcher_variables(1), "RANK": "0", "OMP_NUM_THREADS": "1"},
                          capture_output=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1 graph in 50 steps, 0 bad, trained: True, averaged: True"]


@pytest.mark.slow
def test_an_evaluation_compiles_once_and_fills_up_smaller_batches(nano):
    network, backend = nano(img_size=32), CountingBackend()
    batches = eval_batches(32, 4, 4, 3, 1)
    expected = evaluate(network, batches, CPU)
    found = evaluate(WholeBatches(compiled(network, CUDA, backend=backend, fullgraph=True)), batches, CPU)
    assert torch.equal(found, expected) and backend.graphs == 1


def test_a_cpu_keeps_its_kernels(nano, capsys):
    network = nano()
    assert compiled(network, CPU) is network
    assert "--compile is for GPUs" in capsys.readouterr().out
