"""Turn tokens into text piece by piece: whole characters only, stop strings across pieces, no white space around."""

from __future__ import annotations

from collections.abc import Sequence

from ixtune.data.text.tokenizer import Tokenizer

_REPLACEMENT = "�"


class TextStream:
    """Text of one answer as it is generated. All pieces together are the answer as `Answerer` returns it.

    Attributes:
        stopped: A stop string was found; nothing follows.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        """Start an answer that ends before the first `stop` string."""
        self.tokenizer = tokenizer
        self.stopped = False
        self._stop = tuple(stop)
        self._ids: list[int] = []  # of a character whose bytes are not complete
        self._held = ""  # text that may turn out to be white space at the end, or the beginning of a stop string
        self._started = False

    def add(self, token: int) -> str:
        """Return the text that is certain after one more token, often ''."""
        self._ids.append(token)
        text = self.tokenizer.decode(self._ids)
        if text.endswith(_REPLACEMENT):  # bytes of a character that is not complete
            return ""
        self._ids.clear()
        return self._release(text, last=False)

    def end(self) -> str:
        """Return the rest of the text."""
        text = self.tokenizer.decode(self._ids)
        self._ids.clear()
        return self._release(text, last=True)

    def _release(self, text: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        held = self._held + text
        ends = [at for at in map(held.find, self._stop) if at >= 0]
        if ends:
            held, self.stopped, last = held[: min(ends)], True, True
        size = len(held) if last else len(held) - self._possible_stop(held)
        certain = held[:size].rstrip()
        self._held = "" if last else held[len(certain) :]
        if self._started:
            return certain
        certain = certain.lstrip()
        self._started = bool(certain)
        return certain

    def _possible_stop(self, text: str) -> int:
        """Return the length of the longest end of the text that a stop string begins with."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
