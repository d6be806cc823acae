"""Read a recipe or a data config, YAML and `key=value` overrides, into plain values with their positions."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from yaml.composer import ComposerError

from ixtune.errors import UsageError

_LARGEST_FILE_BYTES = 64 * 1024

KeyPath = tuple[str | int, ...]


class YamlKind(NamedTuple):
    """Words for messages about a kind of file."""

    noun: str
    hint_file: str
    """Hint: how to get such a file."""
    hint_keys: str
    """Hint: the keys it must contain."""


RECIPE = YamlKind(
    "recipe",
    "pass the file of a recipe; `ixtune recipes ls` lists the shipped ones",
    "start from one of `ixtune recipes ls`; base, data.train and output are needed",
)


class YamlPlace(NamedTuple):
    """Position of a value; sorts in reading order, overrides last."""

    order: int
    text: str


# YAML 1.2's core scalars. PyYAML's own are those of 1.1: `no` is false, 010 is eight and 5e-5 is a text.
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|nan)",
        list("-+.0123456789"),
    ),
}
_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS = {_TAG + name for name in (*_SCALARS, "str")}


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2 and without aliases, which can unfold to any size."""

    yaml_implicit_resolvers = {}
    noun = RECIPE.noun

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node, as the base class does; refuse an alias."""
        if self.check_event(yaml.AliasEvent):
            problem = f"aliases are not allowed in {self.noun}s; write out the value"
            raise ComposerError(None, None, problem, self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)


class Dumper(yaml.SafeDumper):
    """SafeDumper that quotes whatever _Loader would not read as text."""

    yaml_implicit_resolvers = {}


for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})\\Z"), _first)


class YamlText:
    """Parser state of one file: the position of every value, and the mistakes found so far."""

    def __init__(self, path: Path, kind: YamlKind = RECIPE) -> None:
        self.path, self.kind = path, kind
        self.places: dict[KeyPath, YamlPlace] = {}
        self.mistakes: list[tuple[YamlPlace, str]] = []

    def mistake(self, place: YamlPlace, text: str) -> None:
        """Note one mistake."""
        self.mistakes.append((place, text))

    def place(self, keys: KeyPath) -> YamlPlace:
        """Return the position of `keys`, or of the innermost section around it if it is missing."""
        while keys not in self.places:
            keys = keys[:-1]
        return self.places[keys]

    def file(self) -> dict[str, Any]:
        """Return the file as plain values; raise UsageError if it contains no keys."""
        self.places[()] = self._line(0)
        text = _read_text(self.path, self.kind)
        try:
            tree = self._parse(text, (), lambda node: self._line(node.start_mark.line))
        except (yaml.YAMLError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            problem = getattr(error, "problem", None) or "the text is nested too deeply or holds a control character"
            raise UsageError(
                f"the {self.kind.noun} is not valid YAML: {problem}",
                where=self._line(mark.line).text if mark else str(self.path),
                hint="look at the line and the one before: indentation, colons, quotes",
            ) from error
        if not isinstance(tree, dict):
            raise UsageError(
                f"the {self.kind.noun} holds no keys",
                where=str(self.path),
                hint=self.kind.hint_keys,
            )
        return tree

    def override(self, tree: dict[str, Any], override: str) -> None:
        """Set one `section.key=value` in `tree`."""
        place = YamlPlace(_LARGEST_FILE_BYTES + len(self.places), f"override {override}")
        dotted, equals, text = override.partition("=")
        keys = tuple(dotted.strip().split("."))
        if not equals or not all(keys):
            self.mistake(place, "an override has the form section.key=value")
            return
        try:
            value = self._parse(text, keys, lambda _: place)
        except (yaml.YAMLError, RecursionError):
            self.mistake(place, "the value is not valid YAML; put it in quotes")
            return
        for depth, key in enumerate(keys[:-1], start=1):
            self.places.setdefault(keys[:depth], place)
            if tree.get(key) is None:  # not in the file, or all its lines are comments
                tree[key] = {}
            if not isinstance(tree[key], dict):
                self.mistake(place, f"{'.'.join(keys[:depth])} is not a section")
                return
            tree = tree[key]
        # nothing inside the value, such as an item of a list, comes from the file any more
        self.places |= {known: place for known in self.places if known[: len(keys)] == keys}
        self.places[keys] = place
        tree[keys[-1]] = value

    def _line(self, index: int) -> YamlPlace:
        return YamlPlace(index, f"{self.path}:{index + 1}")

    def _parse(self, text: str, keys: KeyPath, place_of: Callable[[yaml.Node], YamlPlace]) -> Any:
        """Parse the YAML text of the value at `keys`."""
        loader = _Loader(text)
        loader.noun = self.kind.noun
        try:
            node = loader.get_single_node()
            return self._value(loader, node, keys, place_of) if node else None
        finally:
            loader.dispose()

    def _value(
        self, loader: _Loader, node: yaml.Node, keys: KeyPath, place_of: Callable[[yaml.Node], YamlPlace]
    ) -> Any:
        """Convert `node` to a plain value, recording the position of everything in it."""
        place = place_of(node)
        self.places.setdefault(keys, place)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            mapping: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
                place = place_of(key_node)
                if key in mapping:
                    name = ".".join(map(str, (*keys, key)))
                    self.mistake(place, f"{name} is given twice, first at {self.places[*keys, key].text}")
                    continue
                self.places[*keys, key] = place
                mapping[key] = self._value(loader, value_node, (*keys, key), place_of)
            return mapping
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self._value(loader, item, (*keys, index), place_of) for index, item in enumerate(node.value)]
        if node.tag in _SCALAR_TAGS:
            try:
                return loader.construct_object(node)
            except (ValueError, KeyError):
                pass  # such as !!bool maybe, or a number of 5,000 digits
        self.mistake(place, f"the value is not a text, number, list or section (tag {node.tag})")
        return None


def _read_text(path: Path, kind: YamlKind) -> str:
    """Return the text of a file; raise UsageError if it cannot be of its kind."""
    where, noun, hint = str(path), kind.noun, kind.hint_file
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise UsageError(f"there is no such {noun} file", where=where, hint=hint) from error
    except IsADirectoryError as error:
        raise UsageError(f"the {noun} is a folder, not a file", where=where, hint=hint) from error
    except OSError as error:
        raise UsageError(f"the {noun} cannot be read: {error.strerror}", where=where, hint=hint) from error
    if len(content) > _LARGEST_FILE_BYTES:
        raise UsageError(f"this is not a {noun}: larger than {_LARGEST_FILE_BYTES // 1024} KiB", where=where, hint=hint)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"the {noun} is not UTF-8 text", where=f"{path}:{line}", hint="save the file in UTF-8"
        ) from error
