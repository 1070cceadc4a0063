"""Flags, their defaults, the recipes of the models, and the original programs' commands."""
import json
import re
import shlex
import subprocess
import sys

import pytest

from args import EVALUATION, TRAINING, get_parser
from lib.segmentation import MODELS
from lib.training.recipes import RECIPES, SWIN_BASE_FILE
from tests.launch import ROOT

PUBLISHED_FLAGS = [
    "--amsgrad", "-b", "--batch-size", "--bert_tokenizer", "--ck_bert", "--dataset", "--ddp_trained_weights",
    "--device", "--epochs", "--fusion_drop", "--img_size", "--local_rank", "--local-rank", "--lr", "--mha",
    "--model", "--model_id", "--output-dir", "--pin_mem", "--pretrained_swin_weights", "--print-freq",
    "--refer_data_root", "--resume", "--split", "--splitBy", "--swin_type", "--wd", "--weight-decay",
    "--window12", "-j", "--workers",
]

OWN_FLAGS = [
    "-h", "--help", "--warmup_iters", "--dice_weight", "--random_box_share", "--bert_layers",
    "--train_embeddings", "--no-train_embeddings", "--bert_dropout", "--no-bert_dropout", "--seed",
    "--results", "--shuffle_sentences", "--published_masks", "--published_validation", "--deterministic",
    "--allow_changed_flags", "--save_every", "--skip_nonfinite", "--skip_bad_images", "--timeout",
    "--amp", "--accumulate", "--checkpoint_activations", "--compile", "--packed", "--fuse",
    "--tensorboard", "--wandb", "--eval_ori_size", "--latex", "--markdown", "--save_predictions", "--prediction_pngs",
    "--report", "--report_samples", "--report_attention", "--probe", "--init_from", "--resize_weights",
    "--passes", "--overfit", "--loss", "--compare_published", "--backbone", "--drop_path",
    "--fusion", "--intra_scale", "--alignment", "--cross_scale", "--decoder_conv", "--num_tmem",
    "--max_tokens", "--exclude", "--allow_leak", "--allow_empty", "--no_target_pixels", "--show_recipe",
    "--masked_pass", "--ema", "--config", "--text_encoder", "--text_layers", "--text_lora",
    "--no-pin_mem", "--tf32", "--no-tf32", "--cudnn_benchmark", "--no-cudnn_benchmark", "--channels_last",
]

PUBLISHED_COMMANDS = [
    "--dataset rrsisd --model_id RMSIN --epochs 40 --img_size 480",
    "--swin_type base --dataset rrsisd --resume ./your_checkpoints_path --split val --workers 4 --window12 "
    "--img_size 480",
    "--model lavt --dataset refcoco --model_id refcoco --batch-size 3 --lr 0.00005 --wd 1e-2 --swin_type base "
    "--pretrained_swin_weights ./pretrained_weights/swin_base_patch4_window12_384_22k.pth --epochs 40 --img_size 480",
    "--model lavt --swin_type base --dataset refcoco --split val --resume ./checkpoints/refcoco.pth --workers 4 "
    "--ddp_trained_weights --window12 --img_size 480",
]


def parse(line: str):
    return get_parser().parse_args(shlex.split(line))


def test_the_flags_are_frozen():
    flags = {option for action in get_parser()._actions for option in action.option_strings}
    assert flags == {*PUBLISHED_FLAGS, *OWN_FLAGS}


@pytest.mark.parametrize("command", PUBLISHED_COMMANDS)
def test_published_commands_are_accepted(command):
    assert parse(command).img_size == 480


def test_rmsins_recipe():
    args = parse("")
    assert (args.model, args.dataset, args.lr, args.batch_size) == ("rmsin", "rrsisd", 3e-5, 2)
    assert (args.dice_weight, args.random_box_share) == (0.1, 0.2)
    assert (args.model_id, args.bert_dropout) == ("RMSIN", True)
    assert args.pretrained_swin_weights == SWIN_BASE_FILE
    shared = (args.weight_decay, args.epochs, args.img_size, args.seed, args.warmup_iters, args.bert_layers)
    assert shared == (1e-2, 40, 480, 2401, 0, 10)


@pytest.mark.parametrize("model", ["lavt", "lavt_one"])
def test_lavts_recipe(model):
    args = parse(f"--model {model}")
    assert (args.dataset, args.lr, args.batch_size) == ("refcoco", 5e-5, 8)
    assert (args.dice_weight, args.random_box_share, args.pretrained_swin_weights) == (0.0, 0.0, "")
    assert (args.model_id, args.bert_dropout) == ("lavt", model == "lavt_one")


def test_the_default_swin_file_belongs_to_base():
    assert parse("--swin_type tiny").pretrained_swin_weights == ""


