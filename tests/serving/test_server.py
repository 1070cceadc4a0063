"""The server of the demo page: its answers, its refusals, and that no request ends it."""
import base64
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import demo_server
from lib.predictor import Predictor
from lib.serving import PageServer, server
from lib.serving.server import MOST_BYTES, make_page, quantise
from tests.conftest import save_nano_checkpoint
from utils import UserError

BROWSER = shutil.which("chromium"), shutil.which("chromedriver")


class Brightness(torch.nn.Module):
    """Stands in for a network: the object is what is brighter than ImageNet's mean."""

    def forward(self, image, token_ids, token_mask):
        return torch.stack([torch.zeros_like(image[:, 0]), image.mean(1)], dim=1)


@pytest.fixture(scope="module")
def checkpoint(toy, tmp_path_factory) -> Path:
    """A nano network with random weights."""
    return save_nano_checkpoint(tmp_path_factory.mktemp("served") / "c.pth", toy)


@pytest.fixture(scope="module")
def serving(checkpoint):
    """A server that finds what is bright. A request that breaks it would break all later tests."""
    predictor = Predictor(checkpoint, device="cpu")
    predictor.model = Brightness()
    with PageServer(predictor, "<b>net</b></script>", 0) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def picture(height: int = 48, width: int = 80, kind: str = "PNG") -> bytes:
    """A white rectangle, 20 × 10 px at (30, 8), on black."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[8:18, 30:50] = 255
    Image.fromarray(pixels).save(file := io.BytesIO(), kind)
    return file.getvalue()


def ask(serving: PageServer, path: str, body: bytes | None = None, method: str = "POST",
        **headers: str) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", serving.server_port, timeout=30)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    return response.status, json.loads(response.read())


def levels(mask: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(mask["probabilities"]))))


def test_a_picture_and_sentences_give_the_predictors_probabilities(serving):
    status, said = ask(serving, "/segment?sentence=the+ship&sentence=" + quote("the ship beside the dam") + "&picture",
                       picture())
    assert status == 200 and (said["width"], said["height"]) == (80, 48)
    expected = serving.predictor.probabilities(Image.open(io.BytesIO(picture())), ["the ship"])[0]
    first, second = said["masks"]
    for mask in (first, second):
        for threshold in (1, 100, 128, 255):
            assert np.array_equal(levels(mask) >= threshold, expected > threshold / 256)
    assert (first["sentence"], first["notes"]) == ("the ship", [])
    assert second["notes"][0].startswith("the vocabulary of 97 tokens lacks 'beside'")
    assert Image.open(io.BytesIO(base64.b64decode(said["picture"]))).size == (80, 48)


def test_levels_are_exact_at_their_thresholds():
    probability = np.array([0, 1 / 256, np.nextafter(np.float32(0.5), np.float32(1)), 0.5, 255 / 256, 1], np.float32)
    assert quantise(probability).tolist() == [0, 0, 128, 127, 254, 255]
    for threshold in range(1, 256):
        assert np.array_equal(quantise(probability) >= threshold, probability > threshold / 256)


def test_many_requests_at_once_are_done_one_after_another_in_order(serving, monkeypatch):
    order, at_work, at_most = [], [], []
    whole = server.answer

    def answer(predictor, content, sentences, with_picture):
        at_work.append(1)
        at_most.append(len(at_work))
        order.append(sentences[0])
        try:
            return whole(predictor, content, sentences, with_picture)
        finally:
            at_work.pop()

    monkeypatch.setattr(server, "answer", answer)
    with ThreadPoolExecutor(50) as pool:
        said = list(pool.map(lambda number: ask(serving, f"/segment?sentence=ship+{number}", picture()), range(50)))
    assert [status for status, _ in said] == [200] * 50 and max(at_most) == 1
    assert [body["masks"][0]["sentence"] for _, body in said] == [f"ship {number}" for number in range(50)]
    assert sorted(order) == sorted(f"ship {number}" for number in range(50))


def test_more_than_can_be_held_are_told_to_come_again(serving, monkeypatch):
    monkeypatch.setattr(serving, "places", threading.BoundedSemaphore(1))
    with serving.place():
        status, said = ask(serving, "/segment?sentence=ship", picture())
    assert status == 503 and "try again later" in said["error"]
    assert ask(serving, "/segment?sentence=ship", picture())[0] == 200


@pytest.mark.parametrize(("path", "body", "status", "words"), [
    ("/segment?sentence=ship", b"a text file, whatever its name is", 400,
     "the file cannot be read as an image: it is none of JPEG, PNG, TIFF"),
    ("/segment?sentence=ship", picture()[:60], 400, "the file cannot be read as an image"),
    ("/segment?sentence=ship", b"", 400, "0 of the picture's 0 bytes"),
    ("/segment", picture(), 400, "sentences are needed"),
    ("/segment?sentence=+", picture(), 400, "sentences are needed"),
    ("/segment?sentence=" + 1001 * "a", picture(), 400, "of 1 to 1000 characters"),
    ("/segment?" + "&".join(["sentence=a"] * 40), picture(), 400, "the request has too many fields"),
    ("/../../../etc/passwd", picture(), 404, "POST /segment"),
    ("/segment/../../etc/passwd?sentence=a", picture(), 404, "POST /segment")], ids=lambda value: repr(value)[:30])
def test_a_request_that_cannot_be_answered_says_why(serving, path, body, status, words):
    given, said = ask(serving, path, body)
    assert given == status and words in said["error"], said


@pytest.mark.parametrize("path", ["/etc/passwd", "/../../../../etc/passwd", "//etc/passwd", "/%2e%2e/args.py",
                                  "/page.html"])
def test_no_path_is_a_file(serving, path):
    assert ask(serving, path, method="GET")[0] == 404


def test_a_file_name_in_a_request_means_nothing(serving, tmp_path):
    before = set(Path.cwd().iterdir())
    name = f'attachment; filename="{tmp_path}/../evil.png"'
    assert ask(serving, "/segment?sentence=a&name=../../evil.png", picture(), **{"Content-Disposition": name})[0] == 200
    status, said = ask(serving, "/segment?sentence=a", picture(), **{"Content-Type": "multipart/form-data; boundary=x"})
    assert status == 415 and "--data-binary @FILE" in said["error"]
    assert set(Path.cwd().iterdir()) == before and not list(tmp_path.parent.glob("evil*"))


@pytest.mark.parametrize("size", [MOST_BYTES + 1, 60 << 20])
def test_a_large_upload_is_refused_and_the_answer_arrives(serving, size):
    status, said = ask(serving, "/segment?sentence=a", bytes(size))
    assert status == 413 and f"{size / 2**20:.1f} MiB, more than the 32" in said["error"]


def test_a_picture_of_too_many_pixels_is_refused(serving, monkeypatch):
    monkeypatch.setattr(server, "MOST_PIXELS", 1000)
    monkeypatch.setattr(server, "read_picture", None)   # it is not decoded
    status, said = ask(serving, "/segment?sentence=a", picture())
    assert status == 413 and "demo_inference.py --tile" in said["error"]


@pytest.mark.parametrize(("headers", "status"), [
    ({"Host": "evil.example"}, 403), ({"Host": "127.0.0.1.evil.example:80"}, 403), ({"Host": ""}, 403),
    ({"Host": "[::1"}, 403), ({"Host": "localhost:9000"}, 200), ({"Origin": "http://evil.example"}, 403),
    ({"Origin": "null"}, 403), ({"Host": "localhost", "Origin": "http://localhost"}, 200)])
def test_other_sites_are_refused(serving, headers, status):
    given, said = ask(serving, "/segment?sentence=a", picture(), **headers)
    assert given == status and (status == 200 or "no other host or site" in said["error"])


@pytest.mark.parametrize(("sent", "status"), [
    (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"), (b"GET / HTTP/1.1\r\n\r\n", b"403"),
    (b"DELETE / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"501"),
    (b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n", b"414"),
    (b"POST /segment?sentence=a HTTP/1.1\r\nHost: localhost\r\n\r\n", b"411"),
    (b"POST /segment?sentence=a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"411"),
    (b"POST /segment?sentence=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b"411"),
    (b"POST /segment?sentence=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc", b"400")])
def test_what_is_no_proper_request_is_answered(serving, sent, status):
    with socket.create_connection(("127.0.0.1", serving.server_port), timeout=10) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        said = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert said.split()[1] == status and b'{"error": "' in said, said


def test_a_length_of_thousands_of_digits_is_refused(serving):
    status, said = ask(serving, "/segment?sentence=a", method="POST", **{"Content-Length": "9" * 5000})
    assert status == 413 and "a size of 5000 digits, more than the 32" in said["error"]


def drip(serving, sent: bytes, pieces: int = 1000) -> bytes:
    """The answer to a client that sends `sent` at once and then a byte every 20 ms."""
    with socket.create_connection(("127.0.0.1", serving.server_port), timeout=10) as client:
        client.sendall(sent)
        client.setblocking(False)
        for _ in range(pieces):
            time.sleep(0.02)
            try:
                said = client.recv(1 << 16)
                client.settimeout(10)
                return said + b"".join(iter(lambda: client.recv(1 << 16), b""))
            except BlockingIOError:   # no answer yet
                with suppress(OSError):
                    client.send(b"a")
            except ConnectionError:
                return b""
    return b"no answer"


def test_clients_that_send_a_body_too_slowly_leave_their_places_to_others(serving, monkeypatch):
    monkeypatch.setattr(server, "GRACE_S", 0.3)
    slow = b"POST /segment?sentence=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30000000\r\n\r\n"
    with ThreadPoolExecutor(server.MOST_REQUESTS) as pool:
        answers = list(pool.map(lambda _: drip(serving, slow), range(server.MOST_REQUESTS)))
    assert all(said.startswith(b"HTTP/1.1 408") and b"too slowly" in said for said in answers)
    assert ask(serving, "/segment?sentence=a", picture())[0] == 200


def test_a_client_that_sends_its_headers_too_slowly_is_left(serving, monkeypatch):
    monkeypatch.setattr(server, "HEADERS_S", 0.3)
    assert drip(serving, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ") == b""   # closed


def test_connections_beyond_the_most_are_closed_at_once(serving, monkeypatch):
    monkeypatch.setattr(serving, "connections", threading.BoundedSemaphore(1))
    with socket.create_connection(("127.0.0.1", serving.server_port)) as first:
        first.sendall(b"GET / HTTP/1.1\r\n")
        time.sleep(0.1)
        with socket.create_connection(("127.0.0.1", serving.server_port), timeout=10) as second:
            assert second.recv(1) == b""
    while not serving.connections.acquire(timeout=10):
        raise AssertionError("the first connection kept its place")
    serving.connections.release()
    assert ask(serving, "/segment?sentence=a", picture())[0] == 200


def test_a_client_that_goes_away_and_a_bug_end_no_server(serving, monkeypatch, capsys):
    with socket.create_connection(("127.0.0.1", serving.server_port)) as client:
        client.sendall(b"POST /segment?sentence=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
    monkeypatch.setattr(server, "answer", lambda *_: [][0])
    status, said = ask(serving, "/segment?sentence=a", picture())
    assert status == 500 and "IndexError" not in said["error"] and "IndexError" in capsys.readouterr().out
    monkeypatch.undo()
    assert ask(serving, "/segment?sentence=a", picture())[0] == 200


def test_a_port_that_is_taken_is_a_users_mistake(serving):
    with pytest.raises(UserError, match=rf"^--port {serving.server_port} cannot be used .*or 0 for any"):
        PageServer(serving.predictor, "net", serving.server_port)


def test_the_page_needs_nothing_from_anywhere():
    text = make_page("</script><b>").decode()
    assert text.count("</script>") == 2 and "{{" not in text
    assert "innerHTML" not in text and "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text and text.count("fetch(") == 1


def test_the_script_serves_until_it_is_interrupted(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["demo_server.py", "--resume", str(checkpoint), "--port", "0", "--device", "cpu"])
    said = []

    def client() -> None:
        while not (found := re.search(r"open http://127\.0\.0\.1:(\d+)/ in a browser", "".join(said))):
            time.sleep(0.02)
        try:
            said.append(ask(SimpleNamespace(server_port=int(found[1])), "/segment?sentence=the+ship", picture()))
        finally:
            os.kill(os.getpid(), signal.SIGINT)   # as Ctrl-C

    monkeypatch.setattr(demo_server, "log", said.append)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)   # tests of training leave handlers of their own
    threading.Thread(target=client, daemon=True).start()
    try:
        demo_server.main()
    finally:
        signal.signal(signal.SIGINT, before)
    (_, (status, masks), ended) = said
    assert status == 200 and masks["masks"][0]["sentence"] == "the ship" and ended == "ended"
    assert not list(tmp_path.iterdir())


# In a browser

@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """Chromium, headless; files that it downloads go to `driver.downloads`."""
    if not all(BROWSER):
        pytest.skip("no chromium and chromedriver on this machine")
    from selenium import webdriver
    options, downloads = webdriver.ChromeOptions(), tmp_path_factory.mktemp("downloads")
    options.binary_location = BROWSER[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(BROWSER[1]))
    started.downloads = downloads
    yield started
    started.quit()


def wait_for(condition, seconds: float = 10):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
    return value


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(serving, driver, tmp_path, width):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def at(name: str):
        return driver.find_element(By.ID, name)

    def downloaded(name: str) -> bytes:
        return wait_for(lambda: (path := driver.downloads / name).is_file() and path.read_bytes())

    for path in driver.downloads.iterdir():
        path.unlink()
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500})
    driver.get(f"http://127.0.0.1:{serving.server_port}/")
    assert at("network").text == "<b>net</b></script>"
    at("sentence").send_keys("the ship" + Keys.ENTER)
    assert at("problem").text == "Choose a picture first."

    (tmp_path / "a scene.png").write_bytes(picture())
    at("file").send_keys(str(tmp_path / "a scene.png"))
    wait_for(lambda: at("view").is_displayed())
    assert driver.switch_to.active_element == at("sentence")   # the next thing to do
    at("sentence").send_keys(Keys.CONTROL + "a", Keys.NULL, "<i>it</i>" + Keys.ENTER)
    wait_for(lambda: "mean probability" in at("results").text)
    assert "<i>it</i>" in at("results").text and "lacks" in at("results").text
    assert at("caption").text == "a scene.png, 80 × 48 px"
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width

    (probability,) = serving.predictor.probabilities(Image.open(tmp_path / "a scene.png"), ["the ship"])
    at("threshold").send_keys(10 * Keys.ARROW_RIGHT)
    wait_for(lambda: at("level").text == "0.54")
    expected = probability > 138 / 256
    driver.find_element(By.XPATH, "//button[text()='PNG']").click()
    mask = np.asarray(Image.open(io.BytesIO(downloaded("a-scene-i-it-i-mask.png"))).convert("L"))
    assert np.array_equal(mask == 255, expected) and set(np.unique(mask)) == {0, 255} and 100 < expected.sum() < 400
    at("json").click()
    content = json.loads(downloaded("a-scene.json"))
    assert (content["image"], content["threshold"]) == ("a scene.png", 138 / 256)
    (found,) = content["objects"]
    assert np.array_equal(coco_mask.decode(found["segmentation"]), expected)
    assert found["area"] == expected.sum() and found["box"] == coco_mask.toBbox(found["segmentation"]).tolist()
    at("drawn").click()
    drawn = np.asarray(Image.open(io.BytesIO(downloaded("a-scene-masks.png"))).convert("RGB"))
    assert drawn.shape == (48, 80, 3) and (drawn[expected].min(1) < 255).all()   # tinted, and only inside
    assert np.array_equal(drawn[~expected], np.asarray(Image.open(tmp_path / "a scene.png"))[~expected])

    (tmp_path / "text.png").write_text("no picture")
    at("file").send_keys(str(tmp_path / "text.png"))
    at("sentence").send_keys("the ship" + Keys.ENTER)
    wait_for(lambda: "cannot be read as an image" in at("results").text)
    (tmp_path / "scene.tif").write_bytes(picture(kind="TIFF"))   # which Chromium does not show by itself
    at("file").send_keys(str(tmp_path / "scene.tif"))
    wait_for(lambda: "scene.tif is chosen" in at("invitation").text)
    at("sentence").send_keys(Keys.ENTER)
    wait_for(lambda: at("view").is_displayed() and "mean probability" in at("results").text)
    assert [entry for entry in driver.get_log("browser") if "favicon" not in entry["message"]
            and "400 (Bad Request)" not in entry["message"]] == []
