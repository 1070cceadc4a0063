"""Export of the network to one file that other programs run: ONNX, or a program of torch.export.

Shapes: B batch, S the image's side in pixels, N tokens.
"""
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.export import Dim, ExportedProgram

from bert import layout_of
from lib.arc import AdaptiveRotatedConv
from lib.model import ReferringSegmenter
from lib.segmentation import ModelConfig
from transforms import IMAGENET_MEAN, IMAGENET_STD
from utils import MachineError, UserError
from utils.files import temporary_beside

INPUTS, OUTPUT = ("image", "token_ids", "token_mask", "phrase_masks"), "logits"
BATCH = "batch"   # the name of the batch dimension where it is left open
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}   # packages that a form needs
TOLERANCE = 1e-4   # of a file's logits, relative to the network's largest logit
LARGEST_ONNX = 2**31 - 2**24   # bytes of weights: a Protocol Buffers file has at most 2 GiB

Inputs = tuple[Tensor, ...]
Run = Callable[[Inputs], Tensor]


def export_graph(model: ReferringSegmenter, config: ModelConfig, tokenizer: Tokenizer, form: str, path: Path) -> str:
    """Writes `model` to `path` as 'onnx' or 'torch'; returns a line on the file for the log.

    The model must be in evaluation mode and on the CPU; its parameters require no gradients afterwards. The file is
    written under another name and renamed once its logits agree with the network's on new inputs. Raises `UserError` if
    the form's packages are missing or the file cannot be written, `MachineError` if the logits differ.
    """
    if missing := [name for name in PACKAGES[form] if find_spec(name) is None]:
        raise UserError(f"--to {form} needs packages that are not installed: pip install {' '.join(missing)}")
    if path.is_dir():
        raise UserError(f"--out {path} is a folder: give the name of a file")
    size = sum(value.nbytes for value in model.state_dict().values())
    if form == "onnx" and size > LARGEST_ONNX:
        raise UserError(f"--to onnx: {size >> 20} MiB of weights are more than an ONNX file holds; use --to torch")
    temporary = temporary_beside(path)   # PyTorch checks the suffix
    any_batch = takes_any_batch(model, form)
    texts = {"description": describe(model, config, tokenizer, any_batch), "tokenizer": tokenizer.to_str()}
    try:
        with quiet():
            program = trace(model.requires_grad_(False), config, any_batch)
            write, load = FORMS[form]
            write(program, texts, temporary)
            difference = largest_error(model, load(temporary), config, (1, 3) if any_batch else (1, 1))
        if not difference <= TOLERANCE:   # also true for NaN
            raise MachineError(f"--to {form}: the logits of the file differ from the network's by {difference:.1e} of "
                               f"the largest one, more than {TOLERANCE:.0e}; {path} was not written")
        written = temporary.stat().st_size
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return (f"{path}, {written / 2**20:.1f} MiB, for {'any batch' if any_batch else 'one image at a time'}; its logits "
            f"differ from the network's by at most {difference:.1e} of the largest one")


def takes_any_batch(model: ReferringSegmenter, form: str) -> bool:
    """Whether the exported graph accepts any batch size.

    ARC convolves the samples of a batch as groups, whose number is fixed in ONNX.
    """
    return form == "torch" or not any(isinstance(module, AdaptiveRotatedConv) for module in model.modules())


@torch.no_grad()   # with gradients, attention is traced in another memory layout, which ONNX's exporter rejects
def trace(model: ReferringSegmenter, config: ModelConfig, any_batch: bool) -> ExportedProgram:
    """Traces the network as a graph, on two samples if the batch size is left open, else on one."""
    inputs = random_inputs(model, config, batch=1 + any_batch, seed=0)
    batch = Dim(BATCH, min=1)
    shapes = tuple({0: batch} for _ in inputs) if any_batch else None
    return torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False)


def input_names(model: ReferringSegmenter) -> tuple[str, ...]:
    """The names of the arguments of `model.forward` that the network uses."""
    return INPUTS if getattr(model, "reads_phrases", False) else INPUTS[:3]