@pytest.mark.parametrize(("model", "bert_dropout", "dice_weight"), [("rmsin", True, 0.1), ("lavt", False, 0.0)])
def test_a_nano_network_learns_from_scratch_with_a_recipe_of_its_own(model, bert_dropout, dice_weight):
    args = parse(f"--model {model} --swin_type nano")
    assert (args.img_size, args.batch_size, args.lr, args.warmup_iters) == (96, 8, 3.5e-4, 100)
    assert (args.random_box_share, args.train_embeddings, args.pretrained_swin_weights) == (0.0, True, "")
    assert (args.bert_dropout, args.dice_weight) == (bert_dropout, dice_weight)   # the model's
    assert parse(f"--model {model} --swin_type tiny").train_embeddings is False


def test_every_model_has_a_recipe():
    assert MODELS.keys() == RECIPES.keys() and all("" in rows for rows in RECIPES.values())


def test_the_recipes_of_lgce_and_fianet():
    """LGCE's is LAVT's; FIANet's loss and rate are RMSIN's, and RefSegRS has a row of its own."""
    def row(line: str):
        args = parse(line)
        return (args.dataset, args.lr, args.batch_size, args.epochs, args.max_tokens, args.dice_weight,
                args.random_box_share, args.num_tmem, args.model_id, args.bert_dropout)

    assert row("--model lgce") == ("refsegrs", 5e-5, 8, 40, 20, 0.0, 0.0, None, "lgce", True)
    assert row("--model fianet") == ("rrsisd", 3e-5, 8, 40, 22, 0.1, 0.2, 3, "fianet", True)
    assert row("--model fianet --dataset refsegrs") == ("refsegrs", 5e-5, 8, 60, 22, 0.1, 0.0, 1, "fianet", True)
    assert row("--model fianet --dataset refcoco")[1:] == row("--model fianet")[1:]
    assert parse("--model fianet").pretrained_swin_weights == SWIN_BASE_FILE
    assert parse("--model fianet --num_tmem 2").num_tmem == 2


def test_a_data_set_of_long_sentences_takes_more_tokens():
    assert parse("--dataset risbench").max_tokens == 50 and parse("--dataset risbench --max_tokens 30").max_tokens == 30
    assert parse("--dataset rrsisd").max_tokens == 20 and parse("--model fianet --dataset risbench").max_tokens == 50


