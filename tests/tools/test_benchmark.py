"""The benchmark's tables, how cost grows with size, and the GPU's script without a GPU."""
import json
import os
import subprocess
import sys

import pytest

from tests.launch import ROOT, run_script
from tools import benchmark


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


@pytest.mark.slow
def test_a_measurement_names_its_machine(toy, tmp_path):
    done = run_script("tools/benchmark.py", "forward", "--swin_type", "nano", "--img_size", 64, "--batch-size", 1,
                      "--scale", "--scale_sides", "32,64", "--scale_batches", "1,2", "--rounds", 1, "--warm_up", 0,
                      "--threads", 1, "--ck_bert", toy / "bert", "--json", tmp_path / "figures.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    from utils import describe_cpu
    assert done.stdout.startswith(figures["machine"]) and f"{describe_cpu()}, 1 threads" in figures["machine"]
    assert [row["img_size"] for row in figures["forward"]["img_size"]["rows"]] == [32, 64]


@pytest.mark.slow
def test_the_gpus_script_runs_every_step(tmp_path):
    done = subprocess.run(["bash", str(ROOT / "tools/benchmark_gpu.sh"), "--dry-run", str(tmp_path / "figures")],
                          env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}, cwd=tmp_path,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "not measured" not in done.stdout, done.stdout[-3000:]
    steps = [line for line in done.stdout.splitlines() if line.startswith("== ")]
    assert len(steps) == 11
    assert len(list((tmp_path / "figures").glob("*.json"))) == 9   # seven measurements, a trace, and the checkpoint's
    assert (tmp_path / "figures/log.txt").read_text().count("Mean IoU is") == 1
