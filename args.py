"""Every flag of train.py and test.py, and the recipe of each model. Nothing is parsed at import."""
import argparse
from collections.abc import Sequence
from typing import Any

from lib.segmentation import MODELS, STRIDE, SWIN_VARIANTS
from lib.training.update import AMP_DTYPES

DATASETS = ("rrsisd", "refcoco", "refcoco+", "refcocog", "refclef")
DEFAULT_SWIN_FILE = "pretrained_weights/swin_base_patch4_window12_384_22k.pth"  # ImageNet-22k, base, window 12

# What a flag stands for when it is not given, by model (DESIGN: the published training scripts).
RECIPES: dict[str, dict[str, Any]] = {
    "rmsin": {"model_id": "RMSIN", "dataset": "rrsisd", "lr": 3e-5, "batch_size": 2, "dice_weight": 0.1,
              "random_box_share": 0.2, "bert_dropout": True},
    "lavt": {"model_id": "lavt", "dataset": "refcoco", "lr": 5e-5, "batch_size": 8, "dice_weight": 0.0,
             "random_box_share": 0.0, "bert_dropout": False},
}
# Where BERT is part of the network, it is set to training with it; `lavt` keeps it beside, in evaluation mode.
RECIPES["lavt_one"] = {**RECIPES["lavt"], "bert_dropout": True}


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return number


