"""Test the images that a processor is given as addresses, against a server on this machine."""

from __future__ import annotations

import http.server
import io
import threading
import time
from collections.abc import Iterator

import pytest
from PIL import Image

from ixtune.data.images import image_inputs
from ixtune.data.images.image_file import ImageError
from ixtune.data.images.image_inputs import pil_image


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(file, "PNG")
    return file.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one image, redirects, and what is no image."""

    redirects = {"/moved": "/a.png", "/ftp": "ftp://127.0.0.1/a.png", "/file": "file:///etc/passwd", "/loop": "/loop"}  # noqa: RUF012

    def do_GET(self) -> None:
        if self.path in self.redirects:
            self.send_response(302)
            self.send_header("Location", self.redirects[self.path])
            self.end_headers()
        elif self.path in ("/a.png", "/page.html", "/slow", "/cut"):
            self.send_response(200)
            body = b"<html>not found</html>" if self.path == "/page.html" else png()
            self.send_header("Content-Length", str(len(body) + 9 * (self.path == "/cut")))
            self.end_headers()
            if self.path == "/slow":
                self.wfile.write(body[:20])
                self.wfile.flush()
                time.sleep(0.5)
                body = body[20:]
            self.wfile.write(body)
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.mark.parametrize("path", ["/a.png", "/moved", "/slow"])
def test_an_image_is_loaded_from_its_address(server: str, path: str) -> None:
    assert pil_image(server + path).size == (9, 7)
    assert pil_image("HTTP" + server[4:] + path).size == (9, 7)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/gone.png", "404"),
        ("/ftp", "unknown url type"),
        ("/file", "not allowed"),
        ("/loop", "infinite loop"),
        ("/cut", "cannot be downloaded"),
        ("/page.html", "HTML page"),
    ],
)
def test_what_cannot_be_loaded_is_one_error_with_the_address(server: str, path: str, told: str) -> None:
    with pytest.raises(ImageError) as caught:
        pil_image(server + path)
    assert told in str(caught.value)
    assert path in str(caught.value)
    assert caught.value.hint


def test_a_server_that_is_not_there_is_an_image_error() -> None:
    with pytest.raises(ImageError, match="cannot be downloaded"):
        pil_image("http://127.0.0.1:9/a.png")
    with pytest.raises(ImageError, match="cannot be downloaded"):
        pil_image("http://[::bad/a.png")


def test_downloads_are_bounded_in_bytes_and_time(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as small:
        small.setattr(image_inputs, "_MOST_BYTES", 50)
        with pytest.raises(ImageError, match="more than 50 bytes"):
            pil_image(server + "/a.png")
    monkeypatch.setattr(image_inputs, "_TIMEOUT_S", 0.3)
    with pytest.raises(ImageError, match=r"timed out|more than 0\.3 seconds"):
        pil_image(server + "/slow")
