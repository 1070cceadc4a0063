"""From files to a paper's row: checks data, weights and GPUs, trains by the recipe, evaluates, compares with the paper.

    bash scripts/reproduce.sh rmsin rrsisd                        # or python scripts/reproduce.py, in an environment
    bash scripts/reproduce.sh rmsin rrsisd --seeds 3 -- --amp bf16 --packed rrsisd.h5
    bash scripts/reproduce.sh rmsin rrsisd --toy

Flags after `--` are train.py's. The global batch is the original program's on any number of GPUs. Finished work is not
repeated: the same command goes on where it was stopped. What is missing is said, a line each, with status 2, before
anything is started. --toy takes every step with a very small network on a toy set, on a CPU.
"""
import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from args import TRAINING, Parser, get_parser, positive
from lib.evaluation.published import Published, published_row
from lib.segmentation import MODELS
from lib.training.recipes import SWIN_BASE_FILE, recipe_of
from refer.own import find_dataset
from utils import UserError, log, make_folder, printable, read_json, sha256_of, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
PROCESSES = 4       # of the original programs of RMSIN and LAVT, whose recipes give the batch of one process
FIRST_SEED = 2401   # train.py's default
# Flags of the original programs' commands that are not defaults here.
METHOD_FLAGS = {name: ["--pretrained_swin_weights", SWIN_BASE_FILE] for name in ("lavt", "lavt_one", "lgce")}
SET_HERE = ("model", "dataset", "splitBy", "refer_data_root", "seed", "model_id", "output_dir", "resume", "accumulate",
            "show_recipe", "config", "overfit", "init_from")   # flags that may not follow `--`
TESTED_WITH = ("amp", "workers", "packed", "published_masks", "skip_bad_images", "device")   # train.py's and test.py's
TOY_IMAGES, TOY_PX, TOY_EPOCHS, TOY_PROCESSES = 100, 64, 6, 2
METRICS = ("mIoU", "oIoU")
COLUMNS = ("split", "metric", "run", "this code", "95 % interval over images", "published", "difference",
           "95 % interval of the difference, over images")


