"""Trains several methods with several seeds on one data set, and writes one table: cost, metrics, differences.

    python tools/compare_methods.py --out comparison --seeds 1 2 3 --splits val test \\
        --method "LAVT=--model lavt" --method "LAVT, masked=--model lavt --masked_pass" \\
        -- --refer_data_root DATA --dataset rrsisd --epochs 40

Flags after `--` are train.py's and hold for every method; flags behind a method's name are its own. For a method that
is trained already, --checkpoints NAME=A.pth,B.pth gives a file for each run. train.py does each run, and resumes one
that was interrupted; test.py evaluates it. Finished work is not repeated, so the same command with more methods or
seeds adds to the table. It writes table.md, table.tex, index.html and comparison.json.
"""
import argparse
import re
import shlex
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from args import EVALUATION, TRAINING, Parser, RecipeParser, count, get_parser
from distributed import user_errors
from lib.checkpoint import peek
from lib.evaluation import text_tables
from lib.evaluation.methods import Entry, cost_table, difference_table, metric_table, summarize_methods
from lib.evaluation.published import Published, as_data, no_rows, published_rows
from lib.evaluation.result_files import read_results
from lib.report.tables_page import write_tables_page
from lib.segmentation import build_model
from lib.training.resume import as_stored_now, changed_flags
from lib.training.state import run_files
from refer.mask_files import masks_digest
from refer.published import other_size
from refer.refer import REFER
from refer.table import RefTable
from tools.workloads import make_batch
from transforms import network_inputs
from utils import UserError, duration, log, make_folder, read_json, sha256_of, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
SET_HERE = ("seed", "model_id", "output_dir", "resume", "show_recipe")   # flags that no method may have
WITHOUT_EFFECT = ("given", "resume", "results", "workers", "pin_mem", "batch_size", "timeout", "device",
                  "local_rank")   # flags of test.py that may differ where results are used again
NOTES = (
    "Metrics are means over the runs, in percent; ± is half of Student's 95 % interval over runs, which assumes that "
    "runs are normally distributed.",
    "Differences are of runs paired in their order. \"Over runs\": Student's 95 % interval, for other seeds on these "
    "images. \"Over images\": bootstrap interval, for other images with these networks. A difference is likely to be "
    "found again if 0 is outside both intervals. The best mean of a column is in bold.",
    "GFLOP are those of a forward pass of one image (twice the multiplications); speeds and memory were measured on "
    "this machine, by tools/benchmark.py, and are of the flags' batch size.")


@dataclass
class Method:
    """A row of the table: its name, its flags together with those of all methods, the checkpoints given for it."""

    name: str
    flags: list[str]
    args: Namespace
    checkpoints: list[str] = field(default_factory=list)

    @property
    def slug(self) -> str:
        """The name in the form that file names have."""
        return re.sub(r"\W+", "-", self.name.lower()).strip("-")


@dataclass
class Run:
    """One training of a method: its files are called `name`; `seed` is None if its checkpoint was given."""

    method: Method
    name: str
    seed: int | None
    checkpoint: Path


def get_own_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                    usage="compare_methods.py --out FOLDER --method NAME=FLAGS … [-- FLAGS of train.py]")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where runs and tables go")
    parser.add_argument("--method", required=True, action="append", metavar="NAME=FLAGS",
                        help="a method and its flags of train.py; give one for each row")
    parser.add_argument("--checkpoints", default=[], action="append", metavar="NAME=FILE,…",
                        help="checkpoints of a method, which is then not trained")
    parser.add_argument("--seeds", nargs="+", default=[1, 2, 3], type=count, metavar="N",
                        help="seeds of each method's runs (default: 1 2 3)")
    parser.add_argument("--splits", nargs="+", default=["val"], metavar="SPLIT", help="default: val")
    parser.add_argument("--base", metavar="NAME",
                        help="the method that the others are compared with (default: the first method)")
    parser.add_argument("--compare_published", action="store_true",
                        help="also show the published figures of docs/reference for the data set and the splits")
    parser.add_argument("--rounds", default=5, type=count, metavar="N",
                        help="rounds of measuring speed and memory; 0 leaves that out (default: 5)")
    parser.add_argument("--launch", default=shlex.quote(sys.executable), metavar="COMMAND",
                        help="what runs train.py and test.py, 'torchrun --nproc_per_node 4' for example (default: "
                             "this Python)")
    return parser


