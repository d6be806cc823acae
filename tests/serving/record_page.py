"""Record docs/images/serve.png: the page of a real server that answers about one image.

python tests/serving/record_page.py RUN IMAGE QUESTION SCHEMA docs/images/serve.png

RUN is a run folder, such as runs/handwritten-forms/run of examples/handwritten-forms/run.py; SCHEMA is the file of the
JSON schema that the answers follow.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import browser as browsers
from PIL import Image
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

SIZE = (1180, 710)
SECONDS = 300
FORM = "document.querySelector('#form').value = 'json_schema'; document.querySelector('#schema').value = arguments[0]"
ANSWERED = "return document.querySelector('.exchange') && !document.querySelector('.answer[aria-busy]')"


def main(run: str, image: str, question: str, schema: str, out: str) -> None:
    """Start a server, ask, and take the picture."""
    command = [sys.executable, "-m", "ixtune", "serve", "--adapter", f"forms={run}", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        address = next(found[0] for line in server.stderr if (found := re.search(r"http://[^;\s]+", line)))
        with tempfile.TemporaryDirectory() as folder, browsers.chromium(Path(folder) / "profile") as page:
            browsers.show(page, f"{address}/", *SIZE)
            wait = WebDriverWait(page, SECONDS)
            wait.until(lambda one: one.execute_script("return !document.querySelector('main').hidden"))
            page.find_element("id", "files").send_keys(str(Path(image).resolve()))
            wait.until(lambda one: one.execute_script("return document.querySelector('.view') !== null"))
            page.execute_script(FORM, Path(schema).read_text(encoding="utf-8"))
            page.find_element("id", "question").send_keys(question, Keys.ENTER)
            wait.until(lambda one: one.execute_script(ANSWERED))
            page.execute_script("document.activeElement.blur(); document.querySelector('#history').hidden = true")
            taken = Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("RGB")
            # a palette keeps text sharp at a third of the size
            taken.quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
