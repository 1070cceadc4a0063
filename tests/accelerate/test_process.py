"""A process's set-up: a precision that its CPU computes fast in, and on GPUs the settings of the flags."""
from types import SimpleNamespace

import pytest
import torch

import utils
from args import get_parser
from lib.accelerate import precision, process, set_up, set_up_cuda, usable_amp
from lib.predictor import Predictor

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
AVX2_ONLY = ("Some CPU", frozenset({"avx2", "fma"}))


@pytest.fixture
def processor(monkeypatch):
    """Makes this machine's processor another one: processor(name, flags)."""
    def become(name, flags):
        for module in (utils.machine, precision):
            monkeypatch.setattr(module, "processor", lambda: (name, frozenset(flags)))
    return become


def test_bfloat16_on_a_cpu_without_its_instructions_is_float32_and_said_in_a_line(processor, capsys):
    processor(*AVX2_ONLY)
    assert usable_amp("bf16", CPU) == "off"
    printed = capsys.readouterr().out
    assert "Some CPU has no bfloat16 instructions" in printed and printed.count("\n") == 1
    assert [usable_amp(amp, CPU) for amp in ("bf16!", "fp16", "off")] == ["bf16", "fp16", "off"]
    assert usable_amp("bf16", CUDA) == usable_amp("bf16!", CUDA) == "bf16"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16", "bf16"])
def test_bfloat16_stays_where_the_cpu_has_instructions(processor, flag):
    processor("Some CPU", {"avx2", flag})
    assert usable_amp("bf16", CPU) == "bf16"


def test_where_flags_are_unknown_onednn_answers(processor, monkeypatch):
    processor("Some CPU", ())
    for answer, amp in ((True, "bf16"), (False, "off")):
        monkeypatch.setattr(precision, "has_bfloat16", lambda answer=answer: answer)
        assert usable_amp("bf16", CPU) == amp


def test_a_figure_names_the_cpu_and_what_its_speed_depends_on(processor):
    processor("Some CPU", {"fma", "avx2", "avx512f"})
    assert utils.describe_cpu() == "Some CPU (AVX2, AVX-512)"
    processor(*AVX2_ONLY)
    assert utils.describe_run(CPU)["device"] == "cpu: Some CPU (AVX2)"


@pytest.mark.parametrize("script", ["train.py", "test.py", "demo_inference.py", "demo_server.py",
                                    "tools/benchmark.py", "Predictor"])
def test_every_program_asks(script, processor, monkeypatch):
    """Each calls `set_up`, or `usable_amp` itself, before it computes."""
    class AskedError(Exception):
        pass

    def asked(*_):
        raise AskedError

    processor(*AVX2_ONLY)
    monkeypatch.setattr(process, "usable_amp", asked)
    if script == "Predictor":
        monkeypatch.setattr("lib.predictor.usable_amp", asked)
        config = SimpleNamespace(reads_phrases=False, img_size=64, max_tokens=20)
        monkeypatch.setattr("lib.predictor.restore", lambda *_: (None, config, None))
        with pytest.raises(AskedError):
            Predictor("x.pth", amp="bf16")
        return
    flags = get_parser().parse_args(["--amp", "bf16", "--device", "cpu"])
    flags.image, flags.sentence, flags.pairs, flags.threads, flags.port = [__file__], ["a ship"], None, None, 0
    flags.out = "out"
    if script == "tools/benchmark.py":
        from tools.benchmark import serve
        with pytest.raises(AskedError):
            serve(None, flags, "forward", False)
    else:
        module = __import__(script.removesuffix(".py"))
        with pytest.raises(AskedError):
            module.run(flags)


@pytest.fixture
def gpu_settings():
    """PyTorch's settings of GPUs, which are restored after the test."""
    cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    kept = cudnn.allow_tf32, cudnn.benchmark

    def now():
        return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    yield now
    cudnn.allow_tf32, cudnn.benchmark = kept
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("flags", "expected", "said"), [
    ([], (True, True, True), "in TF32, as in the original's PyTorch"),
    (["--no-tf32", "--no-cudnn_benchmark"], (False, False, False), "in full precision"),
])
def test_flags_reach_the_gpu(flags, expected, said, gpu_settings, capsys):
    args = get_parser().parse_args(flags)
    set_up(CUDA, args)
    assert gpu_settings() == expected and said in capsys.readouterr().out
    assert args.pin_mem is True


@pytest.mark.parametrize(("flags", "tf32"), [(None, True), ([], True), (["--no-tf32", "--no-cudnn_benchmark"], False)])
def test_a_predictor_on_a_gpu_computes_as_precisely_as_test_py(flags, tf32, gpu_settings, monkeypatch):
    network = SimpleNamespace(to=lambda device: None)
    config = SimpleNamespace(reads_phrases=False, img_size=64, max_tokens=20)
    monkeypatch.setattr("lib.predictor.restore", lambda *_: (network, config, None))
    for name in ("accelerate", "prepare_for_inference"):
        monkeypatch.setattr(f"lib.predictor.{name}", lambda *_, **__: None)
    set_up_cuda(not tf32, not tf32)
    Predictor("x.pth", device="cuda", args=None if flags is None else get_parser().parse_args(flags))
    assert gpu_settings() == (tf32,) * 3


def test_a_cpu_gets_none_of_it(gpu_settings, capsys):
    before, args = gpu_settings(), get_parser().parse_args([])
    set_up(CPU, args)
    assert gpu_settings() == before and args.pin_mem is False and not capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--pin_mem", "--no-pin_mem"])
def test_pinned_memory_as_asked(flag, gpu_settings):
    for device in (CPU, CUDA):
        args = get_parser().parse_args([flag])
        set_up(device, args)
        assert args.pin_mem == (flag == "--pin_mem")
