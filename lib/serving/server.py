"""A web page, for browsers on this machine only, that segments a picture by sentences.

`GET /` returns the page, which is self-contained. `POST /segment?sentence=TEXT&sentence=TEXT`, with the bytes of a
picture file as its body, returns JSON: width and height of the picture in pixels, seconds, and `masks`. Each mask has
`sentence`, `notes` (parts of the sentence that the network does not receive) and `probabilities`, a PNG in base64 whose
8-bit value v means a probability above v / 256 and at most (v + 1) / 256. With `&picture` the answer also has
`picture`, a JPEG in base64, for file formats that browsers do not show. A refused request gets JSON with the reason in
`error`.

Names and paths in a request are ignored: no file is opened for them.
"""
import base64
import io
import json
import socket
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
from threading import BoundedSemaphore
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

from lib.imagery.pictures import read_picture
from lib.predictor import Predictor, ReadingWarning
from utils import UserError, log
from utils.image_files import open_image

HOSTS = ("127.0.0.1", "localhost")   # accepted names of this machine: any site can make its own name resolve to it
MOST_BYTES = 32 << 20                # of a picture's file
MOST_PIXELS = 50_000_000             # of a picture
MOST_SENTENCES, MOST_CHARACTERS = 16, 1000
MOST_REQUESTS = 64                   # being processed or waiting; each may hold MOST_BYTES
SILENCE_S, FAREWELL_S = 30, 10       # time that a client may be silent, or go on sending after a refusal
HEADERS_S = 10                       # time for a request's headers, all together
GRACE_S, SLOWEST = 5, 100_000        # a body may be late by so many seconds at so many bytes a second
MOST_CONNECTIONS = 1000              # at once; each has a thread
PREVIEW_PX = 2048                    # longest side of `picture`

HEADERS = {   # of every response; the page may load from and contact this server only
    "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src blob: data:; base-uri 'none'; "
                               "style-src 'unsafe-inline'; script-src 'unsafe-inline'; form-action 'none'; "
                               "frame-ancestors 'none'"}


class Refusal(Exception):
    """A request that is refused with an HTTP status and a reason in one sentence."""

    def __init__(self, status: HTTPStatus, reason: str):
        super().__init__(reason)
        self.status = status


class PageServer(ThreadingHTTPServer):
    """Serves the page at 127.0.0.1 and applies `predictor` to one request at a time, in the order of arrival.

    The page shows `name` as the network's name. Port 0 selects a free port, which is in `server_port`. Raises
    `UserError` if the port cannot be used.
    """

    daemon_threads = True
    request_queue_size = 2 * MOST_REQUESTS   # connections that are not accepted yet

    def __init__(self, predictor: Predictor, name: str, port: int):
        self.worker = ThreadPoolExecutor(max_workers=1)
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            raise UserError(f"--port {port} cannot be used ({error.strerror}): give another one, or 0 for any that is "
                            "free") from error
        self.predictor, self.page = predictor, make_page(name)
        self.places, self.connections = BoundedSemaphore(MOST_REQUESTS), BoundedSemaphore(MOST_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for a connection, or closes it if there are too many."""
        if not self.connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Reserves one of the places for requests held in memory. Raises `Refusal` if none is free."""
        if not self.places.acquire(blocking=False):
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_REQUESTS} requests wait already: try again later")
        try:
            yield
        finally:
            self.places.release()

    def segment(self, content: bytes, sentences: list[str], with_picture: bool) -> dict[str, Any]:
        """Waits for its turn and returns the answer. Raises `UserError` or `Refusal` if there is none."""
        return self.worker.submit(answer, self.predictor, content, sentences, with_picture).result()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that disconnect, and logs any other error, which is a bug, without ending the server."""
        if not isinstance(sys.exc_info()[1], OSError):
            log(traceback.format_exc())

    def server_close(self) -> None:
        super().server_close()
        self.worker.shutdown(wait=False, cancel_futures=True)


def make_page(name: str) -> bytes:
    """The page with its settings inserted."""
    settings = {"name": name, "mostBytes": MOST_BYTES, "mostCharacters": MOST_CHARACTERS}
    text = json.dumps(settings).replace("<", "\\u003c")   # text must not end the script element
    return Path(__file__).with_name("page.html").read_text(encoding="utf-8").replace("{{settings}}", text).encode()


def answer(predictor: Predictor, content: bytes, sentences: list[str], with_picture: bool) -> dict[str, Any]:
    """The answer to `POST /segment`."""
    begin = time.perf_counter()
    if (pixels := pixels_of(content)) > MOST_PIXELS:   # before it is decoded, which takes memory
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                      f"the picture has {pixels / 1e6:.0f} megapixels, more than the {MOST_PIXELS // 10**6} that are "
                      "taken here: make it smaller, or use demo_inference.py --tile")
    picture = read_picture(io.BytesIO(content), name="the file")
    masks = [segment(predictor, picture, sentence) for sentence in sentences]
    found = {"width": picture.width, "height": picture.height, "masks": masks}
    if with_picture:
        picture.thumbnail((PREVIEW_PX, PREVIEW_PX))
        found["picture"] = encode(picture, "JPEG", quality=90)
    return {**found, "seconds": round(time.perf_counter() - begin, 3)}


def pixels_of(content: bytes) -> int:
    """The number of pixels by the header of a picture's file; 0 for other files, of which `read_picture` says more."""
    try:
        with open_image(io.BytesIO(content)) as opened:
            return opened.width * opened.height
    except Exception:   # damaged bytes make decoders raise nearly any exception
        return 0


