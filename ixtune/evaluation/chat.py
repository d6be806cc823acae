"""Chat with a model in the terminal.

A line is a question, or a command that starts with a slash. `/image PATH` adds an image to the next question. Earlier
turns stay in the prompt until `/reset`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.generation.streamers import BaseStreamer

from ixtune.answering.answerer import Answer, Answerer
from ixtune.answering.prompt import Prompt
from ixtune.answering.settings import Settings
from ixtune.checkpoint.sizes import KEPT_PREFIX_BYTES
from ixtune.data.prepared.image_files import ImageFiles
from ixtune.data.record import Turn
from ixtune.errors import IxtuneError, UsageError
from ixtune.evaluation.questions import ImageView, prompt_of, with_placeholders
from ixtune.evaluation.session import CACHE_BYTES, Loaded
from ixtune.layout import MAX_HD_NUM
from ixtune.model.prefix_cache import PrefixCache
from ixtune.training.batch import ImageSource

HELP = f"""\
/image PATH...   add images to the next question, at <ImageHere> or else in front of it
/compare         switch answers of the base on or off
/hd N            maximum crops of the next images, 1 to {MAX_HD_NUM}
/reset           start a new conversation
/help            show this list
/quit            leave (or Ctrl-D)"""


class Chat:
    """State of one conversation.

    Attributes:
        view: Layout of the next images.
        turns: Turns so far.
        images: Their images, in the order of the placeholders.
        shown: Images for the next question.
        compares: Whether the base answers, too.
    """

    def __init__(self, loaded: Loaded, view: ImageView, settings: Settings, write: Callable[[str], None]) -> None:
        """Start a conversation; `write` receives text as it is generated."""
        self.loaded, self.view, self.settings, self.write = loaded, view, settings, write
        self.turns: list[Turn] = []
        self.images: list[dict[str, Any]] = []
        self.shown: list[dict[str, Any]] = []
        self.compares = False
        # trained separators are part of the vectors, so base and adapter have different ones
        cache = None if loaded.trains_separators() else loaded.base_model
        self._source = ImageSource(ImageFiles((Path("/"),), view.corrections), cache, CACHE_BYTES)
        self._prefixes = PrefixCache(KEPT_PREFIX_BYTES, continues=True)

    def line(self, text: str) -> bool:
        """Handle one line; return False to leave. After an error the conversation is unchanged."""
        text = text.strip()
        try:
            if text.startswith("/"):
                return self._command(text)
            if text:
                self._ask(text)
        except IxtuneError as error:
            self.write(f"error: {error}\nhint:  {error.hint}\n")
        except KeyboardInterrupt:
            self.write("\n(stopped: the question is dropped, its images are kept for the next)\n")
        return True

    def _command(self, text: str) -> bool:
        try:
            name, *arguments = shlex.split(text)
        except ValueError:  # an unclosed quotation mark
            name, *arguments = text.split()
        match name:
            case "/quit" | "/exit":
                return False
            case "/help":
                self.write(HELP + "\n")
            case "/reset":
                self.turns, self.images, self.shown = [], [], []
                self.write("(new conversation)\n")
            case "/image":
                self._show(arguments)
            case "/compare":
                self._compare()
            case "/hd":
                self._hd(arguments)
            case _:
                raise UsageError(f"there is no command {name}", hint="/help lists the commands")
        return True

    def _show(self, paths: list[str]) -> None:
        if not paths:
            raise UsageError("/image needs a path", hint='write /image receipt.png, or /image "my receipt.png"')
        view = self.view.of(len(self.images) + len(self.shown) + len(paths))
        found = [(path, image) for path in paths for image in prompt_of("", [path], view).images]
        self.shown += [image for _, image in found]
        for path, image in found:
            size = f"{image['width']}x{image['height']}"
            crops = f"{image['rows']}x{image['cols']} crops"
            self.write(f"({image['name'] or path}: {size}, {crops}, {image['tokens']} tokens)\n")

    def _compare(self) -> None:
        if self.loaded.adapter is None:
            raise UsageError("there is no adapter to compare", hint="start the chat with --adapter")
        self.compares = not self.compares
        self.write("(base and adapter answer)\n" if self.compares else "(only the adapter answers)\n")

    def _hd(self, arguments: list[str]) -> None:
        if len(arguments) != 1 or not arguments[0].isdecimal() or not 1 <= int(arguments[0]) <= MAX_HD_NUM:
            raise UsageError(f"/hd needs a number from 1 to {MAX_HD_NUM}", hint="write /hd 25")
        self.view = replace(self.view, hd_num=int(arguments[0]), hd_num_among=None)
        self.write(f"(the next images have at most {self.view.hd_num} crops)\n")

    def _ask(self, text: str) -> None:
        question = Turn("user", with_placeholders(text, len(self.shown)))
        prompt = Prompt((*self.turns, question), (*self.images, *self.shown))
        # report errors before any work
        prompt.ids(self.loaded.tokenizer, self.settings.template, self.loaded.member)
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
    """Write text as its tokens arrive; hold back characters of several bytes until they are complete."""

    def __init__(self, answerer: Answerer, write: Callable[[str], None]) -> None:
        self.answerer, self.write = answerer, write
        self.ids: list[int] = []
        self.said = ""
        self.prompt_passed = False

    def put(self, value: Any) -> None:
        """Receive the prompt's ids first, then each token."""
        if not self.prompt_passed:
            self.prompt_passed = True
            return
        self.ids += [token for token in value.reshape(-1).tolist() if token not in self.answerer.stops]
        text = self.answerer.tokenizer.decode(self.ids).lstrip()
        if text.startswith(self.said) and not text.endswith("�"):
            self.write(text[len(self.said) :])
            self.said = text

    def end(self) -> None:
        """Write what was held back for a byte that did not arrive."""
        text = self.answerer.tokenizer.decode(self.ids).lstrip()
        if text.startswith(self.said):
            self.write(text[len(self.said) :])


def converse(chat: Chat, lines: Iterable[str]) -> None:
    """Handle lines until one leaves or the input ends."""
    for line in lines:
        if not chat.line(line):
            return
