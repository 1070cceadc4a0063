"""The whole job on a toy data set: data, training, evaluation with its control, pictures.

`python scripts/quickstart.py` works on every system and needs Python's standard library only; it makes an environment
in .venv, or in the folder that the variable VENV names, unless it is there. Arguments go to train.py:
`python scripts/quickstart.py --seed 2` is another run.
"""
import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT, IMAGES = "quickstart", 3600
DATA, CHECKPOINT = f"{OUT}/data", f"{OUT}/model_best_quickstart.pth"


def run(*command):
    """Runs a command in the repository's root; if it fails, this program ends with its status."""
    try:
        status = subprocess.run([str(part) for part in command], cwd=str(ROOT)).returncode
    except KeyboardInterrupt:   # the command received it, too
        sys.exit(130)
    if status:
        sys.exit(status if status > 0 else 1)


def environment():
    """The Python of the environment, which is made and filled first where that is needed."""
    folder = Path(os.environ["VENV"]).absolute() if os.environ.get("VENV") else ROOT / ".venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print("Making the virtual environment %s with Python %s" % (folder, sys.version.split()[0]), flush=True)
        run(sys.executable, "-m", "venv", folder)
    # Installed once for each state of the requirements; a marker inside the environment remembers it.
    wanted = hashlib.sha256((ROOT / "requirements.txt").read_bytes()).hexdigest()
    marker = folder / "installed-for-quickstart"
    if not marker.exists() or marker.read_text(encoding="utf-8") != wanted:
        print("Installing requirements.txt (PyTorch is large: a few minutes)", flush=True)
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", "requirements.txt")
        marker.write_text(wanted, encoding="utf-8")
    return python


def steps(train_flags, images=IMAGES):
    """Pairs of a headline and a command of this repository's, in order."""
    evaluate = ["test.py", "--refer_data_root", DATA, "--resume", CHECKPOINT, "--batch-size", 16, "--workers", 0]
    yield "1/4 Drawing aerial scenes with sentences into " + DATA, [
        "tools/make_toy_rrsisd.py", "--out", DATA, "--images", images, "--size", 96, "--seed", 0, "--contents", "roomy"]
    yield "2/4 Training a nano RMSIN on them (11,500 images, about 5 minutes on 2 quiet CPU cores)", [
        "train.py", "--refer_data_root", DATA, "--ck_bert", DATA + "/bert", "--bert_tokenizer", DATA + "/bert",
        "--swin_type", "nano", "--epochs", 2, "--batch-size", 16, "--lr", "5e-4", "--workers", 0, "--print-freq", 25,
        "--model_id", "quickstart", "--output-dir", OUT, *train_flags]
    headline = "3/4 Evaluating on val and test; the control gives each object another one's sentence\n"
    for split in ("val", "test"):
        yield headline + "-- " + split, [
            *evaluate, "--split", split, "--results", "%s/%s.json" % (OUT, split),
            "--report", "%s/report_%s" % (OUT, split)]
        yield "-- %s, control" % split, [
            *evaluate, "--split", split, "--shuffle_sentences", "--results", "%s/%s_shuffled.json" % (OUT, split)]
        headline = ""
    yield "4/4 Drawing what it sees", [
        "tools/contact_sheet.py", "--refer_data_root", DATA, "--resume", CHECKPOINT, "--split", "val", "--workers", 0,
        "--out", OUT + "/contact_sheet.png"]


def main(train_flags, images=IMAGES):
    """Makes the environment and takes all steps; `train_flags` go to train.py."""
    if sys.version_info < (3, 10):   # noqa: UP036, as this file runs in any Python that a user has
        print("Python 3.10 or newer is needed; this is %s" % sys.version.split()[0], file=sys.stderr)
        sys.exit(2)
    python = environment()
    for headline, command in steps(train_flags, images):
        print(headline, flush=True)
        run(python, *command)


if __name__ == "__main__":
    main(sys.argv[1:])
