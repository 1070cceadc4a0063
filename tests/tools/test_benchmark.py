"""The benchmark's tables, how cost grows with size, and the GPU's script without a GPU."""
import json
import os
import subprocess
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.launch import ROOT, run_script
from tools import benchmark, counting, gpu_session
from tools.costs import FLOPS, GPUS, Ledger
from tools.fake_gpu import needs_driver
from utils import UserError, describe_cpu


def test_growth_is_the_slope_of_logarithms(monkeypatch, capsys):
    """Seconds of side² · batch: powers 2 and 1."""
    def measured(args, task):
        seconds = args.img_size ** 2 * args.batch_size * 1e-6
        return {"this code": {"images": args.batch_size, "seconds": [seconds, 2 * seconds, seconds / 2],
                              "peak_memory_mib": 7}}
    monkeypatch.setattr(benchmark, "measure", measured)
    args = benchmark.parser().parse_args(["forward", "--scale", "--batch-size", "2", "--model", "lavt"])
    result = benchmark.measure_scale(args, "forward")
    assert result["img_size"]["exponent"] == pytest.approx(2) and result["batch_size"]["exponent"] == pytest.approx(1)
    benchmark.show_scale("forward", result)
    printed = capsys.readouterr().out
    assert "| 896 | 1.61 | 0.803 to 3.21 | 0.803 | 7 MiB |" in printed and "power 2.00 of this size" in printed


def test_growth_takes_two_sizes(capsys):
    with pytest.raises(SystemExit):
        benchmark.parser().parse_args(["forward", "--scale", "--scale_sides", "64,64"])
    assert "names one size" in capsys.readouterr().err


def test_a_ledger_counts_by_phase_part_and_family():
    """A product and a ReLU: x (4, 3), weight (5, 3), no bias; 4 bytes a number. Views are no operators."""
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU())
    ledger = Ledger(gpu=GPUS["l4"], tf32=False, parts={model[0]: "product"})
    x = torch.ones(4, 3)
    with ledger:
        model(x).backward(torch.ones(4, 5))
    forward = ledger.costs["forward", "product", "GEMM"]
    assert (forward.operators, forward.flops, forward.moved) == (1, 2 * 4 * 3 * 5, 4 * (12 + 15 + 20))
    assert forward.seconds == max(forward.flops / 30.3e12, forward.moved / 0.3e12)
    backward = ledger.costs["backward", "product", "GEMM"]   # x takes no gradient
    assert (backward.operators, backward.flops) == (1, 120)
    assert ledger.costs["forward", "rest", "activation"].moved == 4 * 40
    assert ledger.costs["backward", "rest", "activation"].operators == 1
    assert ledger.total().operators == sum(cost.operators for cost in ledger.by("family").values())


def test_what_is_saved_for_the_backward_pass_is_counted_once_and_without_weights():
    """x (4, 3) for the first weight's gradient, the ReLU's output (4, 5) for its own and the next; 4 bytes a number."""
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    with counting.saved_for_backward(Namespace(in_backward=False), model) as saved:
        model(torch.ones(4, 3, requires_grad=True))
    assert sorted(saved.values()) == [4 * 4 * 3, 4 * 4 * 5]


