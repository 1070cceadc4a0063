"""Do the fast tests bite? Makes one wrong line at a time in a copy of the repository, and runs tests that must fail.

    python tests/mutate.py                 # all mutations: 6 minutes on two cores
    python tests/mutate.py arc-tanh dice-mean

A mutation is killed if one of its test files fails. Exit status 1 if one survives; 2 if a line to change is not found
once, since the code has moved on and the row below must follow.
"""
import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutation:
    """One wrong line: in `file`, `right` becomes `wrong`. One of the fast tests in `tests` must fail."""

    file: str
    right: str
    wrong: str
    tests: str


NANO = "tests/network/test_nano_goldens.py"
MUTATIONS = {
    "shift-sign": Mutation("lib/swin.py", "x.roll((-self.shift, -self.shift), (1, 2))",
                           "x.roll((self.shift, self.shift), (1, 2))", NANO),
    "bias-index": Mutation("lib/windows.py", "return row_offset * (2 * window - 1) + column_offset",
                           "return column_offset * (2 * window - 1) + row_offset", NANO),
    "instance-norm-axis": Mutation("lib/pwam.py", "wide - wide.mean(dim=1, keepdim=True)",
                                   "wide - wide.mean(dim=2, keepdim=True)", NANO),
    "padding-mask": Mutation("lib/pwam.py", "PADDING_SCORE = -1e4", "PADDING_SCORE = 1e4", NANO),
    "visual-after-update": Mutation("lib/backbone.py", "visual = self.intra_scale(x)",
                                    "visual = self.intra_scale(updated)", NANO),
    "cim-order": Mutation("lib/cim.py", "        z = z + self.attention1(z)\n        z = z + self.intra(z)\n",
                          "        z = z + self.intra(z)\n        z = z + self.attention1(z)\n", NANO),
    "cim-gate": Mutation("lib/cim.py", "self.local_embedding(own) * gate + shift",
                         "self.local_embedding(own) * (1 - gate) + shift", NANO),
    "arc-tanh": Mutation("lib/arc.py", "F.softsign(self.angle(self.dropout(x)))",
                         "torch.tanh(self.angle(self.dropout(x)))", NANO),
    "lgce-guide": Mutation("lib/lgce.py", "words.mean(dim=1)", "words[:, 0]", NANO),
    "fianet-maximum": Mutation("lib/object_position.py", "place.amax(dim=-1)", "place.amin(dim=-1)", NANO),
    "align-corners": Mutation("lib/decoder.py", 'fine.shape[-2:], mode="bilinear", align_corners=True',
                              'fine.shape[-2:], mode="bilinear", align_corners=False', NANO),
    "dice-mean": Mutation("lib/losses.py", "truth.sum(-1) + smooth)).sum()", "truth.sum(-1) + smooth)).mean()",
                          "tests/network/test_losses.py " + NANO),
    "schedule-late": Mutation("lib/training/optimizer.py", "(1 - min(iteration, total) / total) ** 0.9",
                              "(1 - min(iteration + 1, total) / total) ** 0.9", "tests/training/test_optimizer.py"),
    "warm-up-early": Mutation("lib/training/optimizer.py", "(iteration + 1) / warmup", "iteration / warmup",
                              "tests/training/test_optimizer.py"),
    "recomputed-blocks": Mutation(
        "lib/training/optimizer.py", "partial(checkpoint, block.forward, use_reentrant=False)",
        "partial(lambda run, *x: 1.5 * checkpoint(run, *x, use_reentrant=False), block.forward)",
        "tests/training/test_update_step.py"),
    "best-by-raw-weights": Mutation("train.py", '(averaged or metrics)["oIoU"]', 'metrics["oIoU"]',
                                    "tests/training/test_fit.py"),
    "mean-and-std": Mutation("transforms.py", ".sub_(mean).div_(std)", ".sub_(std).div_(mean)",
                             "tests/data/test_transforms.py"),
    "boxes": Mutation("transforms.py", "image.width - BOX_SIDE_PX + 1", "image.height - BOX_SIDE_PX + 1",
                      "tests/data/test_transforms.py"),
    "precision": Mutation("lib/evaluation/metrics.py", "(iou >= x).mean()", "(iou > x).mean()",
                          "tests/evaluation/test_metrics.py"),
    "precision-interval": Mutation("lib/evaluation/tables.py", "*(iou >= x for x in", "*(iou > x for x in",
                                   "tests/evaluation/test_tables.py"),
    "timm-axes": Mutation("lib/timm_backbone.py", "x if self.channels_last else x.permute(0, 2, 3, 1)",
                          "x if self.channels_last else x.permute(0, 3, 2, 1)", "tests/network/test_timm_backbone.py"),
    "causal-words": Mutation("bert/encoders.py", "near = distance <= 0 if", "near = distance >= 0 if",
                             "tests/bert/test_encoders.py"),
    "adapter-scale": Mutation("bert/adapters.py", "SCALE * (b.double() @ a.double())", "b.double() @ a.double()",
                              "tests/bert/test_adapters.py"),
    "loss-share": Mutation("lib/loss_table.py", '"ce:{1 - dice_weight!r},dice:{dice_weight!r}"',
                           '"ce:{dice_weight!r},dice:{1 - dice_weight!r}"', "tests/network/test_losses.py"),
    "object-join": Mutation("lib/imagery/objects.py", "self._join(upper - 1, lower - 1)",
                            "self._join(upper - 1, upper - 1)", "tests/imagery/test_vectors.py"),
    "tile-weight": Mutation("lib/predictor.py", "weight * resized(margins, (height, width))",
                            "resized(margins, (height, width))", "tests/imagery tests/scripts/test_predictor.py"),
}


def is_killed(name: str, mutation: Mutation) -> bool:
    """Whether the tests of a mutation fail in a copy of the repository that has it."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT,
                                capture_output=True, text=True, check=True).stdout
        for file in filter(None, listed.split("\0")):
            if (ROOT / file).is_file():
                (target := Path(folder, file)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / file, target)
        changed = Path(folder, mutation.file)
        if (found := (code := changed.read_text()).count(mutation.right)) != 1:
            print(f"{name}: «{mutation.right}» is {found} times in {mutation.file} and must be there once")
            sys.exit(2)
        changed.write_text(code.replace(mutation.right, mutation.wrong))
        done = subprocess.run([sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", *mutation.tests.split()],
                              cwd=folder, capture_output=True, text=True)
    if done.returncode not in (0, 1):   # neither passed nor failed: no tests, or an error of pytest's
        print(f"{name}: pytest ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
        sys.exit(2)
    return done.returncode == 1


def main() -> None:
    """Tries the named mutations, or all, and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(MUTATIONS)}")
    names = parser.parse_args().names or list(MUTATIONS)
    if unknown := [name for name in names if name not in MUTATIONS]:
        parser.error(f"{unknown[0]} is no mutation: choose from {', '.join(MUTATIONS)}")
    survivors = []
    for name in names:
        killed = is_killed(name, MUTATIONS[name])
        print(f"{name:22}{'killed' if killed else 'SURVIVES'}", flush=True)
        survivors += [] if killed else [name]
    print(f"{len(names) - len(survivors)} of {len(names)} killed")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
