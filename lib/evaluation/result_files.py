"""The schema of result files, which any program may have written, and their readers."""
import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from lib.evaluation import NO_TARGET_PIXELS
from schema import Id, Range, Rule, check, refuse_newer
from utils import UserError, read_json

FORMAT_VERSION = 1   # of the files; raise it when older code cannot read new files any more

Pixels = Annotated[int, Range(0, 2**31)]


@dataclass
class Sample:
    """A sample in `test.py --results`: ids, sentence and `lib.evaluation.metrics.COUNTS`."""

    ref_id: Id
    sent_id: Id
    image_id: Id
    sentence: str
    intersection: Pixels
    union: Pixels
    object_px: Pixels
    boundary_intersection: Pixels
    boundary_union: Pixels
    category: str = ""
    kind: str = ""
    object_size: str = ""
    words: str = ""

    def __post_init__(self) -> None:
        if not self.intersection <= self.object_px <= self.union:
            raise ValueError(f"intersection {self.intersection}, object_px {self.object_px} and union {self.union} "
                             "are not in ascending order")
        if not self.boundary_intersection <= self.boundary_union <= self.union:
            raise ValueError(f"boundary_intersection {self.boundary_intersection}, boundary_union "
                             f"{self.boundary_union} and union {self.union} are not in ascending order")


@dataclass
class Results:
    """The fields that are read from a file of `test.py --results` or `tools/score_predictions.py --results`.

    Metrics are not among them: readers compute them from the samples.
    """

    samples: Annotated[list[Sample], Range(1)]
    split: str = ""
    annotations: dict[str, str] = field(default_factory=dict)   # file: SHA-256
    masks: str = ""   # a fingerprint of the pictures that are masks

    def __post_init__(self) -> None:
        seen = set()
        entries: Any = self.samples   # still the dicts of the file, since `check` converts nothing
        for sample in entries:
            key = sample["ref_id"], sample["sent_id"]
            if key in seen:
                raise ValueError(f"the sample of ref_id {key[0]}, sent_id {key[1]} occurs twice")
            seen.add(key)


def read_versioned(path: str) -> Any:
    """The contents of a JSON file of results. Raises `UserError` if a newer code wrote it, or if it cannot be read."""
    content = read_json(path)
    if isinstance(content, dict):
        refuse_newer(content, FORMAT_VERSION, path)
    return content


def read_results(path: str) -> dict[str, Any]:
    """The results in a file. Raises `UserError`, naming the first wrong entry, for any other file."""
    results = read_versioned(path)
    try:
        check(Results, results, path)
    except UserError as error:
        raise UserError(f"{error}. Give what --results of test.py or tools/score_predictions.py wrote") from error
    return results


@dataclass
class EvaluatedCheckpoint:
    """The weights that were evaluated."""

    sha256: Annotated[str, Rule(re.compile("[0-9a-f]{64}").fullmatch, "a SHA-256 in hexadecimal")]


@dataclass
class EvaluationFlags:
    """The flags of an evaluation that change the meaning of its figures."""

    shuffle_sentences: bool = False
    ema: bool | float = False
    no_target_pixels: Annotated[int, Range(1, 2**31)] = NO_TARGET_PIXELS


@dataclass(kw_only=True)
class Evaluation(Results):
    """Results with the fields that only `test.py --results` writes: the weights and the data set evaluated."""

    checkpoint: EvaluatedCheckpoint
    dataset: Annotated[str, Range(1, 100)]
    flags: EvaluationFlags
    left_out: Pixels


def read_evaluation(path: str, sha256: str, averaged: bool) -> dict[str, Any]:
    """The results that `test.py` wrote for the checkpoint with this SHA-256, for its averaged weights or its own.

    Raises `UserError` for another file, for the control with exchanged sentences, and for other weights.
    """
    results = read_versioned(path)
    try:
        check(Evaluation, results, path)
    except UserError as error:
        raise UserError(f"{error}. Give what --results of test.py wrote") from error
    if results["flags"].get("shuffle_sentences"):
        raise UserError(f"{path} is a control experiment, --shuffle_sentences: give an evaluation without it")
    if (evaluated := results["checkpoint"]["sha256"]) != sha256:
        raise UserError(f"{path} is of other weights: their SHA-256 begins with {evaluated[:12]}, that of these with "
                        f"{sha256[:12]}; evaluate this checkpoint with test.py")
    if bool(results["flags"].get("ema")) != averaged:
        raise UserError(f"{path} is of the {'weights' if averaged else 'averaged weights'} of this checkpoint, not of "
                        f"its {'averaged weights' if averaged else 'weights'}: give --ema to both "
                        "test.py and tools/export.py, or to neither")
    return results


@dataclass
class ProbedSentences:
    """A row of the first table of `tools/probe_language.py`."""

    name: str
    mIoU: float
    change: float
    interval: tuple[float, float] | None
    changed: Pixels


@dataclass
class ProbedWord:
    """A row of the second table of `tools/probe_language.py`."""

    word: str
    times: Pixels
    mean_loss: float


@dataclass
class Probe:
    """The fields of a file of `tools/probe_language.py` that the report shows, and what was probed."""

    conditions: list[ProbedSentences]
    words: list[ProbedWord]
    split: str = ""
    checkpoint: EvaluatedCheckpoint | None = None


def read_probe(path: str, sha256: str = "", split: str = "") -> dict[str, Any]:
    """The two tables of a file of `tools/probe_language.py`.

    Raises `UserError` for any other file, and for one that says that it is of another `split`, or of other weights
    than those with this SHA-256.
    """
    probe = read_json(path)
    try:
        check(Probe, probe, f"--probe {path}")
    except UserError as error:
        raise UserError(f"{error}. Give a file that tools/probe_language.py wrote") from error
    probed = (probe.get("checkpoint") or {}).get("sha256", sha256)
    if sha256 and probed != sha256:
        raise UserError(f"--probe {path} is of other weights: their SHA-256 begins with {probed[:12]}, that of "
                        f"--resume with {sha256[:12]}; probe this checkpoint with tools/probe_language.py")
    if split and probe.get("split", split) != split:
        raise UserError(f"--probe {path} is of the split {probe['split'][:40]}, not of {split}: probe this split with "
                        "tools/probe_language.py")
    return {name: probe[name] for name in ("conditions", "words")}