@pytest.mark.slow
@pytest.mark.skipif(needs_driver(), reason="this PyTorch has fake GPUs only beside a driver")
def test_count_needs_no_gpu_and_says_that_nothing_was_measured(toy, tmp_path):
    """In a process of its own."""
    flags = ["count", "--swin_type", "nano", "--img_size", "32", "--batch-size", "2", "--model", "lavt", "--amp",
             "bf16", "--ck_bert", str(toy / "bert")]
    done = run_script("tools/benchmark.py", *flags, "--json", tmp_path / "count.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "count.json").read_text())["count"]
    assert figures["all"]["operators"] == sum(row["operators"] for row in figures["part"].values())
    assert {"text encoder", "Swin blocks", "fusion", "decoder, rest"} <= set(figures["part"])
    assert "nothing was measured" in done.stdout and f"| all | {figures['all']['operators']:,} |" in done.stdout
    held = figures["held"]
    assert held["gradients"] < held["weights"] and held["saved"] > 0
    assert 2 * held["gradients"] <= held["moments"] < 2.001 * held["gradients"], "two moments, and a number of steps"
    with pytest.raises(UserError, match="leave it out"):
        counting.count(benchmark.parser().parse_args([*flags, "--compile"]))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_convolutions_gradients_cost_twice_the_convolution(layer, groups):
    """In any number of groups; ARC has one a sample."""
    conv = layer(8, 12, 3, padding=1, groups=groups)
    x = torch.randn(2, 8, 6, 7, requires_grad=True)
    forward = 2 * 2 * 6 * 7 * 9 * 8 * 12 // groups
    with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
        conv(x).sum().backward()
    assert counter.get_total_flops() == 3 * forward


@pytest.mark.slow
def test_a_measurement_names_its_machine(toy, tmp_path):
    done = run_script("tools/benchmark.py", "forward", "--swin_type", "nano", "--img_size", 64, "--batch-size", 1,
                      "--rounds", 1, "--warm_up", 0, "--threads", 1, "--ck_bert", toy / "bert",
                      "--json", tmp_path / "figures.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert done.stdout.startswith(figures["machine"]) and f"{describe_cpu()}, 1 threads" in figures["machine"]
    assert figures["forward"]["this code"]["images_per_second"] > 0


@pytest.mark.parametrize("task", gpu_session.MEASUREMENTS, ids=lambda row: row[0])
def test_the_measurements_of_the_gpus_session_are_accepted(task):
    name, workload, flags = task
    words = flags.format(A=8, B=16, W=8, OUT="out", LARGE="large").split()
    args = benchmark.parser().parse_args([workload, *words])
    assert ("bf16" in name) == (args.amp == "bf16") and ("compiled" in name) == args.compile
    assert str(args.batch_size) in name.format(A=8, B=16).split() or workload == "loading"


def test_a_session_writes_each_result_at_once_and_names_what_failed(tmp_path):
    session = gpu_session.Session(tmp_path, 30)
    session.machine = "a machine"
    measured = {"this code": {"seconds": [0.02, 0.01, 0.03], "images_per_second": 400.0, "peak_memory_mib": 7},
                "bound": {"seconds": 0.001}}
    assert session.step("measured", lambda: measured) == measured
    assert "| measured | 20.0 ms, 400.0 images/s | 1.0 ms | 7 MiB |" in (tmp_path / "summary.md").read_text()
    assert session.smoke("fails", fail) is None
    assert session.smoke("ends", os._exit, 3) is None
    assert session.smoke("hangs", time.sleep, 60, limit_s=0.1) is None
    session.limit_s = 0
    assert session.step("late", lambda: measured) is None
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row.get("failed", "").splitlines()[:1] for row in rows] == [
        [], ["ZeroDivisionError: division by zero"], ["the process ended with status 3"], ["no time left"],
        ["no time left"]]
    assert (tmp_path / "summary.md").read_text().count("FAILED") == 4


def fail() -> None:
    _ = 1 / 0


@pytest.mark.slow
def test_the_smoke_test_passes_on_a_cpu(tmp_path):
    """On a GPU it compares with the CPU; here, the kernels of lib.accelerate with themselves in lower precision."""
    cpu = torch.device("cpu")
    assert set(gpu_session.numbers_of(cpu, "lavt", "off")[0].shape) == {4 * 2 * 64 * 64}
    session = gpu_session.Session(tmp_path, 100)
    assert session.smoke("DDP", gpu_session.wrapped, cpu)["cosine of gradients"] > 0.999
    assert session.smoke("waits", gpu_session.no_wait, cpu) == {"steps": 3}


def stand_in(folder: Path, script: str) -> subprocess.CompletedProcess:
    """benchmark_gpu.sh with a shell script in Python's place."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return subprocess.run(["bash", str(ROOT / "tools/benchmark_gpu.sh"), "--dry-run", "figures"], cwd=folder,
                          env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True, timeout=60)


def test_the_gpus_script_starts_the_session(tmp_path):
    done = stand_in(tmp_path, f'echo "$*" >> {tmp_path}/calls')
    assert done.returncode == 0, done.stderr
    last = (tmp_path / "calls").read_text().splitlines()[-1].split()
    assert last[:2] == ["tools/gpu_session.py", str(tmp_path / "figures")] and last[-1] == "--dry-run"
    assert (tmp_path / "figures/log.txt").exists()


def test_a_package_that_is_missing_is_named_with_what_to_do(tmp_path):
    done = stand_in(tmp_path, '[ "$1" = - ] && echo pycocotools timm; exit 0')
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "lacks pycocotools timm: put their wheels into the folder wheels" in done.stderr


def test_an_interpreter_without_torch_ends_the_gpus_script_at_once(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\necho No module named torch >&2\nexit 1\n")
    python.chmod(0o755)
    done = subprocess.run(["bash", str(ROOT / "tools/benchmark_gpu.sh"), "figures"], cwd=tmp_path,
                          env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.splitlines() == [f"{python} cannot import torch (No module named torch): activate the "
                                        "environment, or name its interpreter, PYTHON=path"]
