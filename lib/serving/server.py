"""A page to try a network on, for the browsers of this machine: a picture and sentences in, probabilities out.

`GET /` is the page, which needs nothing else. `POST /segment?sentence=TEXT&sentence=TEXT`, with the bytes of a picture
file as its body, answers with JSON: width and height of the picture in pixels, seconds, and `masks`, of each sentence
`sentence`, `notes` (what the network does not get of it) and `probabilities`, a PNG in base64: its 8-bit value v says
that the probability is above v / 256 and at most (v + 1) / 256. With `&picture` also `picture`, a JPEG in base64, for
files that browsers do not show. Every refusal is JSON, too: `error` says why.

Names and paths in a request mean nothing here: no file is opened for one.
"""
import base64
import io
import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_WR
from threading import BoundedSemaphore
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

from lib.predictor import Predictor, ReadingWarning
from lib.report.pictures import read_picture
from utils import UserError, log

HOSTS = ("127.0.0.1", "localhost")   # what a browser may call this machine: other names may lead here from anywhere
MOST_BYTES = 32 << 20                # of a picture's file
MOST_PIXELS = 50_000_000             # of a picture
MOST_SENTENCES, MOST_CHARACTERS = 16, 1000
MOST_REQUESTS = 64                   # at work or waiting; each may hold MOST_BYTES
SILENCE_S, FAREWELL_S = 30, 10       # how long a client may say nothing; how long one that was refused may go on
PREVIEW_PX = 2048                    # longest side of `picture`

HEADERS = {   # of every answer; the page may load and contact nothing but this server
    "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src blob: data:; base-uri 'none'; "
                               "style-src 'unsafe-inline'; script-src 'unsafe-inline'; form-action 'none'; "
                               "frame-ancestors 'none'"}


class Refusal(Exception):
    """A request that is not answered with masks: an HTTP status, and why in one sentence."""

    def __init__(self, status: HTTPStatus, reason: str):
        super().__init__(reason)
        self.status = status


class PageServer(ThreadingHTTPServer):
    """Serves the page at 127.0.0.1, and applies `predictor` to one request after another, in the order they came.

    `name` is what the page calls the network. Port 0 takes any free one; `server_port` says which. Raises `UserError`
    if the port cannot be had.
    """

    daemon_threads = True
    request_queue_size = 2 * MOST_REQUESTS   # connections that nobody has looked at yet

    def __init__(self, predictor: Predictor, name: str, port: int):
        self.worker = ThreadPoolExecutor(max_workers=1)
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            raise UserError(f"--port {port} cannot be used ({error.strerror}): give another one, or 0 for any that is "
                            "free") from error
        self.predictor, self.page = predictor, make_page(name)
        self.places = BoundedSemaphore(MOST_REQUESTS)

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among the requests that are held in memory. Raises `Refusal` if there is none."""
        if not self.places.acquire(blocking=False):
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_REQUESTS} requests wait already: try again later")
        try:
            yield
        finally:
            self.places.release()

    def segment(self, content: bytes, sentences: list[str], with_picture: bool) -> dict[str, Any]:
        """The answer to a request, when its turn has come. Raises `UserError` or `Refusal` for what cannot be done."""
        return self.worker.submit(answer, self.predictor, content, sentences, with_picture).result()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to speak of; anything else is a bug here, and ends no server."""
        if not isinstance(sys.exc_info()[1], OSError):
            log(traceback.format_exc())

    def server_close(self) -> None:
        super().server_close()
        self.worker.shutdown(wait=False, cancel_futures=True)


def make_page(name: str) -> bytes:
    """The page, with what it must know written into it."""
    settings = {"name": name, "mostBytes": MOST_BYTES, "mostCharacters": MOST_CHARACTERS}
    text = json.dumps(settings).replace("<", "\\u003c")   # no text may end the script element
    return Path(__file__).with_name("page.html").read_text(encoding="utf-8").replace("{{settings}}", text).encode()


def answer(predictor: Predictor, content: bytes, sentences: list[str], with_picture: bool) -> dict[str, Any]:
    """What `POST /segment` answers."""
    begin = time.perf_counter()
    picture = read_picture(io.BytesIO(content), name="the file")
    if (pixels := picture.width * picture.height) > MOST_PIXELS:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                      f"the picture has {pixels / 1e6:.0f} megapixels, more than the {MOST_PIXELS // 10**6} that are "
                      "taken here: make it smaller, or use demo_inference.py --tile")
    masks = [segment(predictor, picture, sentence) for sentence in sentences]
    found = {"width": picture.width, "height": picture.height, "masks": masks}
    if with_picture:
        picture.thumbnail((PREVIEW_PX, PREVIEW_PX))
        found["picture"] = encode(picture, "JPEG", quality=90)
    return {**found, "seconds": round(time.perf_counter() - begin, 3)}


