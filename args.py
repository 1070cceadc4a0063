"""All flags of the scripts, in groups. This module does not import torch."""
import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

from lib.evaluation import NO_TARGET_PIXELS
from lib.loss_table import LOSSES, spelled_out
from lib.segmentation import (
    BACKBONE,
    DROP_PATH,
    LARGEST_IMAGE_PX,
    LARGEST_RANK,
    MODELS,
    NUM_TMEM,
    PARTS,
    STRIDE,
    SWIN,
    SWIN_VARIANTS,
)
from lib.training.recipes import (
    DEFAULT_DATASETS,
    LONG_EPOCH,
    NANO,
    RECIPES,
    SWIN_BASE_FILE,
    Recipe,
    recipe_of,
    settle_loss,
)
from refer.layouts import DATASETS
from refer.overwriting import INPUTS, OUTPUTS, refuse_overwriting
from refer.own import Dataset, as_written, default_max_tokens, parse_datasets
from schema import Range, check
from utils import UserError, printable, read_json

EMA_DECAY = 0.999

def whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """An argparse type: a whole number from `low` to `high`."""
    def number(text: str) -> int:
        if not low <= (value := int(text)) <= high:
            raise argparse.ArgumentTypeError(f"{text[:40]} is not a whole number of at least {low}" + (
                "" if high == 2**31 - 1 else f" and at most {high}"))
        return value
    return number


def real(low: float, high: float = 1e6) -> Callable[[str], float]:
    """An argparse type: a finite number from `low` to `high`."""
    def number(text: str) -> float:
        if not low <= (value := float(text)) <= high:   # NaN is not
            raise argparse.ArgumentTypeError(f"{text[:40]} is not between {low:g} and {high:g}")
        return value
    return number


positive, count, share = whole(1), whole(0), real(0, 1)
tokens = whole(3, 512)   # [CLS], a word and [SEP] at least


def device(text: str) -> str:
    """An argparse type: the device that networks run on."""
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"'{text}' is none of cuda, cuda:N, mps and cpu")
    return text


def run_name(text: str) -> str:
    """An argparse type: a name for files and folders, of letters, digits, `_ . + -` and blanks."""
    if not re.fullmatch(r"\w[\w .+-]*", text) or len(text.encode()) > 100:
        raise argparse.ArgumentTypeError(f"'{text[:40]}' is no name for files: give at most 100 letters, digits, _, ., "
                                         "+, - and blanks, a letter or digit first")
    return text


def backbone(text: str) -> str:
    """An argparse type: `swin` or `timm:NAME`. timm is asked for the name when the network is built."""
    if not BACKBONE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"'{text[:40]}' is neither {SWIN} nor timm:NAME")
    return text


def heads(text: str) -> str:
    """An argparse type: '' or four numbers joined by '-'."""
    numbers = text.split("-")
    if text and (len(numbers) != 4 or not all(re.fullmatch("[1-9][0-9]{0,3}", number) for number in numbers)):
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form a-b-c-d, one number of heads per stage")
    return text


