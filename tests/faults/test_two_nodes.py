"""A run over two machines (two network namespaces of this one), one of which is cut off and connected again."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.launch import ROOT, nano_flags

pytestmark = pytest.mark.slow

ADDRESSES = ("10.77.19.1", "10.77.19.2")


def ip(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *map(str, words)], capture_output=True, text=True)


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """Names of two namespaces joined by a cable, whose ends are called `cable`."""
    names = [f"node{number}-{os.getpid()}" for number in (0, 1)]
    if os.geteuid() != 0 or shutil.which("ip") is None or ip("netns", "add", names[0]).returncode:
        pytest.skip("network namespaces need root and iproute2")
    try:
        ip("netns", "add", names[1])
        if ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "cable", "netns", names[1]).returncode:
            pytest.skip("no virtual cables here")
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def test_a_node_that_was_cut_off_comes_back(nodes, toy, tmp_path):
    def launch(number: int) -> subprocess.Popen:
        command = ["ip", "netns", "exec", nodes[number], sys.executable, "-m", "torch.distributed.run",
                   "--nnodes", "2", "--nproc_per_node", "1", "--max-restarts", "5", "--local_addr", ADDRESSES[number],
                   "--rdzv_backend", "c10d", "--rdzv_id", "test", "--rdzv_endpoint", f"{ADDRESSES[0]}:29400",
                   "--rdzv_conf", f"is_host={1 - number}",
                   ROOT / "train.py", *nano_flags(toy, "--batch-size", 4, "--epochs", 7, "--print-freq", 1,
                                                  "--save_every", 1, "--timeout", 6, "--resume", "auto")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable"}
        with open(tmp_path / f"node{number}.txt", "a") as output:
            return subprocess.Popen(list(map(str, command)), cwd=tmp_path, env=environment, stdout=output,
                                    stderr=subprocess.STDOUT, start_new_session=True)

    def said() -> str:
        return "".join(path.read_text() for path in tmp_path.glob("node*.txt"))

    def wait_for(happens, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not happens():
            assert time.monotonic() < end, said()
            time.sleep(0.1)

    launched = [launch(0), launch(1)]
    try:
        wait_for(lambda: "epoch 2 [1/4]" in said(), 90)
        ip("-n", nodes[1], "link", "set", "cable", "down")
        before = said().count("\nepoch ")
        wait_for(lambda: "another process is gone" in said(), 60)   # neither hangs
        ip("-n", nodes[1], "link", "set", "cable", "up")
        wait_for(lambda: said().count("\nepoch ") > before + 4 or launched[1].poll() is not None, 120)
        if launched[1].poll() is not None:   # its launcher gave up meanwhile, and is started again as by a scheduler
            launched[1] = launch(1)
        wait_for(lambda: "finished: best val" in said(), 120)
        assert "resuming from checkpoints/model_last_RMSIN.pth" in said()
        entries = [json.loads(line) for line in (tmp_path / "models/RMSIN/log.jsonl").read_text().splitlines()]
        assert [entry["epoch"] for entry in entries] == list(range(7))   # each epoch once, none lost
    finally:
        for process in launched:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