def test_the_recipe_is_shown_and_nothing_else_happens():
    done = subprocess.run([sys.executable, "-X", "importtime", "train.py", "--model", "lavt", "--lr", "3e-4",
                           "--show_recipe"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not re.search(r"\| +torch$", done.stderr, re.M)
    assert done.stdout.startswith("lavt on refcoco, Swin base: LAVT's original program\n")
    assert "\n  --batch-size              8\n" in done.stdout
    assert "\n  --lr                      0.0003  (given)\n" in done.stdout
    assert "\n  --bert_dropout            no\n" in done.stdout


@pytest.mark.parametrize(("line", "loss", "dice_weight"), [
    ("", "ce:0.9,dice:0.1", 0.1), ("--model lavt", "ce:1", 0.0),
    ("--model lavt --dice_weight 0.5", "ce:0.5,dice:0.5", 0.5),
    ("--loss ce:1.1,focal:2:gamma=1", "ce:1.1,focal:2:alpha=0.25:gamma=1", None)])
def test_the_loss_is_the_recipes_or_as_given(line, loss, dice_weight):
    args = parse(line)
    assert (args.loss, args.dice_weight) == (loss, dice_weight)
    assert not hasattr(get_parser(*EVALUATION).parse_args([]), "loss")


def test_what_is_given_wins_over_the_recipe_of_nano():
    args = parse("--swin_type nano --lr 3e-5 --img_size 480 --warmup_iters 0 --no-train_embeddings "
                 "--random_box_share 0.2 -b 2")
    assert (args.lr, args.img_size, args.warmup_iters, args.train_embeddings) == (3e-5, 480, 0, False)
    assert (args.random_box_share, args.batch_size) == (0.2, 2)


def test_what_is_given_wins_and_and_is_remembered():
    args = parse("--lr 1e-3 -b 4 --window12")
    assert (args.lr, args.batch_size) == (1e-3, 4)
    assert args.given == ["batch_size", "lr", "window12"]


@pytest.mark.parametrize("spelling", ["--local_rank=3", "--local-rank=3"])
def test_both_spellings_of_the_launchers_flag(spelling):
    assert parse(spelling).local_rank == 3


@pytest.mark.parametrize(("line", "message"), [
    ("--img_size 500", "--img_size 500: rmsin needs a multiple of 32, 512 for example"),
    ("--dataset rrsis-d", "Unknown data set 'rrsis-d': choose --dataset from rrsisd, refcoco, "),
    ("--mha 2-2", "'2-2' is not of the form a-b-c-d"),
    ("--init_from a.pth --resume b.pth", "--init_from starts a new run and --resume continues one: give one of them"),
    ("--epochs 0", "0 is not a whole number of at least 1"),
    ("--random_box_share 1.5", "1.5 is not between 0 and 1"),
    ("--loss ce,hinge", "argument --loss: 'hinge' is none of the losses ce, dice"),
    ("--loss ce --dice_weight 0.1", "--dice_weight N means --loss ce:(1 - N),dice:N: give one of them"),
])
def test_a_mistake_is_one_line_and_status_2(line, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(line)
    printed = capsys.readouterr().err
    assert stop.value.code == 2 and message in printed and printed.count("\n") == 1


@pytest.fixture
def recorded(tmp_path):
    """Writes the run.json of a run with the given flags: recorded(line, **edits) -> (path, its flags)."""
    def write(line: str, **edits):
        flags = {**vars(parse(line)), **edits}
        starts = [{"flags": flags}, {"flags": {"resume": "another.pth"}}]
        (tmp_path / "run.json").write_text(json.dumps({"starts": starts}))
        return tmp_path / "run.json", flags
    return write


def test_config_replays_the_flags_of_a_run_and_the_command_line_wins(recorded):
    path, flags = recorded("--swin_type nano --lr 3e-4 --amsgrad --no-bert_dropout --ema 0.9 --model_id 'a b' "
                           "--exclude= --resume auto --batch-size 8", local_rank=3)
    again = vars(parse(f"--config {path} --lr 0.001"))
    assert again.pop("config") == str(path) and {"lr", "amsgrad", "model_id"} <= set(again.pop("given"))
    del flags["config"], flags["given"]
    assert again == {**flags, "lr": 0.001, "local_rank": 0}


def test_config_replays_a_loss_and_leaves_the_recipes_to_the_recipe(recorded):
    path, _ = recorded("--loss ce:1.1,dice:0.1")
    assert parse(f"--config {path} --model lavt").loss == "ce:1.1,dice:0.1"
    path, _ = recorded("--dice_weight 0.3")
    assert parse(f"--config {path} --model lavt").loss == "ce:0.7,dice:0.3"
    path, _ = recorded("")
    assert parse(f"--config {path} --model lavt").loss == "ce:1"


def test_config_leaves_to_the_recipe_what_came_from_it(recorded):
    """Another model therefore takes its own parts and recipe; edited values and former defaults are kept."""
    path, _ = recorded("--swin_type nano --lr 3e-4", weight_decay=0.5)
    args = parse(f"--config {path} --model lavt")
    assert (args.model, args.swin_type, args.lr, args.weight_decay) == ("lavt", "nano", 3e-4, 0.5)
    assert (args.cross_scale, args.dice_weight, args.model_id) == (parse("--model lavt").cross_scale, 0.0, "lavt")


@pytest.mark.parametrize(("edits", "message"), [
    ({"ephocs": 3}, "run.json: ephocs is no flag of this script"), ({"lr": "fast"}, "argument --lr: invalid"),
    ({"lr": [1]}, "run.json: lr is [1], which it cannot be"), ({"model": "unet"}, "--model: invalid choice: 'unet'"),
    ({"amsgrad": "yes"}, "argument --amsgrad: ignored explicit argument 'yes'")])
def test_a_config_with_a_mistake_is_one_line_and_status_2(recorded, edits, message, capsys):
    path, _ = recorded("", **edits)
    test_a_mistake_is_one_line_and_status_2(f"--config {path}", message, capsys)


@pytest.mark.parametrize(("content", "message"), [
    (None, "cannot be read"), ("{", "cannot be read"), ("[]", "must be an object"),
    ('{"starts": []}', "starts must be"), ('{"starts": [{"flags": 3}]}', "starts[0].flags must be")])
def test_a_config_that_is_no_run_json_is_refused(tmp_path, content, message, capsys):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    test_a_mistake_is_one_line_and_status_2(f"--config {tmp_path / 'run.json'}", message, capsys)


def test_lavt_takes_an_img_size_that_rmsin_does_not():
    assert parse("--model lavt --img_size 500").img_size == 500


def test_help_names_every_flag():
    text = get_parser().format_help()
    hidden = {"--local_rank", "--local-rank"}
    assert all(flag in text for flag in {*PUBLISHED_FLAGS, *OWN_FLAGS} - hidden)


@pytest.mark.parametrize("groups", [TRAINING, EVALUATION], ids=["train.py", "test.py"])
def test_each_script_accepts_every_published_flag_and_lists_those_it_reads(groups):
    parser, shown = get_parser(*groups), get_parser(*groups).format_help()
    accepted = {option for action in parser._actions for option in action.option_strings}
    assert accepted >= set(PUBLISHED_FLAGS)
    assert ("--weight-decay" in shown) == ("--epochs" in shown) == ("--save_every" in accepted) == (groups == TRAINING)
    assert ("--split " in shown) == ("--results" in accepted) == (groups == EVALUATION)


def test_help_and_a_mistyped_flag_do_not_wait_for_torch():
    """Flags, models and data sets are named without importing PyTorch."""
    program = "import sys; from args import get_parser; get_parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    for script in ("train.py", "test.py"):
        done = subprocess.run([sys.executable, "-X", "importtime", script, "--ephocs", "3"], cwd=ROOT,
                              capture_output=True, text=True)
        assert done.returncode == 2 and "unrecognized arguments: --ephocs" in done.stderr
        assert not re.search(r"\| +torch$", done.stderr, re.M)