def segment(predictor: Predictor, picture: Image.Image, sentence: str) -> dict[str, Any]:
    """One of the `masks`."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ReadingWarning)
        (probability,) = predictor.probabilities(picture, [sentence])
    notes = [str(warning.message).removeprefix(f"'{sentence}': ") for warning in said
             if issubclass(warning.category, ReadingWarning)]
    steps = Image.fromarray(quantise(probability))
    return {"sentence": sentence, "notes": notes, "probabilities": encode(steps, "PNG", compress_level=1)}


def quantise(probability: np.ndarray) -> np.ndarray:
    """(H, W) float, 0 to 1 -> uint8 v such that the probability is above t / 256 where v ≥ t, for t = 1 … 255."""
    return np.clip(np.ceil(probability * 256) - 1, 0, 255).astype(np.uint8)


def encode(picture: Image.Image, kind: str, **settings: Any) -> str:
    """A picture file in base64."""
    picture.save(file := io.BytesIO(), kind, **settings)
    return base64.b64encode(file.getvalue()).decode()


class Handler(BaseHTTPRequestHandler):
    """One request of one client."""

    protocol_version = "HTTP/1.1"   # clients may ask whether to send a large body
    default_request_version = "HTTP/1.0"   # what is no request gets an answer with a head, too
    timeout = SILENCE_S
    server: PageServer
    unread = False   # whether a body is on its way

    def do_GET(self) -> None:
        self.respond(self.get)

    def do_POST(self) -> None:
        self.respond(self.post)

    def respond(self, work: Callable[[], tuple[bytes, str]]) -> None:
        """Sends what `work` gives: content and its type; or why there is none."""
        self.unread = self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers
        try:
            self.refuse_strangers()
            self.send(HTTPStatus.OK, *work())
        except Refusal as refusal:
            self.send_error(refusal.status, str(refusal))
        except UserError as error:
            self.send_error(HTTPStatus.BAD_REQUEST, str(error))
        except OSError:
            raise   # the client is gone or silent
        except Exception:
            log(traceback.format_exc())
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "this failed; where the server was started, it says why")

    def refuse_strangers(self) -> None:
        """Raises `Refusal` for a request that another site's page may have brought about.

        Such a page may let its own name lead to this machine, to read what is answered; then `Host` is that name.
        """
        hosts, origin = self.headers.get_all("Host", []), self.headers.get("Origin")
        name = None
        with suppress(ValueError):
            name = urlsplit(f"//{hosts[0]}").hostname if len(hosts) == 1 else None
        if name not in HOSTS or origin not in (None, f"http://{hosts[0]}"):
            raise Refusal(HTTPStatus.FORBIDDEN, f"only http://{HOSTS[0]}:{self.server.server_port}/ and its page are "
                                                "answered, no other host or site")

    def get(self) -> tuple[bytes, str]:
        if urlsplit(self.path).path != "/":
            raise Refusal(HTTPStatus.NOT_FOUND, "there is only the page, GET /, and POST /segment")
        return self.server.page, "text/html; charset=utf-8"

    def post(self) -> tuple[bytes, str]:
        path, query = urlsplit(self.path).path, urlsplit(self.path).query
        if path != "/segment":
            raise Refusal(HTTPStatus.NOT_FOUND, "pictures go to POST /segment?sentence=TEXT")
        try:
            fields = parse_qs(query, keep_blank_values=True, max_num_fields=2 * MOST_SENTENCES)
        except ValueError as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"too much is asked: {error}") from error
        sentences = [sentence.strip() for sentence in fields.get("sentence", [])]
        lengths = [len(sentence) for sentence in sentences]
        if not 1 <= len(lengths) <= MOST_SENTENCES or min(lengths) < 1 or max(lengths) > MOST_CHARACTERS:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"1 to {MOST_SENTENCES} sentences are needed, as ?sentence=TEXT, of "
                                                  f"1 to {MOST_CHARACTERS} characters each")
        with self.server.place():
            found = self.server.segment(self.read_body(), sentences, "picture" in fields)
        return json.dumps(found).encode(), "application/json"

    def read_body(self) -> bytes:
        """The body, a picture file. Raises `Refusal` if it cannot be one, before it is read."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "the picture's bytes are needed as body, with Content-Length")
        if int(length) > MOST_BYTES:
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the file has {int(length) / 2**20:.1f} MiB, more than "
                                                               f"the {MOST_BYTES >> 20} that are taken here")
        if self.headers.get_content_maintype() == "multipart":
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be the picture's bytes, as curl "
                                                             "--data-binary @FILE sends them, and no form")
        content = self.rfile.read(int(length))
        if len(content) < int(length) or not content:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"{len(content)} of the picture's {length} bytes came")
        self.unread = False
        return content

    def send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        """One answer a connection, so that nothing of a body can be taken for the next request."""
        self.close_connection = True
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(content)),
                            "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        if self.unread:
            self.let_it_finish()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """As JSON, also for what is no HTTP at all."""
        content = json.dumps({"error": message or HTTPStatus(code).description}).encode()
        self.send(HTTPStatus(code), content, "application/json")

    def let_it_finish(self) -> None:
        """Takes in what the client still sends: with that unread the connection would break, and the answer be lost."""
        with suppress(OSError):
            self.connection.shutdown(SHUT_WR)
            self.connection.settimeout(1)
            end = time.monotonic() + FAREWELL_S
            while time.monotonic() < end and self.rfile.read1(1 << 16):
                pass

    def log_message(self, format: str, *values: Any) -> None:
        log((format % values)[:300])
