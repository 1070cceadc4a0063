"""Default values of the training flags: a recipe for each model and data set. This module does not import torch.

A row of `RECIPES` has the settings with which a model's original program trains on a data set; the row for "" holds for
all other data sets. `NANO` replaces some settings for a network that starts from random weights.
"""
from argparse import Namespace
from dataclasses import asdict, dataclass, replace
from typing import Any

from lib.loss_table import loss_of_share
from lib.segmentation import MAX_TOKENS, NUM_TMEM, SWIN, ModelConfig, flags_of
from utils import log


@dataclass(frozen=True)
class Recipe:
    """A row of the table. Its fields are flags, except `source`, which names the origin of the figures.

    `batch_size` is the batch of one process (the original programs of RMSIN and LAVT run four). `max_tokens` includes
    [CLS] and [SEP]; a data set of longer sentences has more, see `refer.layouts`. `dice_weight` is the share of the
    Dice loss, the rest is cross-entropy. `random_box_share` is the share of training refs whose images get black
    squares. `passes` is how often an epoch goes through the training samples. None for it or for `epochs` means as many
    as fit the number of samples (`fit_to_samples`). `bert_dropout` switches BERT's dropouts on. `num_tmem` is the
    number of blocks of FIANet's TMEM, None for other networks.
    """

    source: str
    model_id: str
    lr: float
    batch_size: int
    epochs: int | None = 40
    passes: int | None = 1
    max_tokens: int = 20
    dice_weight: float = 0.0
    random_box_share: float = 0.0
    bert_dropout: bool = True
    num_tmem: int | None = None
    img_size: int = 480
    warmup_iters: int = 0
    train_embeddings: bool = False
    pretrained_swin_weights: str = ""

    @property
    def loss(self) -> str:
        """The text of `--loss`."""
        return loss_of_share(self.dice_weight)

    @property
    def flags(self) -> dict[str, Any]:
        """The value of each flag, by its name in the namespace."""
        return {name: value for name, value in asdict(self).items() if name != "source"}


SWIN_BASE_FILE = "pretrained_weights/swin_base_patch4_window12_384_22k.pth"  # ImageNet-22k, base, window 12

_RMSIN = Recipe("RMSIN's original program", "RMSIN", lr=3e-5, batch_size=2, dice_weight=0.1, random_box_share=0.2,
                pretrained_swin_weights=SWIN_BASE_FILE)
_LAVT = Recipe("LAVT's original program", "lavt", lr=5e-5, batch_size=8)
_FIANET = replace(_RMSIN, source="FIANet's original program, on RRSIS-D", model_id="fianet", batch_size=8,
                  max_tokens=MAX_TOKENS["fianet"], num_tmem=NUM_TMEM)

RECIPES: dict[str, dict[str, Recipe]] = {   # model: {data set, or "" for all others: recipe}
    "rmsin": {"": _RMSIN},
    # The original `lavt` keeps BERT outside the network, in evaluation mode; in other models it trains as a part.
    "lavt": {"": replace(_LAVT, bert_dropout=False)},
    "lavt_one": {"": _LAVT},
    "lgce": {"": replace(_LAVT, source="LAVT's, which LGCE takes over", model_id="lgce")},
    "fianet": {"": _FIANET,
               "refsegrs": replace(_FIANET, source="FIANet's original program, on RefSegRS", lr=5e-5, epochs=60,
                                   random_box_share=0.0, num_tmem=1)},
}
DEFAULT_DATASETS = {"rmsin": "rrsisd", "lavt": "refcoco", "lavt_one": "refcoco", "lgce": "refsegrs", "fianet": "rrsisd"}

# A nano network starts from random weights, for which the original rates, chosen for fine-tuning, are too low.
NANO: dict[str, Any] = {"img_size": 96, "batch_size": 8, "lr": 3.5e-4, "warmup_iters": 100, "random_box_share": 0.0,
        "train_embeddings": True, "epochs": None, "passes": None}


LONG_EPOCH = 250   # samples that an epoch of a nano network has at least: validating and saving would take its time


def fit_to_samples(args: Namespace, samples: int) -> None:
    """Sets `epochs` and `passes`, where the recipe leaves them open, to fit a training split of so many samples.

    A nano network, which starts from random weights, gets 2,500 to 12,000 samples in all, more for larger splits.
    """
    if args.passes is None:   # who gives --epochs means passes by it
        args.passes = 1 if args.epochs else max(1, round(LONG_EPOCH / samples))
    if args.epochs is None:
        wanted = min(12_000, 2_500 + 12 * samples)
        args.epochs = max(1, round(wanted / (samples * args.passes)))
        log(f"{samples} training samples: {args.epochs} epochs"
            + (f" of {args.passes} passes each" if args.passes > 1 else "") + " (--epochs and --passes change that)")


def recipe_of(model: str, dataset: str, swin_type: str, backbone: str = SWIN) -> Recipe:
    """The recipe of a model on a data set; '' stands for any data set without a row."""
    rows = RECIPES[model]
    recipe = rows.get(dataset, rows[""])
    if swin_type != "base" or backbone != SWIN:   # the file fits Swin base only
        recipe = replace(recipe, pretrained_swin_weights="")
    return replace(recipe, source=f"{recipe.source}, changed for nano", **NANO) if swin_type == "nano" else recipe


def settle_loss(args: Namespace) -> None:
    """Sets `loss` to what `--dice_weight` means, unless `--loss` is given, which leaves no share of Dice."""
    if "loss" in args.given:
        args.dice_weight = None
    else:
        args.loss = loss_of_share(args.dice_weight)


def follow_network(args: Namespace, config: ModelConfig) -> None:
    """Sets the flags that were not given to the settings of a network that `--init_from` names, and to its recipe.

    Without this, a nano network would be trained by the recipe of the base one, the default.
    """
    recipe = recipe_of(config.model, args.dataset.split(",")[0].partition(":")[0], config.swin_type,
                       config.backbone)
    for name, value in {**recipe.flags, **flags_of(config)}.items():
        if name not in args.given and name != "model_id":   # the run has its name already
            setattr(args, name, value)
    settle_loss(args)
