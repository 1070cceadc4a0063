"""No program writes over what it reads."""
import pytest

from args import EVALUATION, Parser, get_parser
from refer.overwriting import INPUTS, OUTPUTS, refuse_overwriting
from tests.launch import ROOT
from tools import compare_results, convert_checkpoint, export, probe_language, score_predictions


def refused(parser, capsys, *words: object) -> str:
    """The line with which a command line is refused."""
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([str(word) for word in words])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    return said


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, the current one, with a few files."""
    monkeypatch.chdir(tmp_path)
    for name in ("r.pth", "p.json", "a.json", "b.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def test_outputs_that_name_inputs_are_refused_under_any_spelling(here, capsys):
    (here / "link.pth").symlink_to("r.pth")
    for out in ("r.pth", "./r.pth", here / "r.pth", "link.pth"):
        said = refused(convert_checkpoint.get_parser(), capsys, "r.pth", out, "--to", "native")
        assert "OUT" in said and "IN r.pth" in said and "which is read: give another name" in said
    assert "--results p.json" in refused(score_predictions.get_parser(), capsys, "--predictions", "p.json", "--results",
                                         "p.json")
    assert "--json b.json" in refused(compare_results.get_parser(), capsys, "a.json", "b.json", "--json", "b.json")
    assert "--out r.pth" in refused(export.parser(), capsys, "--resume", "r.pth", "--to", "onnx", "--out", "r.pth")
    assert "--out a.json" in refused(export.parser(), capsys, "--resume", "r.pth", "--to", "onnx", "--out", "a.json",
                                     "--results", "a.json")
    assert "--out r.pth" in refused(probe_language.parser(), capsys, "--resume", "r.pth", "--out", "r.pth")


def test_files_of_the_data_set_are_refused_and_others_beside_them_are_not(toy, here, capsys):
    data = ["--refer_data_root", str(toy), "--dataset", "rrsisd"]
    for file in ("rrsisd/instances.json", "rrsisd/refs(unc).p", "images/rrsisd/JPEGImages/00001.jpg"):
        assert (toy / file).is_file()
        assert "is a file of the data set rrsisd" in refused(get_parser(*EVALUATION), capsys, *data, "--results",
                                                             toy / file)
    get_parser(*EVALUATION).parse_args([*data, "--results", "a.json"])
    get_parser(*EVALUATION).parse_args([*data, "--results", str(toy / "rrsisd/new.json")])


def test_a_folder_of_predictions_may_hold_the_scores_but_not_lose_its_masks(here, capsys):
    (here / "predicted").mkdir()
    for name in ("predictions.json", "1_2.png", "scores.json"):
        (here / "predicted" / name).write_text("[]")
    score = score_predictions.get_parser()
    for name in ("predictions.json", "1_2.png"):
        refused(score, capsys, "--predictions", "predicted", "--results", f"predicted/{name}")
    score.parse_args(["--predictions", "predicted", "--results", "predicted/scores.json"])


def test_masks_do_not_go_into_the_folder_of_the_pictures(here, capsys):
    import demo_inference
    (here / "io").mkdir()
    assert "--out io" in refused(demo_inference.parser(), capsys, "--image", "io", "--sentence", "x", "--out", "io")


def test_every_program_that_writes_a_file_is_held_to_it():
    """A program whose parser is argparse's own would not be."""
    for path in [*ROOT.glob("*.py"), *(ROOT / "tools").glob("*.py")]:
        text = path.read_text()
        if "argparse.ArgumentParser(" in text and path.name != "args.py":
            assert path.name in ("gpu_session.py", "measure_refs.py", "make_text_encoder.py"), path   # new folders only
    assert issubclass(type(get_parser()), Parser) and {*INPUTS}.isdisjoint(OUTPUTS) and refuse_overwriting
