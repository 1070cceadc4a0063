"""The model card, README.md of a model folder: the network, its training and its evaluation."""
import json
from pathlib import Path
from typing import Any

from lib.evaluation import NO_TARGET_PIXELS
from lib.evaluation.tables import summarize
from lib.evaluation.text_tables import markdown
from lib.report.page import NAMES
from lib.segmentation import LEFT_OUT, PARTS, SWIN, ModelConfig
from utils import printable

# The flags of the training run that the card shows, as far as the checkpoint has them.
TRAINING_FLAGS = ("dataset", "splitBy", "epochs", "batch_size", "accumulate", "lr", "warmup_iters", "weight_decay",
                  "loss", "dice_weight", "random_box_share", "amp", "seed", "pretrained_swin_weights", "ck_bert",
                  "text_encoder", "text_layers", "text_lora", "init_from")
# Shown without their folders, which are private.
TRAINING_FILES = ("pretrained_swin_weights", "ck_bert", "text_encoder", "init_from")
ROWS = {"mIoU": "mean IoU", "oIoU": "overall IoU", "boundary_IoU": "boundary IoU"}


def model_card(name: str, config: ModelConfig, training: dict[str, Any], results: dict[str, Any] | None,
               averaged: bool = False) -> str:
    """The card of the model folder (or the hub's repository) `name`, as Markdown.

    `training` are the flags of the training run, {} if they are unknown; `results` is the result of
    `lib.evaluation.result_files.read_evaluation`, or None; `averaged` is true if the weights are an average.
    """
    model = NAMES.get(config.model, config.model)
    figures = figures_of(results) if results else {}
    front = {"library_name": "pytorch", "pipeline_tag": "image-segmentation",
             "tags": ["referring-image-segmentation", config.model]}
    if results:
        front["model-index"] = [{"name": name, "results": [{
            "task": {"type": "image-segmentation", "name": "Referring image segmentation"},
            "dataset": {"type": results["dataset"], "name": NAMES.get(results["dataset"], results["dataset"]),
                        "split": results["split"]},
            "metrics": [{"type": metric, "name": metric, "value": round(value, 2)}
                        for metric, (value, _) in figures.items()]}]}]
    parts = ", ".join(f"{place} {part}" for place in PARTS if (part := getattr(config, place)) != "none")
    network = {"model": f"{model} ({config.model})", "parts": parts,
               "backbone": (f"Swin {config.swin_type}, window {config.window}" if config.backbone == SWIN
                            else config.backbone),
               "image": f"{config.img_size} × {config.img_size} px", "sentence": f"at most {config.max_tokens} tokens"}
    if averaged:
        network["weights"] = "their exponential moving average over the updates"
    sections = [f"# {name}", f"{model} for referring image segmentation: an image and a sentence in, the mask of the "
                "object meant out.", table("network", network)]
    run = {flag: Path(str(training[flag])).name if flag in TRAINING_FILES else training[flag]
           for flag in TRAINING_FLAGS if training.get(flag) not in (None, "") and (flag, training[flag]) not in LEFT_OUT
           and not (flag == "ck_bert" and training.get("text_encoder"))}
    sections += ["## Training", table("flag", run) if run else "The checkpoint does not say how it was trained.",
                 "## Evaluation", evaluation(results, figures) if results else "No evaluation was given.",
                 "## Use", f"""In a checkout of the code, whose docs/deployment.md says more:

```python
from lib.predictor import Predictor

predictor = Predictor.from_pretrained({json.dumps(name)})
mask = predictor.segment("photo.jpg", "the ship on the left")
```

`python test.py --resume FOLDER …` evaluates it. Loading runs no code of this folder.""",
                 "Licence and intended use are for its authors to state here."]
    return f"---\n{json.dumps(front, indent=1, ensure_ascii=False)}\n---\n\n" + "\n\n".join(sections) + "\n"


def figures_of(results: dict[str, Any]) -> dict[str, tuple[float, list[float] | None]]:
    """Each metric in percent with its 95 % interval, which may be None, computed from the samples."""
    found = summarize(results["samples"], results["flags"].get("no_target_pixels", NO_TARGET_PIXELS))
    intervals, generalized = found["intervals"], found.get("generalized", {})
    figures = {ROWS[metric]: (found[metric], intervals[metric]) for metric in ROWS}
    figures |= {f"precision@{x}": (value, intervals["precision"][x]) for x, value in found["precision"].items()}
    return figures | {metric: (generalized[metric], None) for metric in ("gIoU", "cIoU") if metric in generalized}


def evaluation(results: dict[str, Any], figures: dict[str, tuple[float, list[float] | None]]) -> str:
    """The table of metrics below a line with the data set, the split and the number of sentences."""
    left_out = f"; {results['left_out']} more were left out for their bad images" if results["left_out"] else ""
    samples = len(results["samples"])
    rows = [[metric, f"{value:.2f}", "%.2f to %.2f" % tuple(interval) if interval else ""]
            for metric, (value, interval) in figures.items()]
    return "\n".join([
        f"{NAMES.get(results['dataset'], cell(results['dataset']))}, split {cell(results['split'])}, {samples} "
        f"sentences{left_out}. In percent, with 95 % bootstrap intervals over images.", "",
        markdown(["metric", "value", "interval"], rows)])


def table(heading: str, rows: dict[str, Any]) -> str:
    """A table with two columns: names and values."""
    return markdown([heading, ""], [[name, cell(value)] for name, value in rows.items()])


def cell(value: Any) -> str:
    """A value from a file as one short table cell, escaped so that it ends neither the cell nor its code span."""
    text = " ".join(printable(str(value)).split())[:100].replace("`", "'").replace("|", "¦")
    return f"`{text}`" if isinstance(value, str) else text