def name_and_rest(text: str, flag: str) -> tuple[str, str]:
    """'NAME=REST' in two parts. Raises `UserError` unless there are two."""
    name, equals, rest = text.partition("=")
    if not equals or not name.strip() or not re.search(r"\w", name):
        raise UserError(f"{flag} '{text}' is not of the form NAME=…")
    return name.strip(), rest.strip()


def read_methods(own: Namespace, shared: list[str]) -> list[Method]:
    """The methods that the flags describe. Raises `UserError` for a name given twice and for flags set here."""
    methods: dict[str, Method] = {}
    for text in own.method:
        name, flags = name_and_rest(text, "--method")
        try:
            both = [*shared, *shlex.split(flags)]
        except ValueError as error:
            raise UserError(f"--method '{text}': {error}") from error
        method = Method(name, both, get_parser(*TRAINING).parse_args(both))
        if taken := set(SET_HERE).intersection(method.args.given):
            raise UserError(f"{name}: --{sorted(taken)[0]} is set by compare_methods.py itself; leave it out")
        if method.args.epochs is None:   # a nano network's, which follow from the number of samples
            raise UserError(f"{name}: give --epochs, since methods are compared after equally many")
        method.args.passes = method.args.passes or 1   # as train.py understands --epochs
        if any(method.slug == other.slug for other in methods.values()):
            raise UserError(f"--method {name}: there are two methods of this name, or of one like it")
        methods[name] = method
    for text in own.checkpoints:
        name, files = name_and_rest(text, "--checkpoints")
        if name not in methods:
            raise UserError(f"--checkpoints {name}: no --method has this name")
        methods[name].checkpoints = files.split(",")
    if own.base and own.base not in methods:
        raise UserError(f"--base {own.base} is none of the methods: {', '.join(methods)}")
    return list(methods.values())


def plan(methods: list[Method], own: Namespace) -> list[Run]:
    """Every run, of each method in turn. Raises `UserError` if a run of a name was trained with other flags."""
    out, runs = Path(own.out), []
    for method in methods:
        if method.checkpoints:
            runs += [Run(method, f"{method.slug}-{number}", None, Path(path))
                     for number, path in enumerate(method.checkpoints, start=1)]
            continue
        for seed in own.seeds:
            name = f"{method.slug}-seed{seed}"
            run = Run(method, name, seed, run_files(out / "runs", model_id(out, name))["best"])
            last = run_files(out / "runs", model_id(out, name))["last"]
            stored = (peek(last, "args") or {}) if last.is_file() else {}
            wanted = {**vars(method.args), "seed": seed}
            if changed := changed_flags(stored, wanted):
                before = as_stored_now(stored)[changed[0]]
                raise UserError(f"{last} is of a run with other flags ({changed[0]} was {before!r}, is "
                                f"{wanted[changed[0]]!r}): give another --out, or remove the file")
            runs.append(run)
    return runs


def model_id(out: Path, name: str) -> str:
    """`--model_id` of a run: models/ID has its record."""
    return f"{out.resolve().name}-{name}"


def call(command: list[str], log_file: Path) -> None:
    """Runs a command, whose output goes to a file. Raises `UserError` with its last line if it fails.

    An interrupt from the terminal reaches the command, too, which is given the time to save.
    """
    with log_file.open("a", encoding="utf-8") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise SystemExit(130) from None
    if status:
        said = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise UserError(f"{shlex.join(command)} ended with status {status} ({log_file}): {said[-1] if said else ''}")