@dataclass(frozen=True)
class Share:
    """A global batch as processes × `batch_size` × `accumulate`.

    `dice_weight` keeps the loss the same where the batch of a process is another than the original's; else it is None.
    """

    processes: int
    batch_size: int
    accumulate: int
    dice_weight: float | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that is to be done. `flags` are train.py's for all seeds; `evaluation` are test.py's."""

    model: str
    dataset: str      # whose published figures are compared
    shown: str        # that is read: another one for some toy sets
    split_by: str
    data_root: str
    out: str
    splits: tuple[str, ...]
    seeds: tuple[int, ...]
    share: Share
    flags: tuple[str, ...]
    evaluation: tuple[str, ...]
    toy: bool

    def name(self, seed: int) -> str:
        """`--model_id` of a run."""
        return f"{self.model}-{Path(self.shown).name}{'-toy' * self.toy}-{seed}"

    def checkpoint(self, seed: int) -> Path:
        """The best epoch of a run."""
        return Path(self.out) / f"checkpoints/model_best_{self.name(seed)}.pth"

    def results(self, seed: int, split: str) -> Path:
        """The results of a run on a split."""
        return Path(self.out) / f"{seed}_{split}.json"


def get_own_parser() -> argparse.ArgumentParser:
    """The flags before `--`."""
    parser = Parser(prog="reproduce.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                    usage="reproduce.py METHOD DATASET [flags] [-- FLAGS of train.py]")
    parser.add_argument("model", metavar="METHOD", choices=tuple(MODELS), help=", ".join(MODELS))
    parser.add_argument("dataset", metavar="DATASET", help="as --dataset of train.py: rrsisd, refsegrs, …")
    parser.add_argument("--refer_data_root", default="./refer/data/", metavar="FOLDER",
                        help="holds DATASET/ and images/ (default: ./refer/data/)")
    parser.add_argument("--splitBy", default="unc", help="division of the data set into splits (default: unc, or the "
                                                         "only one that it has)")
    parser.add_argument("--out", metavar="FOLDER", help="where everything goes (default: reproductions/METHOD-DATASET)")
    parser.add_argument("--seeds", default=1, type=positive, metavar="N",
                        help=f"number of runs, with the seeds {FIRST_SEED}, {FIRST_SEED + 1}, … (default: 1)")
    parser.add_argument("--gpus", type=positive, metavar="N", help="plan for N GPUs (default: all of this machine)")
    parser.add_argument("--other_counts", action="store_true",
                        help="go on although the data set has not as many samples as published")
    parser.add_argument("--plan", action="store_true", help="print the plan and what is missing, and start nothing")
    parser.add_argument("--toy", action="store_true", help="every step, with a small network on a toy set, on a CPU")
    return parser


# ------------------------------------------------------------------------------------------------------------ plan

def share_batch(total: int, most: int, gpus: int, batch_size: int, dice_weight: float) -> Share:
    """A global batch of `total` on at most `gpus` processes of at most `most` samples each.

    The Dice loss is summed over the batch of a process. The ratio of the two losses stays that of `dice_weight` at
    `batch_size` samples, the original's.
    """
    processes = max(number for number in range(1, gpus + 1) if total % number == 0)
    own = max(number for number in range(1, most + 1) if total // processes % number == 0)
    ratio = dice_weight / (1 - dice_weight) * batch_size / own
    changed = round(ratio / (1 + ratio), 4) if dice_weight and own != batch_size else None
    return Share(processes, own, total // processes // own, changed)


def training_flags(own: Namespace, given: Sequence[str]) -> tuple[list[str], Namespace]:
    """train.py's flags without those of batch and seed, and what they mean. Raises `UserError` for flags set here."""
    base = ["--model", own.model, "--dataset", own.dataset, "--splitBy", own.splitBy, "--refer_data_root",
            own.refer_data_root]
    flags = [*base, *([] if own.toy else METHOD_FLAGS.get(own.model, [])), *given]
    args = get_parser(*TRAINING).parse_args(flags)
    alone = get_parser(*TRAINING).parse_args([*given]) if given else Namespace(given=[])
    if taken := set(SET_HERE).intersection(alone.given):
        raise UserError(f"--{sorted(taken)[0]} is set by reproduce.py itself: give it before the --, or leave it out")
    return flags, args


def make_plan(own: Namespace, given: Sequence[str], gpus: int) -> tuple[Plan, Namespace]:
    """The plan for this number of GPUs, and train.py's flags as it reads them. Raises `UserError` for a wrong flag."""
    flags, args = training_flags(own, given)
    dataset = find_dataset(own.dataset, own.refer_data_root)
    split_by = dataset.split_by(own.splitBy)
    recipe = recipe_of(own.model, dataset.name, args.swin_type)
    # A loss that is given is not changed.
    dice_weight = 0.0 if {"dice_weight", "loss"}.intersection(args.given) else recipe.dice_weight
    share = share_batch(PROCESSES * recipe.batch_size, args.batch_size, gpus, recipe.batch_size, dice_weight)
    evaluation = [word for action in get_parser(*TRAINING)._actions if action.dest in TESTED_WITH
                  and action.dest in args.given for word in
                  ([action.option_strings[-1]] if action.nargs == 0 else
                   [action.option_strings[-1], str(getattr(args, action.dest))])]
    if args.ema:   # the average chose the best epoch
        evaluation.append("--ema")
    splits = tuple(split for split in dataset.layout.splits[split_by] if split != "train")
    out = own.out or f"reproductions/{own.model}-{dataset.name}{'-toy' * own.toy}"
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + own.seeds))
    return Plan(own.model, own.asked, own.dataset, split_by, own.refer_data_root, out, splits, seeds, share,
                tuple(flags), tuple(evaluation), own.toy), args