def loss(text: str) -> str:
    """An argparse type: a loss as parts with weights, with every setting spelled out."""
    try:
        return spelled_out(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, and refuses outputs that name inputs (see `refer.overwriting`)."""

    inputs, outputs = INPUTS, OUTPUTS   # names of flags

    def parse_args(self, *given: Any, **more: Any) -> Any:
        """As `ArgumentParser.parse_args`."""
        args = super().parse_args(*given, **more)
        try:
            refuse_overwriting(args, self.inputs, self.outputs)
        except UserError as error:
            self.error(str(error))
        return args

    def error(self, message: str) -> NoReturn:
        """Prints the message in one line and exits with status 2."""
        self.exit(2, printable(" ".join(f"{self.prog}: {message} (see {self.prog} --help)".splitlines())) + "\n")


@dataclass
class Start:
    """The fields that are read from a start in a `run.json`."""

    flags: dict[str, Any]


@dataclass
class RunJson:
    """The fields that are read from a `run.json`, the record of a training run."""

    starts: Annotated[list[Start], Range(1)]


NOT_REPLAYED = ("given", "config", "local_rank")   # entries of a record that are no flags or belong to one start


class RecipeParser(Parser):
    """Fills in the model's recipe and checks flags against each other.

    The namespace gets `given`, the names of the flags on the command line or replayed by `--config`. Such flags may
    repeat a checkpoint's settings but not contradict them.
    """

    def parse_known_args(self, args: Sequence[str] | None = None,
                         namespace: argparse.Namespace | None = None) -> tuple[argparse.Namespace, list[str]]:
        """As `ArgumentParser.parse_known_args`, with `--config` replayed and the recipe filled in."""
        unset = object()
        words = list(sys.argv[1:] if args is None else args)
        known = [action.dest for action in self._actions if action.dest != "help"]
        namespace, rest = super().parse_known_args(words, argparse.Namespace(**dict.fromkeys(known, unset)))
        if (config := getattr(namespace, "config", unset)) is not unset:   # its flags first: later ones take precedence
            words = self.replayed(config) + words
            namespace, rest = super().parse_known_args(words, argparse.Namespace(**dict.fromkeys(known, unset)))
        given = {name for name in known if getattr(namespace, name) is not unset}
        for name in set(known) - given:
            setattr(namespace, name, self.get_default(name))
        namespace.given = sorted(given)
        self.fill_in(namespace)
        return namespace, rest

    def replayed(self, path: str) -> list[str]:
        """The flags of the first start in a `run.json`, as words of a command line.

        Values that follow from the model's recipe are left out, so that the command line may name another model. They
        are included if the recipe has changed since, or if the file was edited.
        """
        try:
            content = read_json(path)
            check(RunJson, content, path)
        except UserError as error:
            self.error(f"--config {error}")
        flags = {name: value for name, value in content["starts"][0]["flags"].items() if name not in NOT_REPLAYED}
        given = content["starts"][0]["flags"].get("given", list(flags))
        words = {name: self.as_words(name, value, path) for name, value in flags.items()}
        recipe_of_run = vars(get_parser().parse_args(
            [word for name in flags if name in given for word in words[name]]))
        return [word for name, value in flags.items() if name in given or value != recipe_of_run[name]
                for word in words[name]]

    def as_words(self, name: str, value: Any, path: str) -> list[str]:
        """The words of a command line for a flag of a `run.json` and its value."""
        action = next((action for action in self._actions if action.dest == name), None)
        if action is None:
            self.error(f"--config {path}: {printable(name)[:40]} is no flag of this script")
        if isinstance(action, argparse.BooleanOptionalAction) and isinstance(value, bool):
            return [action.option_strings[0 if value else 1]]
        if action.nargs == 0 and isinstance(value, bool):   # a switch
            return action.option_strings[-1:] if value else []
        if not isinstance(value, str | int | float | None) or isinstance(value, bool):
            self.error(f"--config {path}: {name} is {str(value)[:40]}, which it cannot be")
        return [] if value is None else [f"{action.option_strings[-1]}={value}"]

    def fill_in(self, args: argparse.Namespace) -> None:
        """Sets flags that are not given to the recipe's values, and checks flags that must fit each other."""
        if args.dataset is None:
            args.dataset = DEFAULT_DATASETS[args.model]
        datasets = self.datasets(args)
        args.dataset = as_written(args.dataset)
        recipe = recipe_of(args.model, datasets[0].name, args.swin_type, args.backbone)
        longest = max(recipe.max_tokens, default_max_tokens(datasets))
        for name, value in {**recipe.flags, **MODELS[args.model], "max_tokens": longest}.items():
            if getattr(args, name, "not a flag of this script") is None:
                setattr(args, name, value)
        if args.backbone != SWIN and (unused := {"swin_type", "window12"}.intersection(args.given)):
            self.error(f"--backbone {args.backbone} has sizes of its own: leave --{min(unused)} out, which belongs to "
                       f"--backbone {SWIN}")
        if getattr(args, "init_from", "") and args.resume not in ("", "auto"):
            self.error("--init_from starts a new run and --resume continues one: give one of them, or --resume auto, "
                       "which continues this run once it has begun")
        if "loss" in vars(args):   # in train.py
            if {"loss", "dice_weight"} <= set(args.given):
                self.error("--dice_weight N means --loss ce:(1 - N),dice:N: give one of them")
            settle_loss(args)
        for one, other in (("text_encoder", "ck_bert"), ("text_layers", "bert_layers"), ("text_encoder", "init_from")):
            if {one, other} <= {*args.given}:
                self.error(f"--{one} and --{other} exclude each other: give one of them")
        if args.ema is True and "epochs" in vars(args):   # --ema without a value, in train.py
            args.ema = EMA_DECAY
        if PARTS["cross_scale"][args.cross_scale].fixed_size and args.img_size % STRIDE:
            nearest = max(1, round(args.img_size / STRIDE)) * STRIDE
            self.error(f"--img_size {args.img_size}: {args.model} needs a multiple of {STRIDE}, {nearest} for example")
        if getattr(args, "show_recipe", False):
            print(self.describe_recipe(recipe, args))
            self.exit()

    def datasets(self, args: argparse.Namespace) -> list[Dataset]:
        """The data sets that the flags name."""
        try:
            return [dataset for dataset, _ in parse_datasets(args.dataset, args.splitBy, args.refer_data_root)]
        except UserError as error:
            self.error(str(error))

    def describe_recipe(self, recipe: Recipe, args: argparse.Namespace) -> str:
        """The lines of `--show_recipe`: the origin of the recipe, and each of its flags with its value."""
        network = f"Swin {args.swin_type}" if args.backbone == SWIN else args.backbone
        lines = [f"{args.model} on {args.dataset}, {network}: {recipe.source}"]
        flags = {action.dest: flag for action in self._actions for flag in action.option_strings[:2]
                 if not flag.startswith("--no-") and flag.startswith("--")}
        for name in (*recipe.flags, "loss", "weight_decay", "amsgrad", "bert_layers", "seed"):
            if (value := getattr(args, name)) is None:
                continue
            said = ("no", "yes")[value] if isinstance(value, bool) else value if value != "" else "none"
            lines.append(f"  {flags[name]:26}{said}{'  (given)' * (name in args.given)}")
        return "\n".join(lines)


def defaults(name: str) -> str:
    """A flag's values in the recipes, for its help: '3e-05 for rmsin, fianet; 5e-05 for lavt; 0.00035 for nano'."""
    models: dict[Any, list[str]] = {}
    for model in MODELS:
        for dataset, recipe in RECIPES[model].items():
            value, common = recipe.flags[name], RECIPES[model][""].flags[name]
            if not dataset or value != common:
                models.setdefault(value, []).append(f"{model} on {dataset}" if dataset else model)
    if name in NANO:
        models.setdefault(NANO[name], []).append("nano")
    if len(models) == 1:
        return str(*models)
    said = {True: "on", False: "off"}
    return "; ".join(f"{said[value] if isinstance(value, bool) else f'{value:g}'} for {', '.join(names)}"
                     for value, names in models.items())


# The flags of the original scripts, which share one parser. Each script accepts all of them and lists those it reads.
PUBLISHED = {
    "--amsgrad", "--batch-size", "--bert_tokenizer", "--ck_bert", "--dataset", "--ddp_trained_weights", "--device",
    "--epochs", "--fusion_drop", "--img_size", "--local_rank", "--lr", "--mha", "--model", "--model_id", "--output-dir",
    "--pin_mem", "--pretrained_swin_weights", "--print-freq", "--refer_data_root", "--resume", "--split", "--splitBy",
    "--swin_type", "--weight-decay", "--window12", "--workers",
}


class Group:
    """A group of flags. A group that is not `shown` accepts the original flags only, and does not list them."""

    def __init__(self, parser: argparse.ArgumentParser, title: str, shown: bool):
        self.shown, self.target = shown, parser.add_argument_group(title) if shown else parser

    def add(self, *names: str, **settings: Any) -> None:
        """Adds a flag, as `ArgumentParser.add_argument` does."""
        if self.shown:
            self.target.add_argument(*names, **settings)
        elif PUBLISHED.intersection(names):
            self.target.add_argument(*names, **{**settings, "help": argparse.SUPPRESS})


def add_network(group: Group) -> None:
    """The network's flags: its parts, sizes and initial weights."""
    longer = ", ".join(f"on {name} {layout.max_tokens}" for name, layout in DATASETS.items()
                       if layout.max_tokens != type(layout).max_tokens)
    group.add("--model", default="rmsin", choices=MODELS, help="default: rmsin")
    group.add("--backbone", default=SWIN, type=backbone, metavar="swin|timm:NAME",
              help="swin, of --swin_type, or a model of timm's with four stages at strides 4, 8, 16 and 32, for\n"
                   "example timm:convnext_tiny (docs/extending.md; default: swin)")
    group.add("--drop_path", type=share, metavar="RATE",
              help="drop path rate of the backbone's last block; it rises to it from 0\n"
                   f"(default: {DROP_PATH}, nano: 0)")
    group.add("--swin_type", default="base", choices=sorted(SWIN_VARIANTS), help="default: base")
    group.add("--window12", action="store_true",
              help="attention windows of 12×12 tokens instead of 7×7;\n"
                   "implied by a Swin file whose path contains window12")
    group.add("--img_size", type=whole(1, LARGEST_IMAGE_PX), metavar="PIXELS",
              help="side to which image and mask are resized (default: 480, nano: 96);\n"
                   "rmsin: a multiple of 32")
    group.add("--max_tokens", type=tokens, metavar="N",
              help="largest number of tokens of a sentence, with [CLS] and [SEP]; a checkpoint contains its own\n"
                   f"(default: {defaults('max_tokens')}; {longer})")
    group.add("--mha", default="", type=heads, metavar="A-B-C-D",
              help="heads of the pixel-word attention in the four stages (default: one each)")
    group.add("--fusion_drop", default=0.0, type=share, metavar="RATE",
              help="dropout in the pixel-word attention (default: 0)")
    group.add("--num_tmem", type=whole(1, 64), metavar="N",
              help="blocks of FIANet's text-aware module across the scales\n"
                   f"(default: {NUM_TMEM}, on refsegrs {RECIPES['fianet']['refsegrs'].num_tmem})")
    group.add("--ck_bert", default="bert-base-uncased", metavar="FOLDER|NAME",
              help="text encoder: a folder with config.json and weights, or a hub name;\n"
                   "a folder without weights starts from random ones (default: bert-base-uncased)")
    group.add("--bert_tokenizer", default="bert-base-uncased", metavar="FOLDER|NAME",
              help="tokenizer: a folder with vocab.txt, or a hub name (default: bert-base-uncased)")
    group.add("--text_encoder", default="", metavar="FOLDER|NAME",
              help="text encoder of another kind than BERT, with its tokenizer, in place of --ck_bert: CLIP's or\n"
                   "SigLIP's text tower, RoBERTa, MPNet, MiniLM, ModernBERT, DistilBERT, ELECTRA; a folder as\n"
                   "transformers writes it, or a hub name (default: BERT)")
    group.add("--text_lora", default=0, type=whole(0, LARGEST_RANK), metavar="R",
              help="train adapters of rank R (LoRA) in the text encoder's layers in place of their weights; needs\n"
                   "peft (default: 0, none)")
    group.add("--pretrained_swin_weights", metavar="FILE|timm:NAME",
              help="classification checkpoint that the backbone, Swin or timm's, starts from: a file in the\n"
                   "original's or timm's layout, or a name of timm's, which is fetched; '' for random weights\n"
                   f"(default: {SWIN_BASE_FILE}\nfor rmsin and fianet with --swin_type base, else none)")
    for place, rows in PARTS.items():
        of_models = ", ".join(f"{parts[place]} for {model}" for model, parts in MODELS.items())
        group.add(f"--{place}", choices=rows, help=f"part of the network (default: {of_models})")


def add_data(group: Group) -> None:
    """The flags of the data sets and loaders."""
    group.add("--refer_data_root", default="./refer/data/", metavar="FOLDER",
              help="holds DATASET/ and images/ (default: ./refer/data/; its README shows the layout)")
    names = "\n".join(textwrap.wrap(", ".join(DATASETS), 80))
    datasets = ", ".join(f"{DEFAULT_DATASETS[model]} for {model}" for model in MODELS)
    group.add("--dataset", metavar="NAME|FOLDER",
              help=f"{names}\n(default: {datasets});\n"
                   "or a data set of your own: the folder that tools/import_dataset.py wrote, or its name below\n"
                   "--refer_data_root. train.py takes several, NAME[:SPLITBY],…, and validates on the first")
    group.add("--splitBy", default="unc", help="division of the data set into splits: umd, google, …\n"
                                              "(default: unc, or the only one that the data set has)")
    group.add("--no_target_pixels", default=NO_TARGET_PIXELS, type=positive, metavar="N",
              help=f"a mask of fewer pixels means that there is no target (default: {NO_TARGET_PIXELS});\n"
                   "for grefcoco, nwpu_refer and earthreason")
    group.add("--published_masks", action="store_true",
              help="pixels in several parts of a mask count as background, as in the original code;\n"
                   "without it the parts are united")
    group.add("--packed", default="", metavar="FILE",
              help="read images and masks from a file of tools/pack_dataset.py: the same samples, faster")
    group.add("-b", "--batch-size", type=positive, metavar="N",
              help=f"samples per process (default: {defaults('batch_size')})")
    group.add("-j", "--workers", default=8, type=whole(0, 1024), metavar="N",
              help="loader processes of each training process (default: 8)")
    group.add("--pin_mem", action=argparse.BooleanOptionalAction,
              help="page-locked host memory for faster copies to a GPU (default: on a GPU)")


def add_training(group: Group) -> None:
    """The flags of the training recipe."""
    group.add("--show_recipe", action="store_true",
              help="print the values of these flags for this --model, --dataset and --swin_type, and exit")
    group.add("--epochs", type=positive, metavar="N",
              help="default: 40, fianet on refsegrs 60; nano: as many as fit the number of samples")
    group.add("--passes", type=positive, metavar="N",
              help="how often an epoch goes through the training samples\n"
                   f"(default: 1; nano without --epochs: as many as give {LONG_EPOCH} samples)")
    group.add("--overfit", default=0, type=count, metavar="N",
              help="train and validate on N refs of the train split, a check that the network can learn the data at\n"
                   "all (default: 0, off)")
    group.add("--lr", type=real(0), help=f"initial learning rate (default: {defaults('lr')})")
    group.add("--warmup_iters", type=count, metavar="N",
              help="over the first N iterations, the learning rate rises linearly from lr / N to lr\n"
                   "(default: 0, as in the original code; nano: 100, but at most a tenth of the run)")
    group.add("--wd", "--weight-decay", dest="weight_decay", default=1e-2, type=real(0), metavar="RATE",
              help="AdamW's weight decay (default: 0.01)")
    group.add("--amsgrad", action="store_true", help="AdamW's AMSGrad variant")
    rows = ", ".join(":".join([name, "1", *(f"{setting}={value:g}" for setting, value in row.settings.items())])
                     for name, row in LOSSES.items())
    group.add("--loss", type=loss, metavar="PART:WEIGHT,…",
              help="the training loss, a weighted sum of parts; a part may have settings, PART:WEIGHT:SETTING=NUMBER\n"
                   f"(parts: {rows}; default: what --dice_weight means)")
    group.add("--dice_weight", type=share, metavar="SHARE",
              help="short for --loss with this share of the Dice loss, the rest cross-entropy\n"
                   f"(default: {defaults('dice_weight')})")
    group.add("--random_box_share", type=share, metavar="SHARE",
              help="share of the training refs whose images get black squares\n"
                   f"(default: {defaults('random_box_share')})")
    group.add("--bert_layers", default=10, type=count, metavar="N",
              help="number of BERT's first layers that are trained (default: 10, as in the original code)")
    group.add("--text_layers", type=count, metavar="N",
              help="train only the last N layers of the text encoder, those nearest the words; 0 freezes them all\n"
                   "(default: all of a --text_encoder that is no BERT; of BERT as --bert_layers says)")
    group.add("--train_embeddings", action=argparse.BooleanOptionalAction,
              help="train BERT's embeddings too (default: no, as in the original code; nano: yes)")
    group.add("--bert_dropout", action=argparse.BooleanOptionalAction,
              help=f"BERT's dropouts in training (default: {defaults('bert_dropout')})")
    group.add("--masked_pass", action="store_true",
              help="MaskRIS's training: a second pass in each step, on hidden image patches and replaced words,\n"
                   "distilled from the first; twice the arithmetic")
    group.add("--exclude", default="", metavar="FILE",
              help="training refs to leave out: ids or file names, one per line; or a list of refer/exclusions")
    group.add("--allow_leak", action="store_true",
              help="train on images that are in a test split of another of the data sets")
    group.add("--allow_empty", action="store_true",
              help="train although more than a tenth of the training masks are empty without being meant so")
    group.add("--published_validation", action="store_true",
              help="choose the best epoch on one random sentence per ref, as in the original code;\n"
                   "without it on all sentences")
    group.add("--deterministic", action="store_true",
              help="the same command on the same machine gives the same losses, bit for bit (slower); on GPUs\n"
                   "cross-entropy and adaptive pooling (CIM, TMEM) have no such form, and PyTorch warns of them")
    group.add("--accumulate", default=1, type=positive, metavar="N",
              help="batches per optimiser update (default: 1); the schedule counts updates as iterations")
    group.add("--checkpoint_activations", action="store_true",
              help="keep only the inputs of Swin's blocks and compute the rest again: less memory, slower")
    group.add("--init_from", default="", metavar="FILE|FOLDER",
              help="start from the weights of any checkpoint, this project's (or a folder of tools/export.py) or\n"
                   "an original one. Parts of the network that differ from the checkpoint's start fresh and are\n"
                   "listed; everything else must fit")
    group.add("--resize_weights", action="store_true",
              help="with --init_from and another --img_size: interpolate the layers of RMSIN's CIM that fit one image\n"
                   "size, as a start for training (default: such a checkpoint is refused)")


def add_saving(group: Group) -> None:
    """The flags of a training run: its name, files and record."""
    group.add("--model_id", default=None, type=run_name, metavar="NAME",
              help="names the checkpoints and the folder models/NAME\n"
                   "(default: RMSIN for rmsin, lavt for lavt and lavt_one, else the model's name)")
    group.add("--config", metavar="RUN.JSON",
              help="start with the flags of the run in a models/NAME/run.json; flags on the command line take\n"
                   "precedence (a new run needs another --model_id)")
    group.add("--output-dir", default="./checkpoints/", metavar="FOLDER",
              help="folder of the checkpoints (default: ./checkpoints/)")
    group.add("--allow_changed_flags", action="store_true",
              help="resume a run although flags that change its result differ")
    group.add("--save_every", default=0, type=count, metavar="N",
              help="also save model_last every N iterations (default: 0, after each epoch only)")
    group.add("--skip_nonfinite", default=0, type=count, metavar="N",
              help="leave out up to N batches whose loss or gradient is not finite (default: 0, stop)")
    group.add("--print-freq", default=10, type=positive, metavar="N", help="iterations between log lines")
    group.add("--tensorboard", action="store_true",
              help="also write curves and sample pictures for TensorBoard, to models/NAME/tensorboard")
    group.add("--wandb", action="store_true",
              help="also send flags and each epoch's figures to Weights & Biases")


def add_run(group: Group) -> None:
    """The flags that training and evaluation share."""
    group.add("--seed", default=2401, type=count, help="default: 2401")
    group.add("--resume", default="", metavar="FILE|FOLDER|auto",
              help="checkpoint, or a folder of tools/export.py. train.py: resume from it, or with auto from this\n"
                   "run's newest valid checkpoint if there is one; test.py: evaluate it")
    group.add("--skip_bad_images", action="store_true",
              help="if an image is missing or broken, train on another ref instead and leave it out of the\n"
                   "evaluation; each is logged and counted (default: stop and name it)")
    group.add("--timeout", default=600, type=positive, metavar="SECONDS",
              help="how long a process waits for the others before it gives up (default: 600)")
    group.add("--device", default=None, type=device,
              help="cuda, cuda:N, mps (Apple's GPU, in float32, unmeasured) or cpu\n"
                   "(default: this process's NVIDIA or AMD GPU if there is one, else cpu)")
    group.add("--local_rank", "--local-rank", default=0, type=whole(-1), help=argparse.SUPPRESS)
    group.add("--ema", nargs="?", default=0.0, const=True, type=real(0, 0.999999), metavar="DECAY",
              help="train.py: also keep an exponential moving average of the weights, and choose the best epoch\n"
                   f"by it (default: 0, off; without a value {EMA_DECAY}); elsewhere: use the average (give no DECAY)")
    group.add("--amp", default="off", choices=("off", "bf16", "bf16!", "fp16"),
              help="precision of the network: bf16 or fp16 where that is safe, float32 elsewhere\n"
                   "(default: off, float32 throughout). bf16 means float32 on a CPU without bfloat16\n"
                   "instructions, where it would be slow; bf16! uses bfloat16 there, too")
    group.add("--tf32", action=argparse.BooleanOptionalAction, default=True,
              help="on GPUs, float32 products and convolutions in TF32 (default: yes, as in the\n"
                   "original's PyTorch)")
    group.add("--cudnn_benchmark", action=argparse.BooleanOptionalAction, default=True,
              help="on GPUs, let cuDNN choose its fastest algorithms on the first batch (default: yes)")


def add_speed(group: Group) -> None:
    """The flags that may speed up a GPU; a measurement on that GPU has to show it."""
    group.add("--compile", action="store_true",
              help="compile the network with torch.compile: a slow start, then faster on GPUs")
    group.add("--channels_last", action="store_true",
              help="on GPUs, store the weights of convolutions channels last in memory")


def add_inference(group: Group) -> None:
    """The flags of inference alone."""
    group.add("--fuse", action="store_true",
              help="faster: fold BatchNorms into the convolutions before them; on CPUs, store weights as oneDNN does")


def add_evaluation(group: Group) -> None:
    """The flags of test.py's outputs."""
    group.add("--split", default="test", help="split that test.py evaluates (default: test)")
    group.add("--ddp_trained_weights", action="store_true",
              help="accepted, as in the original script, without effect: test.py always removes such weights' prefixes")
    group.add("--results", metavar="FILE",
              help="write metrics, their 95 %% intervals, tables per category, kind of expression, object\n"
                   "size and sentence length, and each sample's pixel counts as JSON")
    group.add("--eval_ori_size", action="store_true",
              help="also report the metrics at the masks' original size, the logits resized to it")
    group.add("--latex", action="store_true", help="also print the paper's table: Prec@X, oIoU, mIoU")
    group.add("--markdown", action="store_true", help="also print the paper's table in Markdown")
    group.add("--compare_published", action="store_true",
              help="also print the published figures of docs/reference for this data set and split beside one's own,\n"
                   "and show them in --results and --report")
    group.add("--save_predictions", metavar="FOLDER",
              help="write predictions.json, COCO RLEs at the network's size (--eval_ori_size: the original);\n"
                   "tools/score_predictions.py scores it")
    group.add("--prediction_pngs", action="store_true", help="with --save_predictions: also write a PNG per sample")
    group.add("--report", metavar="FOLDER",
              help="write index.html, a self-contained page with tables, curves and a gallery of samples")
    group.add("--report_samples", default=200, type=positive, metavar="N",
              help="largest number of samples in the gallery, evenly spread over the ranking by IoU (default: 200)")
    group.add("--report_attention", action="store_true",
              help="with --report: show an attention map for each word")
    group.add("--probe", metavar="FILE", help="with --report: show the tables that tools/probe_language.py wrote")
    group.add("--shuffle_sentences", action="store_true",
              help="control experiment: each ref gets the sentence of another ref, with which a model that\n"
                   "uses language must score much lower")


GROUPS = {"network": add_network, "data": add_data, "training recipe": add_training, "training run": add_saving,
          "run": add_run, "speed": add_speed, "inference": add_inference, "evaluation": add_evaluation}
TRAINING = ("network", "data", "training recipe", "training run", "run", "speed")   # train.py's groups
EVALUATION = ("network", "data", "run", "speed", "inference", "evaluation")         # test.py's
INFERENCE = ("network", "run", "inference")                                # for scripts that read no data set


def get_parser(*groups: str) -> RecipeParser:
    """The parser with the named groups of `GROUPS`, or with all groups if none is named."""
    parser = RecipeParser(description="Referring image segmentation: RMSIN and LAVT",
                          formatter_class=argparse.RawTextHelpFormatter)
    for title, add in GROUPS.items():
        add(Group(parser, title, shown=not groups or title in groups))
    return parser
