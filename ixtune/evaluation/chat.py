"""A conversation with a model: what was said, the images shown, and the commands between.

A line is a question, or a command that begins with a slash. `/image PATH` shows an image with the next question; what
was said stays in the prompt until `/reset`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from transformers.generation.streamers import BaseStreamer

from ixtune.answering.answerer import PREFIX_BYTES, Answer, Answerer
from ixtune.answering.prompt import Prompt
from ixtune.answering.settings import Settings
from ixtune.data.prepared.store import ImageFiles
from ixtune.data.record import Turn
from ixtune.errors import IxtuneError, UsageError
from ixtune.evaluation.questions import View, prompt_of, with_placeholders
from ixtune.evaluation.session import CACHE_BYTES, Loaded
from ixtune.layout import MAX_HD_NUM
from ixtune.model.prefix_cache import PrefixCache
from ixtune.training.batch import ImageSource

HELP = f"""\
/image PATH...   show images with the next question (<ImageHere> in it says where; else they stand in front)
/compare         from now on let the base answer beside the adapter, or no longer
/hd N            most crops of the images that come, 1 to {MAX_HD_NUM}
/reset           forget what was said and shown
/help            this list
/quit            leave (or Ctrl-D)"""


class Chat:
    """The state of one conversation.

    Attributes:
        view: How images to come are laid out.
        turns: What was said.
        images: What was shown, in the order of the placeholders.
        shown: Images that wait for their question.
        compares: Whether the base answers, too.
    """

    def __init__(self, loaded: Loaded, view: View, settings: Settings, write: Callable[[str], None]) -> None:
        """`write` is given text as it comes."""
        self.loaded, self.view, self.settings, self.write = loaded, view, settings, write
        self.turns: list[Turn] = []
        self.images: list[dict[str, Any]] = []
        self.shown: list[dict[str, Any]] = []
        self.compares = False
        # separators that were trained are among the vectors: base and adapter then see different ones
        cache = None if loaded.trains_separators() else loaded.base_model
        self._source = ImageSource(ImageFiles((Path(),), view.corrections), cache, CACHE_BYTES)
        self._prefixes = PrefixCache(PREFIX_BYTES)

    def line(self, text: str) -> bool:
        """Take one line; False at the end. What is wrong with it is written, and the conversation stays as it was."""
        text = text.strip()
        try:
            if text.startswith("/"):
                return self._command(text)
            if text:
                self._ask(text)
        except IxtuneError as error:
            self.write(f"error: {error}\nhint:  {error.hint}\n")
        except KeyboardInterrupt:
            self.write("\n(stopped; this question is forgotten, what it was to show waits for the next)\n")
        return True

    def _command(self, text: str) -> bool:
        try:
            name, *arguments = shlex.split(text)
        except ValueError:  # a quotation mark without its other
            name, *arguments = text.split()
        match name:
            case "/quit" | "/exit":
                return False
            case "/help":
                self.write(HELP + "\n")
            case "/reset":
                self.turns, self.images, self.shown = [], [], []
                self.write("(nothing was said, nothing is shown)\n")
            case "/image":
                self._show(arguments)
            case "/compare":
                self._compare()
            case "/hd":
                self._hd(arguments)
            case _:
                raise UsageError(f"there is no command {name}", hint="/help lists them; or begin without a slash")
        return True

    def _show(self, paths: list[str]) -> None:
        if not paths:
            raise UsageError("/image needs a path", hint='such as /image receipt.png, or /image "my receipt.png"')
        found = prompt_of("", [Path(path).expanduser() for path in paths], self.view).images
        self.shown += found
        for path, image in zip(paths, found, strict=True):
            size = f"{image['width']}x{image['height']}"
            crops = f"{image['rows']}x{image['cols']} crops"
            self.write(f"({path}: {size}, {crops}, {image['tokens']} tokens)\n")

    def _compare(self) -> None:
        if self.loaded.adapter is None:
            raise UsageError("there is no adapter to compare", hint="start the chat with --adapter")
        self.compares = not self.compares
        self.write("(base and adapter answer)\n" if self.compares else "(the adapter answers alone)\n")

    def _hd(self, arguments: list[str]) -> None:
        if len(arguments) != 1 or not arguments[0].isdecimal() or not 1 <= int(arguments[0]) <= MAX_HD_NUM:
            raise UsageError(f"/hd needs a number from 1 to {MAX_HD_NUM}", hint="such as /hd 25")
        self.view = View(int(arguments[0]), self.view.upscale, self.view.corrections)
        self.write(f"(images to come fill at most {self.view.hd_num} crops)\n")

    def _ask(self, text: str) -> None:
        question = Turn("user", with_placeholders(text, len(self.shown)))
        prompt = Prompt((*self.turns, question), (*self.images, *self.shown))
        prompt.ids(self.loaded.tokenizer, self.settings.template)  # what is wrong with it is told before any work
        if self.compares:
            self.write("base     ")
            with self.loaded.as_base():
                self._answer(prompt, "base")
            self.write("adapter  ")
        answer = self._answer(prompt, "adapter")
        self.turns += [question, Turn("assistant", answer.text)]
        self.images += self.shown
        self.shown = []

    def _answer(self, prompt: Prompt, variant: str) -> Answer:
        loaded = self.loaded
        answerer = Answerer(loaded.model, loaded.tokenizer, self._source, self.settings, self._prefixes, variant)
        streamer = _Writer(answerer, self.write)
        with loaded.autocast():
            answer = answerer.answer([prompt], streamer)[0]
        self.write(f" (cut off after {answer.tokens} tokens)\n" if answer.finish == "length" else "\n")
        return answer


class _Writer(BaseStreamer):
    """Writes text while its tokens come; characters of several bytes wait until they are whole."""

    def __init__(self, answerer: Answerer, write: Callable[[str], None]) -> None:
        self.answerer, self.write = answerer, write
        self.ids: list[int] = []
        self.said = ""
        self.prompt_passed = False

    def put(self, value: Any) -> None:
        """The prompt's ids first, then each token."""
        if not self.prompt_passed:
            self.prompt_passed = True
            return
        self.ids += [token for token in value.reshape(-1).tolist() if token not in self.answerer.stops]
        text = self.answerer.tokenizer.decode(self.ids).lstrip()
        if text.startswith(self.said) and not text.endswith("�"):
            self.write(text[len(self.said) :])
            self.said = text

    def end(self) -> None:
        """Whatever waited for a byte that did not come."""
        text = self.answerer.tokenizer.decode(self.ids).lstrip()
        if text.startswith(self.said):
            self.write(text[len(self.said) :])


def converse(chat: Chat, lines: Iterable[str]) -> None:
    """Take lines until one leaves or none is left."""
    for line in lines:
        if not chat.line(line):
            return