def least_memory(plan: Plan) -> tuple[int, str]:
    """Bytes that a training process holds at least at the end of a forward pass, counted without a GPU, and a line.

    Gradients are there, too, where a process has several batches an update, and with DDP, which keeps their buckets.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "count.json"
        command = [sys.executable, str(ROOT / "tools/benchmark.py"), "count", *plan.flags, "--batch-size",
                   str(plan.share.batch_size), "--device", "cpu", "--json", str(file)]
        counted = subprocess.run(command, capture_output=True, text=True)
        if counted.returncode:
            return 0, f"the memory of a step was not counted: {counted.stderr.strip().splitlines()[-1]}"
        held = read_json(file)["count"]["held"]
    several = plan.share.processes > 1 or plan.share.accumulate > 1
    least = held["weights"] + held["moments"] + held["saved"] + several * held["gradients"]
    return least, (f"memory of a process: at least {least / 2**30:.1f} GiB, counted (weights, AdamW's moments, what a "
                   "forward pass keeps for the backward pass); a bound, nothing was measured")


def describe(plan: Plan, args: Namespace, facts: Sequence[str], gpus: str, memory: str) -> list[str]:
    """The lines of the plan."""
    share = plan.share
    normalised, whole = share.processes * share.batch_size, share.processes * share.batch_size * share.accumulate
    lines = [f"plan: {plan.model} on {plan.shown}, {args.epochs} epochs, seeds {', '.join(map(str, plan.seeds))}",
             f"  {gpus}",
             f"  global batch {share.processes} × {share.batch_size} × {share.accumulate} (processes × batch × "
             f"accumulated) = {whole}, {PROCESSES} × the recipe's batch, as in RMSIN's and LAVT's programs; BatchNorm "
             f"over {normalised} images"
             + ("" if share.accumulate == 1 else f" instead of {whole}")
             + (f"; Dice weight {share.dice_weight:g}, for the ratio of the losses" if share.dice_weight else ""),
             f"  {memory}"]
    lines += [f"  {fact}" for fact in facts]
    for split in plan.splits:
        row = published_row(plan.model, plan.dataset, split, plan.split_by)
        said = ", ".join(f"{name} {row.figures[name]:.2f}" for name in METRICS if name in row.figures) if row else ""
        lines.append(f"  published, {split}: {said or 'no figure whose source was read (docs/reference)'}")
    return [*lines, f"  everything goes to {plan.out}"]


# ----------------------------------------------------------------------------------------------------------- steps

def launcher(processes: int) -> list[str]:
    """What starts a script in so many processes."""
    return [sys.executable] if processes == 1 else [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


@dataclass(frozen=True)
class Step:
    """A command. It is done if all `files` are there and of the run's checkpoint; without any it is always taken."""

    headline: str
    seed: int
    command: list[str]
    files: tuple[Path, ...] = ()

    def is_done(self, checkpoint: Path) -> bool:
        """Whether each file is there and newer than the checkpoint, and the results among them are of it."""
        if not self.files or not checkpoint.is_file():
            return False
        since, digest = checkpoint.stat().st_mtime_ns, sha256_of(checkpoint)
        return all(file.is_file() and file.stat().st_mtime_ns >= since and (
            file.suffix != ".json" or read_json(file).get("checkpoint", {}).get("sha256") == digest)
            for file in self.files)

    def take(self) -> None:
        """Runs the command, whose output goes on to the terminal. If it fails, this program ends with its status."""
        log(f"== {self.headline}\n{shlex.join(self.command)}")
        try:
            status = subprocess.run(self.command).returncode
        except KeyboardInterrupt:   # the command received it, too
            raise SystemExit(130) from None
        if status:
            log(f"{self.headline} ended with status {status}; the same command goes on from there")
            raise SystemExit(status if status > 0 else 1)