def random_inputs(model: ReferringSegmenter, config: ModelConfig, batch: int, seed: int) -> Inputs:
    """Random arguments of `model.forward`: noise as images, sentences of random words and lengths."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(2, config.max_tokens + 1, (batch, 1), generator=generator)
    length[-1] = config.max_tokens
    token_mask = (torch.arange(config.max_tokens) < length).long()
    vocabulary = model.text_encoder.config.vocab_size
    words = torch.randint(1, max(2, vocabulary), token_mask.shape, generator=generator)
    phrases = torch.randint(0, 2, (batch, 2, config.max_tokens), generator=generator) * token_mask[:, None]
    phrases[0, 0] = 0   # a sentence may contain no class name of the data set
    image = torch.randn(batch, 3, config.img_size, config.img_size, generator=generator)
    return (image, words.clamp(max=vocabulary - 1) * token_mask, token_mask, phrases)[:len(input_names(model))]


@torch.no_grad()
def largest_error(model: ReferringSegmenter, run: Run, config: ModelConfig, batches: Sequence[int]) -> float:
    """The largest difference from the network's logits, relative to the largest logit, on random batches."""
    errors = []
    for seed, batch in enumerate(batches, start=1):   # seed 0 was traced
        inputs = random_inputs(model, config, batch, seed)
        expected = model(*inputs)
        errors.append((run(inputs) - expected).abs().max() / expected.abs().max())
    return float(torch.stack(errors).max())   # NaN if any is NaN


def describe(model: ReferringSegmenter, config: ModelConfig, tokenizer: Tokenizer, any_batch: bool) -> str:
    """The graph's inputs, output and settings as JSON, for programs that run it."""
    layout = layout_of(tokenizer)
    batch, side, tokens = BATCH if any_batch else 1, config.img_size, config.max_tokens
    inputs = {
        "image": {"shape": [batch, 3, side, side], "dtype": "float32", "colours": "RGB",
                  "resize": "bilinear, antialiased", "scale": 1 / 255, "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        "token_ids": {"shape": [batch, tokens], "dtype": "int64", "tokenizer": "the entry `tokenizer`, for the library "
                      "tokenizers", "longer": "cut" + ", its last special tokens kept" * layout.keeps_end,
                      "shorter": f"padded with {layout.pad_id}" + " on the left" * layout.pads_left},
        "token_mask": {"shape": [batch, tokens], "dtype": "int64", "meaning": "1 for tokens, 0 for padding"},
        "phrase_masks": {"shape": [batch, 2, tokens], "dtype": "int64",
                         "meaning": "1 for the tokens that name the object, and for those that say where it is"}}
    output = {"shape": [batch, 2, side, side], "dtype": "float32",
              "meaning": "0 background, 1 the object; its mask is where 1 exceeds 0"}
    return json.dumps({"inputs": {name: inputs[name] for name in input_names(model)}, "outputs": {OUTPUT: output},
                       "config": config.to_dict()})


@torch.no_grad()
def write_onnx(program: ExportedProgram, texts: dict[str, str], path: Path) -> None:
    """Writes a graph as ONNX, with `texts` as its metadata."""
    from onnxscript.optimizer import fold_constants
    names = INPUTS[:len(program.graph_signature.user_inputs)]
    shapes = tuple({0: BATCH} for _ in names) if program.range_constraints else None   # names of the open dimensions
    # ONNX Runtime lacks this step of the exporter's optimisation; the other steps are slow and bring no speed there.
    graph = torch.onnx.export(program, dynamo=True, input_names=names, output_names=[OUTPUT], dynamic_shapes=shapes,
                              verbose=False, optimize=False)
    assert graph is not None   # it is None without `dynamo`
    fold_constants(graph.model)
    graph.model.metadata_props.update(texts)
    graph.save(path)


def load_onnx(path: Path) -> Run:
    """A function that runs the graph in an ONNX file."""
    from onnxruntime import InferenceSession
    session = InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> Tensor:
        given = {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=False)}
        return torch.from_numpy(session.run([OUTPUT], given)[0])

    return run


def write_torch(program: ExportedProgram, texts: dict[str, str], path: Path) -> None:
    """Writes a program of torch.export, with `texts` as extra files."""
    torch.export.save(program, path, extra_files={f"{name}.json": text for name, text in texts.items()})


def load_torch(path: Path) -> Run:
    """A function that runs the graph in a file of torch.export."""
    network = torch.export.load(path).module()
    return lambda inputs: network(*inputs)


Writer = Callable[[ExportedProgram, dict[str, str], Path], None]
FORMS: dict[str, tuple[Writer, Callable[[Path], Run]]] = {
    "onnx": (write_onnx, load_onnx), "torch": (write_torch, load_torch)}


class quiet(warnings.catch_warnings):
    """A context that silences the exporters' messages, since the result is checked."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        return entered

    def __exit__(self, *problem: Any) -> None:
        logging.disable(logging.NOTSET)
        super().__exit__(*problem)