def share(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def heads(text: str) -> str:
    """An argparse type: '' or four numbers joined by '-'."""
    numbers = text.split("-")
    if text and (len(numbers) != 4 or not all(number.isdigit() and int(number) for number in numbers)):
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form a-b-c-d, one number of heads a stage")
    return text


class RecipeParser(argparse.ArgumentParser):
    """Fills in the model's recipe, checks flags against each other, and says a mistake in one line.

    The namespace gains `given`, the names of the flags that stood on the command line: a checkpoint's own
    settings may be repeated there but not contradicted.
    """

    def parse_known_args(self, args: Sequence[str] | None = None,
                         namespace: argparse.Namespace | None = None) -> tuple[argparse.Namespace, list[str]]:
        unset = object()
        known = [action.dest for action in self._actions if action.dest != "help"]
        namespace = argparse.Namespace(**dict.fromkeys(known, unset))
        namespace, rest = super().parse_known_args(args, namespace)
        given = {name for name in known if getattr(namespace, name) is not unset}
        for name in set(known) - given:
            setattr(namespace, name, self.get_default(name))
        namespace.given = sorted(given)
        self.fill_in(namespace)
        return namespace, rest

    def fill_in(self, args: argparse.Namespace) -> None:
        """The recipe for what was not given; then what must fit together."""
        for name, value in RECIPES[args.model].items():
            if getattr(args, name) is None:
                setattr(args, name, value)
        if args.pretrained_swin_weights is None:
            takes_default = args.model == "rmsin" and args.swin_type == "base"
            args.pretrained_swin_weights = DEFAULT_SWIN_FILE if takes_default else ""
        if args.model == "rmsin" and args.img_size % STRIDE:
            nearest = max(1, round(args.img_size / STRIDE)) * STRIDE
            self.error(f"--img_size {args.img_size}: rmsin needs a multiple of {STRIDE}, {nearest} for example")

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def get_parser() -> RecipeParser:
    """The parser of train.py and test.py; published flags keep their names and defaults."""
    parser = RecipeParser(description="Referring image segmentation: RMSIN and LAVT",
                          formatter_class=argparse.RawTextHelpFormatter)

    network = parser.add_argument_group("network")
    network.add_argument("--model", default="rmsin", choices=MODELS, help="default: rmsin")
    network.add_argument("--swin_type", default="base", choices=sorted(SWIN_VARIANTS), help="default: base")
    network.add_argument("--window12", action="store_true",
                         help="attention windows of 12×12 tokens instead of 7×7;\n"
                              "implied by a Swin file whose path contains window12")
    network.add_argument("--img_size", default=480, type=positive, metavar="PIXELS",
                         help="side to which image and mask are resized (default: 480); rmsin: a multiple of 32")
    network.add_argument("--mha", default="", type=heads, metavar="A-B-C-D",
                         help="heads of the pixel-word attention in the four stages (default: one each)")
    network.add_argument("--fusion_drop", default=0.0, type=share, metavar="RATE",
                         help="dropout in the pixel-word attention (default: 0)")
    network.add_argument("--ck_bert", default="bert-base-uncased", metavar="FOLDER|NAME",
                         help="text encoder: a folder with config.json and weights, or a hub name;\n"
                              "a folder without weights starts from random ones (default: bert-base-uncased)")
    network.add_argument("--bert_tokenizer", default="bert-base-uncased", metavar="FOLDER|NAME",
                         help="tokenizer: a folder with vocab.txt, or a hub name (default: bert-base-uncased)")
    network.add_argument("--pretrained_swin_weights", metavar="FILE",
                         help="classification checkpoint that the backbone starts from; '' for random weights\n"
                              f"(default: {DEFAULT_SWIN_FILE}\nfor rmsin with --swin_type base, else none)")

    data = parser.add_argument_group("data")
    data.add_argument("--refer_data_root", default="./refer/data/", metavar="FOLDER",
                      help="holds DATASET/ and images/ (default: ./refer/data/; its README shows the layout)")
    data.add_argument("--dataset", choices=DATASETS, help="default: rrsisd for rmsin, refcoco for lavt")
    data.add_argument("--splitBy", default="unc", help="whose division of the data set: unc (default), umd, google, …")
    data.add_argument("--split", default="test", help="what test.py evaluates (default: test)")
    data.add_argument("--published_masks", action="store_true",
                      help="pixels in several parts of a mask count as background, as in the published code;\n"
                           "without it the parts are united")
    data.add_argument("--packed", default="", metavar="FILE",
                      help="read images and masks from what tools/pack_dataset.py wrote; the same samples, faster")
    data.add_argument("-j", "--workers", default=8, type=int, metavar="N",
                      help="loader processes of each training process (default: 8)")
    data.add_argument("--pin_mem", action="store_true", help="page-locked host memory for faster copies to a GPU")

    recipe = parser.add_argument_group("training recipe (train.py)")
    recipe.add_argument("--epochs", default=40, type=positive, metavar="N", help="default: 40")
    recipe.add_argument("-b", "--batch-size", type=positive, metavar="N",
                        help="samples a process (default: 2 for rmsin, 8 for lavt)")
    recipe.add_argument("--lr", type=float, help="at the start (default: 3e-5 for rmsin, 5e-5 for lavt)")
    recipe.add_argument("--warmup_iters", default=0, type=int, metavar="N",
                        help="iterations over which lr rises linearly from 0 (default: 0, as published)")
    recipe.add_argument("--wd", "--weight-decay", dest="weight_decay", default=1e-2, type=float, metavar="RATE",
                        help="AdamW's weight decay (default: 0.01)")
    recipe.add_argument("--amsgrad", action="store_true", help="AdamW's AMSGrad variant")
    recipe.add_argument("--dice_weight", type=share, metavar="SHARE",
                        help="share of the Dice loss, the rest is cross-entropy (default: 0.1 for rmsin, 0 for lavt)")
    recipe.add_argument("--random_box_share", type=share, metavar="SHARE",
                        help="share of the training refs whose images get black squares\n"
                             "(default: 0.2 for rmsin, 0 for lavt)")
    recipe.add_argument("--bert_layers", default=10, type=int, metavar="N",
                        help="how many of BERT's layers train, from the first (default: 10, as published)")
    recipe.add_argument("--train_embeddings", action="store_true", help="train BERT's embeddings too")
    recipe.add_argument("--bert_dropout", action=argparse.BooleanOptionalAction,
                        help="BERT's dropouts in training (default: on for rmsin and lavt_one, off for lavt)")
    recipe.add_argument("--published_validation", action="store_true",
                        help="choose the best epoch on one random sentence a ref, as in the published code;\n"
                             "without it on all sentences")
    recipe.add_argument("--seed", default=2401, type=int, help="default: 2401")
    recipe.add_argument("--deterministic", action="store_true",
                        help="the same command on the same machine gives the same losses, bit for bit (slower)")

    run = parser.add_argument_group("run")
    run.add_argument("--model_id", default=None, metavar="NAME",
                     help="names the checkpoints and the folder models/NAME\n"
                          "(default: RMSIN for rmsin, lavt for lavt and lavt_one)")
    run.add_argument("--output-dir", default="./checkpoints/", metavar="FOLDER",
                     help="where checkpoints go (default: ./checkpoints/)")
    run.add_argument("--resume", default="", metavar="FILE|auto",
                     help="train.py: go on from it, or with auto from this run's newest valid checkpoint\n"
                          "if there is one; test.py: evaluate it")
    run.add_argument("--allow_changed_flags", action="store_true",
                     help="go on with --resume although flags that change the result differ")
    run.add_argument("--save_every", default=0, type=int, metavar="N",
                     help="also save model_last every N iterations (default: 0, after each epoch only)")
    run.add_argument("--skip_nonfinite", default=0, type=int, metavar="N",
                     help="leave out up to N batches whose loss or gradient is not finite (default: 0, stop)")
    run.add_argument("--skip_bad_images", action="store_true",
                     help="an image that is missing or broken: train on another ref in its place, leave it out of\n"
                          "the evaluation; each is logged and counted (default: stop and name it)")
    run.add_argument("--timeout", default=600, type=positive, metavar="SECONDS",
                     help="how long a process waits for the others before it gives up (default: 600)")
    run.add_argument("--device", default=None,
                     help="cuda, cuda:N or cpu (default: this process's GPU if there is one, else cpu)")
    run.add_argument("--print-freq", default=10, type=positive, metavar="N", help="iterations between log lines")
    run.add_argument("--tensorboard", action="store_true",
                     help="also write curves and sample pictures for TensorBoard, to models/NAME/tensorboard")
    run.add_argument("--wandb", action="store_true",
                     help="also send flags and each epoch's figures to Weights & Biases")
    run.add_argument("--local_rank", "--local-rank", default=0, type=int, help=argparse.SUPPRESS)
    run.add_argument("--ddp_trained_weights", action="store_true",
                     help="accepted as published: the prefixes that this told test.py about are found without it")

    speed = parser.add_argument_group("speed and memory")
    speed.add_argument("--amp", default="off", choices=tuple(AMP_DTYPES),
                       help="precision of the network: bf16 or fp16 where that is safe, float32 elsewhere\n"
                            "(default: off, float32 throughout)")
    speed.add_argument("--accumulate", default=1, type=positive, metavar="N",
                       help="batches an optimiser update (default: 1); an iteration of the schedule is an update")
    speed.add_argument("--checkpoint_activations", action="store_true",
                       help="keep only the inputs of Swin's blocks and compute the rest again: less memory, slower")
    speed.add_argument("--compile", action="store_true",
                       help="compile Swin's blocks with torch.compile: a slow start, then faster on GPUs")

    test = parser.add_argument_group("evaluation (test.py)")
    test.add_argument("--fuse", action="store_true", help="fold BatchNorms into the convolutions before them: faster")
    test.add_argument("--results", metavar="FILE",
                      help="write metrics, their 95 %% intervals, tables per category, kind of expression, object\n"
                           "size and sentence length, and each sample's pixel counts as JSON")
    test.add_argument("--eval_ori_size", action="store_true",
                      help="also report the metrics at the masks' original size, the logits resized to it")
    test.add_argument("--latex", action="store_true", help="also print the paper's table: Prec@X, oIoU, mIoU")
    test.add_argument("--markdown", action="store_true", help="the same in Markdown")
    test.add_argument("--save_predictions", metavar="FOLDER",
                      help="write predictions.json, COCO RLEs at the network's size (--eval_ori_size: the original);\n"
                           "tools/score_predictions.py scores it")
    test.add_argument("--prediction_pngs", action="store_true", help="with --save_predictions: also a PNG each")
    test.add_argument("--report", metavar="FOLDER",
                      help="write index.html, a page by itself with tables, curves and a gallery of samples")
    test.add_argument("--report_samples", default=200, type=positive, metavar="N",
                      help="most samples in the gallery, evenly spread over the order by IoU (default: 200)")
    test.add_argument("--report_attention", action="store_true",
                      help="with --report: show what each pixel attends to, a small picture a word")
    test.add_argument("--probe", metavar="FILE", help="with --report: show what tools/probe_language.py wrote")
    test.add_argument("--shuffle_sentences", action="store_true",
                      help="control: each ref gets another ref's sentence; a model that reads must score far less")
    return parser