def steps(plan: Plan) -> Iterator[Step]:
    """All steps in order. Training goes on from its last state, and ends at once where it is finished."""
    share, out = plan.share, Path(plan.out)
    batch = ["--batch-size", str(share.batch_size), "--accumulate", str(share.accumulate),
             *(["--dice_weight", f"{share.dice_weight:g}"] if share.dice_weight else [])]
    start, average = launcher(share.processes), [word for word in plan.evaluation if word == "--ema"]
    for seed in plan.seeds:
        checkpoint = str(plan.checkpoint(seed))
        yield Step(f"training, seed {seed}", seed, [
            *start, str(ROOT / "train.py"), *plan.flags, *batch, "--seed", str(seed), "--model_id", plan.name(seed),
            "--output-dir", str(out / "checkpoints"), "--resume", "auto"])
        for split in plan.splits:
            results = plan.results(seed, split)
            yield Step(f"evaluating on {split}, seed {seed}", seed, [
                *start, str(ROOT / "test.py"), "--dataset", plan.shown, "--splitBy", plan.split_by, "--refer_data_root",
                plan.data_root, *plan.evaluation, "--resume", checkpoint, "--split", split, "--results", str(results),
                "--report", str(out / f"report_{seed}_{split}"), "--compare_published"], (results,))
        carded, folder = plan.results(seed, "test" if "test" in plan.splits else plan.splits[0]), out / f"model_{seed}"
        yield Step(f"model folder and card, seed {seed}", seed, [
            sys.executable, str(ROOT / "tools/export.py"), "--resume", checkpoint, "--to", "folder", "--out",
            str(folder), "--results", str(carded), *average], (folder / "README.md", carded))


# ----------------------------------------------------------------------------------------------------- differences

def differences(plan: Plan) -> list[dict[str, Any]]:
    """A row for each split, metric and run, and for all runs together where there are several.

    The interval is the bootstrap's over images, for these networks: that of a difference is the run's less the
    published figure, which has none. All together, each image counts with all its runs.
    """
    from lib.evaluation.metrics import compute_metrics
    from lib.evaluation.result_files import read_results
    from lib.evaluation.tables import counts_of, metric_intervals
    rows = []
    for split in plan.splits:
        published = published_row(plan.model, plan.dataset, split, plan.split_by)
        runs = {f"seed {seed}": read_results(str(plan.results(seed, split))) for seed in plan.seeds}
        if len(runs) > 1:
            samples = [sample for run in runs.values() for sample in run["samples"]]
            runs["all together"] = {**compute_metrics(counts_of(samples)), "intervals": metric_intervals(samples)}
        for metric in METRICS:
            figure = published.figures.get(metric) if published else None
            for name, run in runs.items():
                interval = run["intervals"][metric]
                rows.append({"split": split, "metric": metric, "run": name, "value": run[metric], "interval": interval,
                             "published": figure, "difference": None if figure is None else run[metric] - figure,
                             "difference_interval": None if figure is None or interval is None else
                             [bound - figure for bound in interval]})
    return rows


