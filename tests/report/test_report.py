"""The report is one page that needs no other file, shows text as text, and works in a browser."""
import base64
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from lib.evaluation.published import as_data, published_rows
from lib.evaluation.text_tables import Table
from lib.imagery.vectors import polygons
from lib.report.page import GalleryPicture, iou_histogram, outline_path, precision_curve, simplify, write_report
from lib.report.tables_page import write_tables_page
from utils import UserError

NASTY = "</script><img src=x onerror=alert(1)> {{title}} & \"the\" 'ship' <!-- <b>left</b>"
CATEGORIES = ("ship", "storagetank", "tenniscourt", "Expressway-toll-station", "airplane")
KINDS = {"attribute": "The large gray {}", "position": "A {} on the lower left of the picture",
         "relation": "The {} to the right of the small airplane", "plain": "{}"}
BROWSER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(not all(BROWSER), reason="no chromium and chromedriver on this machine")


# Results that look like real ones

def draw_blob(rng: np.random.Generator, centre: np.ndarray, radius: float, size: int) -> np.ndarray:
    """(size, size) bool: a wobbly disc, sometimes with a hole."""
    y, x = np.mgrid[:size, :size] + 0.5
    dx, dy = x - centre[0], y - centre[1]
    angle, (a, b) = np.arctan2(dy, dx), rng.uniform(0.05, 0.25, 2)
    distance = np.hypot(dx, dy) / radius / (1 + a * np.cos(2 * angle + 6 * b) + b * np.sin(3 * angle))
    return (distance < 1) & (distance > (0.4 if rng.random() < 0.25 else 0))