def segment(predictor: Predictor, picture: Image.Image, sentence: str) -> dict[str, Any]:
    """One entry of the answer's `masks`."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ReadingWarning)
        (probability,) = predictor.probabilities(picture, [sentence])
    notes = [warning.message.problem for warning in said if isinstance(warning.message, ReadingWarning)]
    steps = Image.fromarray(quantise(probability))
    return {"sentence": sentence, "notes": notes, "probabilities": encode(steps, "PNG", compress_level=1)}


def quantise(probability: np.ndarray) -> np.ndarray:
    """(H, W) float, 0 to 1 -> uint8 v; for t = 1 … 255 the probability is above t / 256 exactly where v ≥ t."""
    return np.clip(np.ceil(probability * 256) - 1, 0, 255).astype(np.uint8)


def encode(picture: Image.Image, kind: str, **settings: Any) -> str:
    """A picture file in base64."""
    picture.save(file := io.BytesIO(), kind, **settings)
    return base64.b64encode(file.getvalue()).decode()


class TimedReader(io.RawIOBase):
    """The bytes of a connection, until `deadline`, a time of `time.monotonic`: a `TimeoutError` after it."""

    def __init__(self, connection: socket.socket):
        self.connection, self.deadline = connection, time.monotonic() + HEADERS_S

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the client is too slow")
        self.connection.settimeout(min(left, SILENCE_S))
        try:
            return self.connection.recv_into(buffer)
        finally:
            self.connection.settimeout(SILENCE_S)   # for what is sent


class Handler(BaseHTTPRequestHandler):
    """Handles one request of one client."""

    protocol_version = "HTTP/1.1"   # lets clients ask before they send a large body
    default_request_version = "HTTP/1.0"   # malformed requests also get a response with headers
    timeout = SILENCE_S
    server: PageServer
    unread = False   # whether the client may still send a body

    def setup(self) -> None:
        super().setup()
        self.timed = TimedReader(self.connection)
        self.rfile = io.BufferedReader(self.timed)

    def do_GET(self) -> None:
        self.respond(self.get)

    def do_POST(self) -> None:
        self.respond(self.post)

    def respond(self, work: Callable[[], tuple[bytes, str]]) -> None:
        """Sends the content and type that `work` returns, or the reason of an error."""
        self.unread = self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers
        try:
            self.refuse_strangers()
            self.send(HTTPStatus.OK, *work())
        except Refusal as refusal:
            self.send_error(refusal.status, str(refusal))
        except UserError as error:
            self.send_error(HTTPStatus.BAD_REQUEST, str(error))
        except OSError:
            raise   # the client disconnected or timed out
        except Exception:
            log(traceback.format_exc())
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "this failed; the log of the server says why")

    def refuse_strangers(self) -> None:
        """Raises `Refusal` for a request that a page of another site may have made.

        Such a site may let its own name resolve to this machine in order to read answers (DNS rebinding); `Host` then
        has that name.
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
            raise Refusal(HTTPStatus.BAD_REQUEST, f"the request has too many fields: {error}") from error
        sentences = [sentence.strip() for sentence in fields.get("sentence", [])]
        lengths = [len(sentence) for sentence in sentences]
        if not 1 <= len(lengths) <= MOST_SENTENCES or min(lengths) < 1 or max(lengths) > MOST_CHARACTERS:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"1 to {MOST_SENTENCES} sentences are needed, as ?sentence=TEXT, of "
                                                  f"1 to {MOST_CHARACTERS} characters each")
        with self.server.place():
            found = self.server.segment(self.read_body(), sentences, "picture" in fields)
        return json.dumps(found).encode(), "application/json"

    def read_body(self) -> bytes:
        """Reads the body, a picture file. Raises `Refusal`, before reading, if its headers rule one out."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "the picture's bytes are needed as body, with Content-Length")
        if len(length) > 15 or int(length) > MOST_BYTES:   # Python refuses to read numbers of thousands of digits
            size = f"{int(length) / 2**20:.1f} MiB" if len(length) <= 15 else f"a size of {len(length)} digits"
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the file has {size}, more than the {MOST_BYTES >> 20} "
                                                               "MiB that are taken here")
        if self.headers.get_content_maintype() == "multipart":
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be the picture's bytes, as curl "
                                                             "--data-binary @FILE sends them, and no form")
        content = self.read_in_time(int(length))
        if len(content) < int(length) or not content:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"only {len(content)} of the picture's {length} bytes arrived")
        self.unread = False
        return content

    def read_in_time(self, length: int) -> bytes:
        """Up to `length` bytes. Raises `Refusal` if they do not come at `SLOWEST`, since others wait for the place."""
        begin, content = time.monotonic(), bytearray()
        while len(content) < length:
            self.timed.deadline = begin + GRACE_S + len(content) / SLOWEST
            try:
                part = self.rfile.read1(min(1 << 16, length - len(content)))
            except TimeoutError as error:
                raise Refusal(HTTPStatus.REQUEST_TIMEOUT, f"only {len(content)} of the picture's {length} bytes "
                                                          "arrived, too slowly") from error
            if not part:
                break
            content += part
        return bytes(content)

    def send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        """Sends a response and closes the connection, so that a body cannot be taken for the next request."""
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
        """Sends an error as JSON, even for malformed HTTP."""
        content = json.dumps({"error": message or HTTPStatus(code).description}).encode()
        self.send(HTTPStatus(code), content, "application/json")

    def let_it_finish(self) -> None:
        """Reads what the client still sends: otherwise the connection is reset and the answer lost."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            end = time.monotonic() + FAREWELL_S
            while (now := time.monotonic()) < end:
                self.timed.deadline = min(end, now + 1)
                if not self.rfile.read1(1 << 16):
                    return

    def log_message(self, format: str, *values: Any) -> None:
        log((format % values)[:300])