def as_table(plan: Plan, rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown, with notes below."""
    from lib.evaluation.text_tables import markdown

    def number(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{value:{sign}.2f}"

    def span(interval: Sequence[float] | None, sign: str = "") -> str:
        return "" if interval is None else f"{interval[0]:{sign}.2f} to {interval[1]:{sign}.2f}"

    cells = [[row["split"], row["metric"], row["run"], number(row["value"]), span(row["interval"]),
              number(row["published"]), number(row["difference"], "+"), span(row["difference_interval"], "+")]
             for row in rows]
    notes = [f"{plan.model} on {plan.dataset}, in percent. An interval is for other images and these networks; another "
             "seed may give another difference, which --seeds shows."]
    for split in plan.splits:
        notes.append(about(published_row(plan.model, plan.dataset, split, plan.split_by), plan, split))
    if plan.toy:
        notes.insert(0, f"**Toy data and a very small network: the differences say nothing about {plan.dataset}.**")
    return "\n\n".join([markdown(list(COLUMNS), cells), *notes]) + "\n"


def about(published: Published | None, plan: Plan, split: str) -> str:
    """The source of a published figure and the remark on its protocol."""
    if published is None:
        return f"{split}: docs/reference has no figure of {plan.model} on {plan.dataset} whose source was read."
    remark = f" Remark: {published.remark}." if published.remark else ""
    return f"{split}: {published.method}, {published.year}, {published.backbone}. Source: {published.source}.{remark}"


# ------------------------------------------------------------------------------------------------------------- run

def prepare_toy(own: Namespace, given: Sequence[str]) -> list[str]:
    """Draws the toy set and makes the flags mean it. Returns train.py's flags for a very small network."""
    from data.toy import make_toy_rrsisd
    from data.toy.layouts import LAYOUTS
    own.out = own.out or f"reproductions/{own.model}-{Path(own.asked).name}-toy"
    own.refer_data_root = str(Path(own.out) / "data")
    if own.asked not in ("rrsisd", *LAYOUTS):
        log(f"{own.asked} has no toy layout: the steps are those of rrsisd")
        own.dataset, own.splitBy = "rrsisd", "unc"
    make_folder(Path(own.out))
    make_toy_rrsisd(own.refer_data_root, TOY_IMAGES, TOY_PX, layout=own.dataset)
    log(f"drew {TOY_IMAGES} toy pictures in the layout of {own.dataset} into {own.refer_data_root}")
    bert = f"{own.refer_data_root}/bert"
    return ["--swin_type", "nano", "--img_size", str(TOY_PX), "--ck_bert", bert, "--bert_tokenizer", bert, "--epochs",
            str(TOY_EPOCHS), "--workers", "0", "--device", "cpu", *given]


def run(own: Namespace, given: Sequence[str]) -> int:
    """Checks, plans, and unless something is missing takes all steps. Returns the exit status."""
    from tools import readiness  # PyTorch takes a second, which --help need not

    own.asked = own.dataset
    if own.toy:
        given = prepare_toy(own, given)
    gpus = [] if own.toy or (own.plan and own.gpus) else readiness.find_gpus()
    wanted = TOY_PROCESSES if own.toy else own.gpus or len(gpus) or 1
    plan, args = make_plan(own, given, wanted)
    found, missing = readiness.check_data(args, other_counts=own.other_counts or own.toy)
    for facts, lacking in (readiness.check_weights(args), readiness.check_packages(args)):
        found += facts
        missing += lacking
    if not own.toy and len(gpus) < wanted and not (own.plan and own.gpus):
        missing.append(f"GPUs: PyTorch sees {len(gpus) or 'none'}" + (
            f", --gpus is {own.gpus}" if gpus else "; on a CPU the recipe takes weeks (docs/training.md)"))
    if missing and not own.plan:
        return refuse(missing)
    least, memory = least_memory(plan)
    machine = f"{plan.share.processes} of {wanted} " + ("processes on the CPU" if own.toy else "GPUs") + (
        f" ({gpus[0][0]}, {gpus[0][1] / 2**30:.0f} GiB)" if gpus else "")
    for line in describe(plan, args, found, machine, memory):
        log(line)
    if gpus and least > min(size for _, size in gpus):
        missing.append(f"GPUs: a step of {plan.share.batch_size} samples needs at least {least / 2**30:.1f} GiB; give "
                       "-- --batch-size 1, --amp bf16 or --checkpoint_activations")
    if own.plan or missing:
        return refuse(missing) if missing else 0
    for step in steps(plan):
        if step.is_done(plan.checkpoint(step.seed)):
            log(f"== {step.headline}: done before")
        else:
            step.take()
    rows = differences(plan)
    table = as_table(plan, rows)
    write_text(Path(plan.out) / "table.md", table)
    write_json(Path(plan.out) / "reproduction.json", {"plan": json.loads(json.dumps(asdict(plan))), "facts": found,
                                                      "least_memory_bytes": least, "rows": rows})
    log(f"{table}\nwrote {plan.out}/table.md, reproduction.json, and for each seed report_…, model_…")
    return 0


def refuse(lacking: Sequence[str]) -> int:
    """Says what is missing, a line each, and returns the exit status."""
    for line in lacking:
        print(printable(f"missing: {' '.join(line.split())}"), file=sys.stderr)
    print("nothing was started; --toy takes every step on a toy set, without any of this", file=sys.stderr)
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the flags, runs, and reports a user's mistake in one line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    first = words.index("--") if "--" in words else len(words)
    own = get_own_parser().parse_args(words[:first])
    try:
        return run(own, words[first + 1:])
    except UserError as error:
        print(printable(f"reproduce.py: {' '.join(str(error).split())}"), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