def draw_sample(rng: np.random.Generator, size: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A scene as JPEG, the object's mask and a prediction of it, somewhere between right and wrong."""
    ground = Image.fromarray(rng.integers(70, 150, (8, 8, 3), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(ground)
    for _ in range(5):
        x, y, w, h = rng.integers(0, size, 4) * (1, 1, 0.3, 0.3)
        pen.rectangle((x, y, x + w + 4, y + h + 4), fill=tuple(rng.integers(40, 220, 3).tolist()))
    centre, radius = rng.uniform(0.3, 0.7, 2) * size, rng.uniform(0.08, 0.25) * size
    truth = draw_blob(rng, centre, radius, size)
    miss = rng.choice([0.1, 0.3, 2.5], p=[0.6, 0.25, 0.15]) * radius * rng.normal(size=2)
    prediction = draw_blob(rng, centre + miss, radius * rng.uniform(0.85, 1.15), size)
    pixels = np.asarray(ground).copy()
    pixels[truth] = rng.integers(120, 255, 3)
    pixels = np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.6)).save(out := io.BytesIO(), "JPEG", quality=80)
    return out.getvalue(), truth, prediction


def summarise(samples: list[dict]) -> dict:
    """The metrics of some samples in percent; the boundary IoU is made up."""
    intersection, union = (np.array([sample[key] for sample in samples]) for key in ("intersection", "union"))
    iou = intersection / np.maximum(union, 1)
    return {"mIoU": 100 * float(iou.mean()), "boundary_IoU": 94 * float(iou.mean()),
            "oIoU": 100 * float(intersection.sum() / union.sum()),
            "precision": {str(x): 100 * float((iou >= x).mean()) for x in (0.5, 0.6, 0.7, 0.8, 0.9)}}


def around(value: float, margin: float = 4.0) -> list[float]:
    return [max(0.0, value - margin), min(100.0, value + margin)]


def make_results(number: int = 60, pictures: int = 40, size: int = 160) -> tuple[dict, list[GalleryPicture]]:
    """Results of `number` samples as `test.py --results` writes them, and a gallery of some of them."""
    rng, samples, gallery = np.random.default_rng(5), [], []
    for index in range(number):
        jpeg, truth, prediction = draw_sample(rng, size)
        kind = list(KINDS)[index % 4]
        category = CATEGORIES[index * 7 % 5]
        sentence = NASTY if index == 3 else KINDS[kind].format(category)
        intersection, union = int((truth & prediction).sum()), int((truth | prediction).sum())
        object_size = ("small", "medium", "large")[min(2, truth.sum() // 1500)]
        samples.append({
            "ref_id": index // 2, "sent_id": index, "image_id": f"img_{index:05}", "category": category,
            "sentence": sentence, "kind": kind, "object_size": object_size,
            "words": len(sentence.split()), "intersection": intersection, "union": union,
            "object_px": int(truth.sum()), "boundary_intersection": intersection // 3, "boundary_union": union // 3})
        if len(gallery) < pictures:
            Image.fromarray((255 * prediction).astype(np.uint8)).resize((40, 40)).save(out := io.BytesIO(), "PNG")
            attention = [(word, out.getvalue()) for word in sentence.split()] if index % 2 else []
            gallery.append(GalleryPicture(index, jpeg, size, size, polygons(truth), polygons(prediction), attention))
    whole = summarise(samples)
    breakdowns = {}
    for key in ("category", "kind", "object_size", "words"):
        breakdowns[key] = []
        for group in dict.fromkeys(sample[key] for sample in samples):
            members = [sample for sample in samples if sample[key] == group]
            row = {"group": group, "samples": len(members), **summarise(members)}
            breakdowns[key].append({**row, "mIoU_interval": around(row["mIoU"], 7) if len(members) > 4 else None})
    return {
        **whole, "intervals": {**{key: around(whole[key]) for key in ("mIoU", "oIoU")}, "boundary_IoU": None,
                               "precision": {x: around(value, 6) for x, value in whole["precision"].items()}},
        "original_size": summarise(samples), "breakdowns": breakdowns, "split": "val", "images": number // 2,
        "sentences": number, "empty_masks": 0, "empty_predictions": 2, "left_out": 0,
        "checkpoint": {"path": "checkpoints/model_best_RMSIN.pth", "sha256": "0123456789abcdef" * 4},
        "annotations": {"refer/data/rrsisd/refs(unc).p": "fedcba9876543210" * 4},
        "flags": {"model": "rmsin", "dataset": "rrsisd", "img_size": 480, "amp": "off", "shuffle_sentences": False,
                  "resume": "checkpoints/model_best_RMSIN.pth", "scale": float("inf"), "given": ["resume"]},
        "versions": {"python": "3.11.2", "torch": "2.9.1"}, "device": "cpu: x86_64", "processes": 1, "samples": samples,
        "probe": {"conditions": [{"name": "original", "mIoU": whole["mIoU"], "change": 0.0, "interval": None},
                                 {"name": "words shuffled", "mIoU": 51.2, "change": -13.5, "interval": [-17.1, -9.9]},
                                 {"name": "no sentence", "mIoU": 20.3, "change": -44.4, "interval": [-49.9, -38.8]}],
                  "words": [{"word": word, "times": 40 - 7 * i, "mean_loss": 30.2 - 12 * i}
                            for i, word in enumerate(("left", "airplane", "large", "the"))]},
        "published": as_data(published_rows("rrsisd", "val")),
    }, gallery


@pytest.fixture(scope="module")
def made() -> tuple[dict, list[GalleryPicture]]:
    """Results and gallery. Tests only read them."""
    return make_results()


@pytest.fixture(scope="module")
def page(made, tmp_path_factory) -> Path:
    """The page of `made`."""
    write_report(path := tmp_path_factory.mktemp("report") / "new" / "folder" / "index.html", *made)
    return path


def embedded(path: Path) -> dict:
    """The data within a page."""
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1])


# Without a browser

def test_the_page_needs_nothing_from_anywhere(page):
    text = page.read_text()
    head, _, rest = text.partition('<script type="application/json" id="data">')
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", head)
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|\bimport\(|innerHTML", text)
    assert "default-src 'none'" in text and '<html lang="en">' in text and 'name="viewport"' in text
    assert "{{" not in head + rest.partition("</script>")[2]   # all is filled in


def test_text_cannot_leave_the_data_block(page, made):
    text = page.read_text()
    assert text.count("</script>") == 2 and "<img src=x" not in text
    shown = next(item for item in embedded(page)["gallery"] if item["index"] == 3)
    assert shown["sentence"] == NASTY == made[0]["samples"][3]["sentence"]


def test_the_heading_is_escaped_and_any_text_can_be_written(made, tmp_path):
    write_report(path := tmp_path / "index.html", {**made[0], "split": "<i>\udcff é"}, [])
    assert "<title>RMSIN on RRSIS-D, &lt;i&gt;&#56575; &#233;</title>" in path.read_text()
    write_report(path, {**made[0], "model": "lavt"}, [])   # the flag says rmsin
    assert "<title>LAVT on RRSIS-D, val</title>" in path.read_text()


def test_data_hold_the_gallery_only_and_no_number_that_json_lacks(page, made):
    results, gallery = made
    data = embedded(page)
    assert "samples" not in data and len(data["gallery"]) == len(gallery) == 40 and sum(data["histogram"]) == 60
    assert data["flags"]["scale"] is None
    for item, picture in zip(data["gallery"], gallery, strict=True):
        assert base64.b64decode(item["jpeg"]) == picture.jpeg
        sample = results["samples"][item["index"]]
        assert item["iou"] == sample["intersection"] / sample["union"]


def test_curve_and_histogram_by_hand():
    counts = np.array([[0, 0], [3, 20], [5, 10], [10, 10]])   # IoU 0, exactly 0.15, 0.5, 1
    curve = precision_curve(counts)
    assert len(curve) == 101 and [curve[x] for x in (0, 1, 15, 16, 50, 51, 100)] == [100, 75, 75, 50, 50, 25, 25]
    histogram = iou_histogram(counts)
    assert len(histogram) == 20 and [histogram[i] for i in (0, 3, 10, 19)] == [1, 1, 1, 1]
    assert sum(iou_histogram(np.zeros((0, 2), np.int64))) == 0


def test_outlines_by_hand():
    square, hole = [0, 0, 5, 0, 10, 0, 10, 10, 0, 10], [2, 2, 2.5, 4, 4, 2]
    assert outline_path([[square, hole]]) == "M0 0l100 0 0 100 -100 0zM20 20l5 20 15 -20z"   # (5, 0) is on an edge
    assert outline_path([]) == ""


def test_simplified_outlines_stay_close_and_get_short():
    mask = draw_blob(np.random.default_rng(1), np.array([60.0, 60.0]), 40, 120)
    ring = np.reshape(polygons(mask)[0][0], (-1, 2))
    short = simplify(ring, 0.35)
    assert len(short) < len(ring) / 2
    ends = np.roll(short, -1, axis=0) - short
    along = np.clip(((ring[:, None] - short) * ends).sum(-1) / (ends ** 2).sum(-1), 0, 1)
    assert np.linalg.norm(short + along[..., None] * ends - ring[:, None], axis=-1).min(1).max() <= 0.35 + 1e-9


def test_200_pictures_stay_well_below_5_mb(made, tmp_path):
    results, gallery = made
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (120, 120, 3), np.uint8)).save(out := io.BytesIO(), "JPEG", quality=80)
    jpeg = out.getvalue()
    assert 10_000 < len(jpeg) < 16_000
    jpeg = jpeg[:12_000].ljust(12_000, b"\0")
    many = [replace(gallery[i % 40], sample=i % 60, jpeg=jpeg, attention=()) for i in range(200)]
    write_report(path := tmp_path / "index.html", results, many)
    assert path.stat().st_size < 4e6


def test_a_page_is_written_whole_or_not_at_all(made, tmp_path, monkeypatch):
    path = tmp_path / "index.html"
    path.write_text("the page before")

    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("utils.files.os.replace", full)
    with pytest.raises(UserError, match=r"index\.html cannot be written: .*No space left"):
        write_report(path, *made)
    assert [file.name for file in tmp_path.iterdir()] == ["index.html"] and path.read_text() == "the page before"


@pytest.mark.parametrize("place", ["file/index.html", "folder"])
def test_an_unwritable_path_is_a_users_error(made, tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"{place} cannot be written"):
        write_report(tmp_path / place, *made)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder"]


# In a browser

@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """One headless Chromium for all tests; it keeps its console's messages."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER[0]
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars",
                 "disable-background-networking", f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(BROWSER[1]))
    yield driver
    driver.quit()


@pytest.fixture
def opened(chromium, page):
    """opened(width) loads the page anew at that width; after the test its console must be silent."""
    def load(width: int = 1280, part: str = "", dark: bool = False, where: Path = page):
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600})
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {
            "features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})
        chromium.get("about:blank")   # else a change behind # would not load it anew
        chromium.get(where.as_uri() + part)
        return chromium
    yield load
    assert [entry for entry in chromium.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")] == []


def cards(driver) -> list[int]:
    """The samples that the gallery shows, in order."""
    return driver.execute_script("return [...document.querySelectorAll('#cards li')]"
                                 ".filter(card => card.offsetParent).map(card => +card.dataset.sample)")


def choose(driver, control: str, value: str) -> None:
    """Sets a control as a user does, and sends its event."""
    driver.execute_script("const control = document.getElementById(arguments[0]); control.value = arguments[1];"
                          "control.dispatchEvent(new Event('input', {bubbles: true}))", control, value)


def text(driver, selector: str) -> str:
    return driver.execute_script("return document.querySelector(arguments[0]).textContent", selector)


def press(driver, *keys: str) -> None:
    from selenium.webdriver import ActionChains, Keys
    ActionChains(driver).send_keys(*(getattr(Keys, key, key) for key in keys)).perform()


def expected(made, order=lambda iou, index: (iou, index), keep=lambda sample, iou: True) -> list[int]:
    """What the gallery should show."""
    samples = [made[0]["samples"][picture.sample] for picture in made[1]]
    rated = [(sample["intersection"] / max(1, sample["union"]), i, sample) for i, sample in enumerate(samples)]
    return [i for iou, i, sample in sorted(rated, key=lambda row: order(*row[:2])) if keep(sample, iou)]


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_window_and_draws_everything(opened, width, dark):
    driver = opened(width, dark=dark)
    assert driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
    assert text(driver, "h1") == driver.title == "RMSIN on RRSIS-D, val"
    assert len(driver.find_elements("css selector", "#metrics tbody tr")) == 8
    assert len(driver.find_elements("css selector", "#charts svg")) == 2
    assert len(driver.find_elements("css selector", "#tables table")) == 4
    assert "Original size" in text(driver, "#metrics") and "2 predictions without" in text(driver, "#lede")
    assert text(driver, "#facts table") == "Flags givenresumecheckpoints/model_best_RMSIN.pth"
    assert "0123456789abcdef" * 4 in text(driver, "#facts") and "fedcba9876543210" * 4 in text(driver, "#facts")
    cut = ("return [...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth)"
           ".map(one => one.getAttribute('aria-label'))")
    assert driver.execute_script(cut) == []   # no column of a table is out of sight
    driver.execute_script("document.querySelector('details').open = true; document.querySelector('.card').click()")
    widths = ("const view = document.getElementById('view');"
              "return [document.documentElement.scrollWidth - innerWidth, view.scrollWidth - view.clientWidth]")
    assert driver.execute_script(widths) == [0, 0]


@needs_browser
def test_what_is_missing_leaves_no_hole(opened, made, page):
    results = {**made[0], "original_size": None, "breakdowns": {}, "empty_predictions": 0, "samples": [],
               "intervals": {"mIoU": None, "oIoU": None, "boundary_IoU": None, "precision": {}}}
    del results["probe"], results["published"]
    write_report(bare := page.with_name("bare.html"), results, [])
    driver = opened(where=bare)
    assert [part.get_attribute("id") for part in driver.find_elements("css selector", "section") if part.is_displayed()
            ] == ["figures", "making"]
    assert [link.text for link in driver.find_elements("css selector", "nav a") if link.is_displayed()
            ] == ["Figures", "How it was made"]
    assert "Original size" not in text(driver, "#metrics")
    assert not driver.find_elements("css selector", "#lede .note")


@needs_browser
def test_published_figures_stand_below_this_runs_with_their_notes(opened, made):
    read = ("return [...document.querySelectorAll('#beside tr')].map(row => [...row.children]"
            ".filter(cell => cell.offsetParent).map(cell => cell.textContent))")
    driver, rows = opened(), made[0]["published"]
    head, here, first, *_ = shown = driver.execute_script(read)
    assert head == ["Method", "oIoU", "mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9"]
    assert here[:3] == ["This run", f"{made[0]['oIoU']:.2f}", f"{made[0]['mIoU']:.2f}"]
    assert first == ["RMSIN (Swin-B, 2024), published\u00a0(1)", "78.27", "65.10", "74.66", "68.22", "57.41", "45.29",
                     "24.43"]
    assert len(shown) == 2 + len(rows)
    notes = [note.text for note in driver.find_elements("css selector", "#beside li")]
    assert notes == [f"{row['method']}: {row['note']}." for row in rows]
    unstated = next(place for place, row in enumerate(rows) if "oIoU" not in row["figures"])
    assert shown[2 + unstated][1] == "–"   # what a source does not state is no zero
    weights = driver.execute_script("return [...document.querySelectorAll('#beside tbody tr')].map(row => "
                                    "getComputedStyle(row.lastChild).fontWeight)")
    assert weights == ["600"] + ["400"] * len(rows)
    assert opened(390).execute_script(read) == [row[:3] for row in shown]   # the thresholds have no room on a phone


@needs_browser
@pytest.mark.parametrize(("width", "fits"), [(1280, True), (390, False)])
def test_a_page_of_tables_is_as_wide_as_its_window(opened, tmp_path, width, fits):
    """On a phone a wide table scrolls within itself."""
    rows = [["RMSIN, rerun by a user, last epoch (Swin-B, 2024), published (4)", "3", *["43.53 ± 10.34"] * 5]]
    table = Table(["method", "runs", "mIoU", "oIoU", "P@0.5", "P@0.7", "P@0.9"], rows)
    write_tables_page(tmp_path / "index.html", "Comparison", {"val": table}, ["x" * 300])
    driver = opened(width, where=tmp_path / "index.html")
    assert driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
    assert driver.execute_script("const one = document.querySelector('div');"
                                 "return one.scrollWidth <= one.clientWidth") == fits


@needs_browser
def test_text_from_files_shows_as_text(opened):
    driver = opened()
    choose(driver, "text", "onerror=alert")
    assert cards(driver) == [3]
    assert text(driver, "#cards li:not([hidden]) .sentence") == NASTY
    driver.execute_script("document.querySelector('#cards li:not([hidden]) button').click()")
    assert text(driver, "#view-sentence") == NASTY and not driver.find_elements("css selector", "img[src=x]")


@pytest.mark.slow
@needs_browser
def test_orders_and_filters_give_exactly_the_expected_cards(opened, made):
    driver = opened()
    assert cards(driver) == expected(made) and text(driver, "#count") == "40 of 40 shown"
    choose(driver, "order", "best")
    assert cards(driver) == expected(made, lambda iou, index: (-iou, index))
    choose(driver, "order", "data")
    assert cards(driver) == list(range(40))
    choose(driver, "low", "50")
    choose(driver, "high", "80")
    middle = expected(made, lambda iou, index: index, lambda sample, iou: 0.5 <= iou <= 0.8)
    assert 0 < len(middle) < 40 and cards(driver) == middle and text(driver, "#count") == f"{len(middle)} of 40 shown"
    assert text(driver, "#range") == "from 0.50 to 0.80"
    driver.execute_script("document.getElementById('reset').click()")
    choose(driver, "category", "ship")
    assert cards(driver) == expected(made, keep=lambda sample, iou: sample["category"] == "ship")
    choose(driver, "kind", "relation")
    both = expected(made, keep=lambda sample, iou: (sample["category"], sample["kind"]) == ("ship", "relation"))
    assert both and cards(driver) == both
    choose(driver, "text", "nowhere to be found")
    assert cards(driver) == [] and driver.find_element("id", "nothing").is_displayed()


@pytest.mark.slow
@needs_browser
def test_search_by_typing_and_a_link_that_keeps_the_filters(opened, made):
    driver = opened()
    driver.find_element("id", "text").send_keys("RIGHT ship")
    found = expected(made, keep=lambda sample, iou: {"right", "ship"} <= set(sample["sentence"].lower().split()))
    assert found and cards(driver) == found
    choose(driver, "order", "data")
    driver.execute_async_script("setTimeout(arguments[0], 400)")   # the address follows a moment later
    part = driver.execute_script("return location.hash")
    assert part == "#text=RIGHT+ship&order=data"
    assert cards(opened(part=part)) == sorted(found)
    assert len(cards(opened(part="#category=none-such&low=x"))) == 40


@needs_browser
def test_the_larger_view_by_keyboard(opened, made):
    from selenium.webdriver.support.wait import WebDriverWait
    driver = opened()
    order = expected(made)
    driver.find_element("id", "reset").send_keys("")
    driver.execute_script("document.getElementById('reset').focus()")
    press(driver, "TAB", "ENTER")   # the first card comes after the button

    def seen() -> tuple[str, str]:
        return text(driver, "#place"), text(driver, "#view-facts dd:nth-of-type(11)")
    assert driver.execute_script("return document.getElementById('view').open")
    assert seen() == ("1 of 40", str(order[0]))
    for direction, number in (("RIGHT", 1), ("RIGHT", 2), ("LEFT", 1), ("LEFT", 0), ("LEFT", 39)):
        press(driver, f"ARROW_{direction}")
        assert seen() == (f"{number + 1} of 40", str(order[number]))
        with_strip = bool(made[1][order[number]].attention)
        assert driver.find_element("id", "attention").is_displayed() == with_strip
    press(driver, "ESCAPE")
    assert not driver.execute_script("return document.getElementById('view').open")
    focused = "return +document.activeElement.parentNode.dataset.sample"   # the dialog's event comes a moment later
    WebDriverWait(driver, 10).until(lambda _: driver.execute_script(focused) == order[39], "the last card has no focus")


@needs_browser
def test_outlines_can_be_hidden_and_lie_over_the_picture(opened):
    driver = opened()
    first = "#cards li:not([hidden]) "
    picture, outlines = (driver.find_element("css selector", first + part).rect for part in ("img", "svg"))
    assert picture == pytest.approx(outlines, abs=0.5)
    assert driver.execute_script(f"const image = document.querySelector('{first}img'); image.loading = 'eager';"
                                 "return image.decode().then(() => image.naturalWidth)") == 160
    for layer in ("truth", "prediction"):
        outline = driver.find_element("css selector", f"{first}.{layer}")
        assert outline.is_displayed()
        driver.execute_script(f"document.querySelector('[data-layer={layer}]').click()")
        assert not outline.is_displayed()
        boxes = driver.find_elements("css selector", f"[data-layer={layer}]")
        assert [box.is_selected() for box in boxes] == [False, False]   # the larger view's as well


@needs_browser
def test_tables_sort_by_their_headings(opened, made):
    driver = opened()
    rows = made[0]["breakdowns"]["category"]

    def click(column: int) -> tuple[list[str], str]:
        return driver.execute_script(
            "const table = document.querySelector('#tables table');"
            "const head = table.querySelectorAll('thead th')[arguments[0]];"
            "head.firstChild.click(); return [[...table.querySelectorAll('tbody th')].map(cell => cell.textContent),"
            "head.getAttribute('aria-sort')]", column)
    assert click(2) == [[row["group"] for row in sorted(rows, key=lambda row: -row["mIoU"])], "descending"]
    assert click(2) == [[row["group"] for row in sorted(rows, key=lambda row: row["mIoU"])], "ascending"]
    assert click(0) == [sorted((row["group"] for row in rows), key=str.lower), "ascending"]
    assert len(driver.find_elements("css selector", "#tables [aria-sort]")) == 1


@needs_browser
def test_everything_is_reached_by_tab_and_has_a_name(opened):
    driver = opened()
    names = driver.execute_script(
        "return [...document.querySelectorAll('main button, main input, main select, dialog button')].filter(one => "
        "!(one.getAttribute('aria-label') || one.textContent.trim() || (one.labels && one.labels.length)))")
    assert names == []
    assert driver.execute_script("return [...document.querySelectorAll('a, button, input, select, summary')]"
                                 ".filter(one => one.tabIndex < 0)") == []
    outlines = driver.execute_script(
        "return ['.card', 'th button', '#text', '#low', '[data-layer]', 'summary', 'nav a'].map(where => {"
        "const one = document.querySelector(where); one.focus({focusVisible: true});"
        "return getComputedStyle(one).outlineStyle; })")
    assert outlines == ["solid"] * 7
