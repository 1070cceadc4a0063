"""The benchmark's tables, how cost grows with size, and the GPU's script without a GPU."""
import json
import os
import subprocess

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from args import EVALUATION, TRAINING, get_parser
from tests.launch import ROOT, run_script
from tools import benchmark, counting, make_toy_rrsisd
from tools.costs import FLOPS, GPUS, Ledger
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


@pytest.mark.slow
def test_count_needs_no_gpu_and_says_that_nothing_was_measured(toy, capsys):
    args = benchmark.parser().parse_args(["count", "--swin_type", "nano", "--img_size", "32", "--batch-size", "2",
                                          "--model", "lavt", "--amp", "bf16", "--ck_bert", str(toy / "bert")])
    figures = counting.count(args)
    assert figures["all"]["operators"] == sum(row["operators"] for row in figures["part"].values())
    assert {"text encoder", "Swin blocks", "fusion", "decoder, rest"} <= set(figures["part"])
    said = capsys.readouterr().out
    assert "nothing was measured" in said and f"| all | {figures['all']['operators']:,} |" in said
    args.compile = True
    with pytest.raises(UserError, match="leave it out"):
        counting.count(args)


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


@pytest.mark.parametrize(("flags", "measurements"), [([], 19), (["--dry-run"], 7)], ids=["GPU", "dry run"])
def test_the_commands_of_the_gpus_script_are_accepted(flags, measurements, tmp_path):
    """With a program in Python's place that notes its arguments: each script's parser takes them."""
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(f'#!/bin/sh\necho "$*" >> {calls}\n')
    python.chmod(0o755)
    done = subprocess.run(["bash", str(ROOT / "tools/benchmark_gpu.sh"), *flags, "figures"], cwd=tmp_path,
                          env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "not measured" not in done.stdout, done.stdout + done.stderr
    parsers = {"tools/benchmark.py": benchmark.parser(), "test.py": get_parser(*EVALUATION),
               "tools/make_toy_rrsisd.py": make_toy_rrsisd.get_parser(),
               "-m torch.distributed.run": get_parser(*TRAINING)}
    parsed: dict[str, list] = {name: [] for name in parsers}
    for line in calls.read_text().splitlines():
        for name, parser in parsers.items():
            if line.startswith(name):
                parsed[name].append(parser.parse_args(line.split("train.py")[-1].removeprefix(name).split()))
    assert [len(found) for found in parsed.values()] == [measurements, 1, 2, 1]
    assert {args.device for args in parsed["tools/benchmark.py"]} == {"cpu" if flags else "cuda"}
    assert parsed["-m torch.distributed.run"][0].compile and parsed["-m torch.distributed.run"][0].amp == "bf16"
    assert "figures/log.txt" in done.stdout


def test_an_interpreter_without_torch_ends_the_gpus_script_at_once(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\necho No module named torch >&2\nexit 1\n")
    python.chmod(0o755)
    done = subprocess.run(["bash", str(ROOT / "tools/benchmark_gpu.sh"), "figures"], cwd=tmp_path,
                          env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.splitlines() == [f"{python} cannot import torch (No module named torch): activate the "
                                        "environment, or name its interpreter, PYTHON=path"]
