"""BatchNorm over several processes equals BatchNorm over the joined batch, by one exchange each way, without a wait."""
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from distributed import wrap, wrapping
from distributed.batch_norm import SharedBatchNorm, share_batch_norms
from tests.conftest import make_inputs
from tests.launch import ROOT

pytestmark = pytest.mark.usefixtures("narrow_nano")


def layers(dtype: torch.dtype, **settings) -> nn.Sequential:
    """BatchNorms over maps and over rows; the first deviates little from a large mean."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3, **settings), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, **settings),
                          nn.Flatten(), nn.Linear(36, 5), nn.BatchNorm1d(5, **settings)).to(dtype)
    for module in model:
        if settings.get("affine", True) and hasattr(module, "running_mean"):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model


def batches(dtype: torch.dtype) -> torch.Tensor:
    """Five samples, of which the first process has three."""
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(5, 3, 5, 5, generator=generator, dtype=torch.float64) + 30).to(dtype)


def steps(model: nn.Module, x: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    """Two training passes and one in evaluation mode: what has a row a sample, what adds up, what is common."""
    samples: dict[str, torch.Tensor] = {}
    for step in range(2):
        model.zero_grad()
        y = model((x := x.detach().requires_grad_()) * (step + 1))
        (y.pow(3).sum() + y.sum()).backward()
        samples |= {f"output {step}": y.detach(), f"gradient {step}": x.grad}
    sums = {name: parameter.grad for name, parameter in model.named_parameters()}
    common = {name: buffer.clone() for name, buffer in model.named_buffers()}
    if common:   # without running statistics a batch is normalised by itself
        samples["evaluation"] = model.eval()(x).detach()
    return {"samples": samples, "sums": sums, "common": common}


CASES = {   # type, settings, tolerance
    "float64": (torch.float64, {}, 1e-9), "float32": (torch.float32, {}, 1e-3),
    "no scale": (torch.float64, {"affine": False}, 1e-9),
    "mean of all steps": (torch.float64, {"momentum": None}, 1e-9),
    "no running statistics": (torch.float64, {"track_running_stats": False}, 1e-9),
}


def compute_in_process(rank: int, folder: Path) -> None:
    """Computes one process's share of every case."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for name, (dtype, settings, _) in CASES.items():
        model = layers(dtype, **settings)
        keys = list(model.state_dict())
        share_batch_norms(model)
        assert list(model.state_dict()) == keys
        share = slice(0, 3) if rank == 0 else slice(3, 5)
        torch.save(steps(model, batches(dtype)[share]), folder / f"{rank} {name}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def shares(tmp_path_factory) -> Path:
    """The folder of what two processes computed; they are started anew, as a fork would inherit locks of threads."""
    folder = tmp_path_factory.mktemp("shares")
    processes = [subprocess.Popen([sys.executable, "-m", "tests.distributed.test_batch_norm", str(rank), str(folder)],
                                  cwd=ROOT) for rank in range(2)]
    assert [process.wait(300) for process in processes] == [0, 0]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_compute_what_one_does_on_the_joined_batch(shares, case):
    dtype, settings, tolerance = CASES[case]
    first, second = (torch.load(shares / f"{rank} {case}.pt") for rank in range(2))
    for kind, join in (("samples", lambda *parts: torch.cat(parts)), ("sums", torch.add), ("common", lambda a, b: a)):
        for name, expected in steps(layers(dtype, **settings), batches(dtype))[kind].items():
            found = join(first[kind][name], second[kind][name])
            assert (found - expected).abs().max() <= tolerance * max(1, expected.abs().max()), name
    assert all(torch.equal(second["common"][name], value) for name, value in first["common"].items())


def test_float32_keeps_the_digits_of_a_small_deviation_from_a_large_mean(four_processes):
    """Once the running mean has come near, sums around it are small."""
    norm = share_batch_norms(nn.Sequential(nn.BatchNorm1d(1)))[0]
    x = torch.linspace(-0.01, 0.01, 64)[:, None] + 100
    for _ in range(60):
        y = norm(x)
    expected = (x.double() - x.double().mean()) / (x.double().var(correction=0) + norm.eps).sqrt()
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=5e-3)


@pytest.fixture
def four_processes():
    """A process group of four of which the other three are imagined: each exchange returns this process's own sums."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


class Operators(TorchDispatchMode):
    """Counts the operators by name."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))


def normalisations(network: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def test_a_step_of_rmsin_exchanges_once_a_layer_each_way_and_reads_nothing(nano, four_processes):
    network = share_batch_norms(nano("rmsin")).train()
    computed = normalisations(network) - normalisations(network.backbone.stages[-1])   # the last stage's are not
    with Operators() as operators:
        network(*make_inputs(2, 64)).square().mean().backward()
    collectives = {name: count for name, count in operators.counts.items() if name.startswith("c10d")}
    assert set(collectives) == {"c10d.allreduce_"} and collectives["c10d.allreduce_"] == 2 * computed <= 63 + 63
    waits = {"aten.index", "aten.nonzero", "aten._local_scalar_dense", "aten.masked_select"}
    assert not waits & {name for name in operators.counts if operators.counts[name]}, operators.counts


@pytest.mark.slow
def test_compiled_layers_are_one_graph(nano, four_processes):
    """CIM has most of them, of both kinds; `fullgraph` raises where the graph would break."""
    torch._dynamo.reset()
    graphs = []
    module = share_batch_norms(nano("rmsin").cross_scale).train()
    assert normalisations(module) > 30

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(module, fullgraph=True, dynamic=False, backend=count)
    maps = [torch.randn(2, 16 * 2 ** stage, 16 >> stage, 16 >> stage) for stage in range(4)]
    for _ in range(2):
        sum(y.square().mean() for y in compiled(maps, None, None)).backward()
    assert len(graphs) == 1 and all(parameter.grad is not None for parameter in module.parameters())


def test_gpus_share_it_and_cpus_say_that_they_do_not(nano, monkeypatch, capsys, recwarn, four_processes):
    made = []
    monkeypatch.setattr(wrapping, "DistributedDataParallel", lambda model, **_: made.append(model) or nn.Identity())
    for device, kind in ((torch.device("cuda", 0), SharedBatchNorm), (torch.device("cpu"), nn.BatchNorm2d)):
        wrap(nano("rmsin"), device)
        assert type(made.pop().decoder.levels[0].bn1) is kind
    assert capsys.readouterr().out.count("BatchNorm is not synchronised") == 1


def test_wrapping_warns_of_nothing(four_processes, recwarn):
    wrapped = wrap(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), torch.device("cpu"))
    assert not wrapped.broadcast_buffers
    assert [str(warning.message) for warning in recwarn if issubclass(warning.category, FutureWarning)] == []


if __name__ == "__main__":
    compute_in_process(int(sys.argv[1]), Path(sys.argv[2]))