def train(run: Run, own: Namespace) -> bool:
    """Trains a run from its last state, unless it is finished. Returns whether it trained."""
    identity = model_id(Path(own.out), run.name)
    last = run_files(Path(own.out) / "runs", identity)["last"]
    progress = (peek(last, "progress") or {}) if last.is_file() else {}
    if progress.get("epoch", 0) >= run.method.args.epochs and run.checkpoint.is_file():
        return False
    call([*shlex.split(own.launch), str(ROOT / "train.py"), *run.method.flags, "--seed", str(run.seed), "--model_id",
          identity, "--output-dir", str(Path(own.out) / "runs"), "--resume", "auto"], log_of(run, own))
    return True


def evaluate(run: Run, split: str, own: Namespace) -> dict[str, Any]:
    """The results of a run on a split. Existing ones are used if they are of its checkpoint, data and flags."""
    path = Path(own.out) / "runs" / f"{run.name}_{split}.json"
    flags = [*known_flags(run.method, get_parser(*EVALUATION)), "--resume", str(run.checkpoint), "--split", split,
             "--results", str(path)]
    if not (path.is_file() and is_of(read_json(path), flags, run.checkpoint)):
        call([*shlex.split(own.launch), str(ROOT / "test.py"), *flags], log_of(run, own))
    return read_results(str(path))


def is_of(results: Any, flags: list[str], checkpoint: Path) -> bool:
    """Whether results, read from a file, are of this checkpoint, the data as they are now, and test.py's flags."""
    args = vars(get_parser(*EVALUATION).parse_args(flags))
    try:
        same = results["checkpoint"]["sha256"] == sha256_of(checkpoint) and all(
            results["flags"].get(name, value) == value for name, value in args.items() if name not in WITHOUT_EFFECT)
        same = same and all(sha256_of(path) == digest for path, digest in results["annotations"].items())
        if same and results.get("masks"):
            refs = REFER(args["refer_data_root"], args["dataset"], args["splitBy"])
            same = masks_digest(RefTable.of(refs)) == results["masks"]
    except (OSError, KeyError, TypeError, AttributeError):   # a file has moved, or the results are no such file
        return False
    return same


def log_of(run: Run, own: Namespace) -> Path:
    return Path(own.out) / "runs" / f"{run.name}.log"


def known_flags(method: Method, parser: RecipeParser) -> list[str]:
    """The words of a command line for those of a method's flags that `parser` knows."""
    flags = []
    for action in parser._actions:
        if action.dest in method.args.given:
            value = getattr(method.args, action.dest)
            name = next(option for option in action.option_strings if option.startswith("--"))
            if isinstance(action, argparse.BooleanOptionalAction):
                flags.append(name if value else name.replace("--", "--no-", 1))
            else:
                flags += [name] if action.nargs == 0 else [name, str(value)]
    return flags


def measure(method: Method, own: Namespace) -> dict[str, float]:
    """The costs of a method (see `lib.evaluation.methods.COSTS`). Speed and memory of an earlier call are kept."""
    path = Path(own.out) / "runs" / f"{method.slug}_speed.json"
    flags = known_flags(method, get_parser())
    if own.rounds and not (path.is_file() and read_json(path)["flags"].get("rounds") == str(own.rounds)):
        call([sys.executable, str(ROOT / "tools/benchmark.py"), "forward", "train", *flags, "--rounds",
              str(own.rounds), "--json", str(path)], path.with_suffix(".log"))
    costs = count_work(method.args)
    if own.rounds:
        forward, training = (read_json(path)[task]["this code"] for task in ("forward", "train"))
        costs |= {"train_images_per_second": training["images_per_second"],
                  "images_per_second": forward["images_per_second"], "train_memory_mib": training["peak_memory_mib"]}
    return costs


def count_work(args: Namespace) -> dict[str, float]:
    """Millions of parameters, and GFLOP of a forward pass of one image, of the plain network."""
    model = build_model(args).eval()
    batch = make_batch(args, 1, torch.device("cpu"), model.reads_phrases)
    # Attention as matrix products: PyTorch's counter does not know the CPU's fused kernel.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*network_inputs(batch, torch.device("cpu")))
    return {"parameters_m": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
            "gflop": counter.get_total_flops() / 1e9}


def find_published(results: dict[str, Any], split: str) -> tuple[list[Published], list[str]]:
    """The published rows to set beside results of `test.py`, and notes: that there are none, that the data differ."""
    dataset, split_by = str(results.get("dataset", "")), str(results.get("flags", {}).get("splitBy", ""))
    if not (rows := published_rows(dataset, split, split_by)):
        return [], [no_rows(dataset, split)]
    samples = results["samples"]
    differs = other_size(dataset, split_by, split, len({sample["ref_id"] for sample in samples}), len(samples))
    return rows, [differs] if differs else []


def write_tables(entries: dict[str, list[Entry]], base: str, out: Path,
                 published: dict[str, tuple[list[Published], list[str]]]) -> list[Path]:
    """Writes the tables of each split and that of costs in every form; returns the files.

    `published` has the rows and notes of `find_published` for the splits that show them.
    """
    rows = {split: summarize_methods(of_split, base) for split, of_split in entries.items()}
    tables, notes = {}, list(NOTES)
    for split, of_split in rows.items():
        others, remarks = published.get(split, ([], []))
        tables[split], sources = metric_table(of_split, others)
        notes += [f"{split}: {note}" for note in (*remarks, *sources)]
        if len(of_split) > 1:
            tables[f"{split}, differences"] = difference_table(of_split, base)
    tables["costs"] = cost_table(next(iter(rows.values())))
    markdown = "\n\n".join(f"**{name}**\n\n{text_tables.markdown(*table)}" for name, table in tables.items())
    latex = "\n\n".join(f"% {name}\n{text_tables.latex(*table)}" for name, table in tables.items())
    files = {name: out / name for name in ("table.md", "table.tex", "index.html", "comparison.json")}
    write_text(files["table.md"], "\n\n".join([markdown, *notes]) + "\n")
    write_text(files["table.tex"], latex + "\n")
    each = {f"{split}, run by run": text_tables.Table(["method", "mIoU", "oIoU"], [
        [row["name"], *(", ".join(f"{value:.2f}" for value in row["metrics"][name]["runs"])
                        for name in ("mIoU", "oIoU"))] for row in of_split]) for split, of_split in rows.items()}
    write_tables_page(files["index.html"], "Comparison of methods", {**tables, **each}, notes)
    write_json(files["comparison.json"], {"base": base, "splits": rows, "notes": notes, **(
        {"published": {split: as_data(others) for split, (others, _) in published.items()}} if published else {})})
    log(markdown)
    return list(files.values())


def run(own: Namespace, shared: list[str]) -> None:
    """Does all runs, then writes the tables. `main` prints its user errors."""
    methods, out = read_methods(own, shared), Path(own.out)
    make_folder(out / "runs")
    runs = plan(methods, own)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {split: {} for split in own.splits}
    for number, one in enumerate(runs, start=1):
        log(f"run {number} of {len(runs)}: {one.name} (its output: {log_of(one, own)})")
        begun = time.perf_counter()
        if one.seed is not None and train(one, own):
            log(f"trained in {duration(time.perf_counter() - begun)}")
        for split in own.splits:
            found[split].setdefault(one.method.name, []).append(evaluate(one, split, own))
    costs = {}
    for method in methods:
        log(f"measuring {method.name}")
        costs[method.name] = measure(method, own)
    entries = {split: [Entry(method.name, found[split][method.name], costs[method.name]) for method in methods]
               for split in own.splits}
    published = {split: find_published(of_split[methods[0].name][0], split) for split, of_split in found.items()} \
        if own.compare_published else {}
    for path in write_tables(entries, own.base or methods[0].name, out, published):
        log(f"wrote {path}")


def main() -> None:
    given = sys.argv[1:]
    first = given.index("--") if "--" in given else len(given)
    own = get_own_parser().parse_args(given[:first])
    with user_errors("compare_methods.py"):
        run(own, given[first + 1:])


if __name__ == "__main__":
    main()
