"""Test README.md and docs/: their commands run, their tables agree with the code."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from in_process import call
from records import write_image

from ixtune import cli
from ixtune.data.benchmarks import BENCHMARKS
from ixtune.scores import SCORES

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
# Pages whose bash and python blocks run, in this order, in one project folder; identical commands run once.
RUN = ("README.md", "docs/getting-started.md", "docs/data.md", "docs/layouts.md", "docs/recipes.md",
       "docs/memory-plan.md", "docs/evaluation.md", "docs/deploy.md", "docs/reference/python.md")  # fmt: skip
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
# What makes a command small enough for a test: the embedded base, small images, one step, short answers. Of an option
# that is given twice the last counts.
SMALL = {
    "init": ["--base", "nano"],
    "prepare": ["--base", "nano", "--hd-num", "1"],
    "train": ["training.max_steps=1"],
    "evaluate": ["--limit", "2", "--max-new-tokens", "4"],
    "predict": ["--max-new-tokens", "4"],
}
COMMAND: Any = typer.main.get_command(cli.app)


class Block(NamedTuple):
    """Hold a fenced block of a page."""

    page: Path
    language: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """Return its `ixtune` commands, without comments."""
        lines = self.text.splitlines() if self.language in ("", "bash", "console") else []
        return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("ixtune ")]


def blocks_of(page: Path) -> list[Block]:
    found = re.findall(r"^```([a-z]*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(page, language, text) for language, text in found]


def all_commands() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        for block in blocks_of(page):
            yield from ((page.name, words) for words in block.commands)
        for text in re.findall(r"`ixtune ([^`\n]+)`", page.read_text(encoding="utf-8")):
            yield page.name, text.split("|")[0].split()


def test_every_command_and_option_in_the_docs_exists() -> None:
    checked = 0
    for page, words in all_commands():
        if not words[0][0].islower():  # COMMAND stands for any
            continue
        command = COMMAND
        while words and (below := getattr(command, "commands", {}).get(words[0])):
            command, words = below, words[1:]
        assert command is not COMMAND or words[0].startswith("-"), f"{page}: ixtune {words[0]}"
        known = {
            name
            for one in (command, COMMAND)
            for option in one.params
            for name in (*option.opts, *option.secondary_opts)
        }
        for word in words:
            if re.match(r"--[a-z]", word):
                checked += 1
                assert word.partition("=")[0] in known | {"--help"}, f"{page}: ixtune {command.name} {word}"
    assert checked > 50


def test_every_command_is_in_the_readme() -> None:
    table = README.read_text(encoding="utf-8").partition("## Features")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z]+)`", table))
    assert set(COMMAND.commands) - {"bench"} <= named  # bench is in docs/performance.md
    assert "ixtune bench" in (DOCS / "performance.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the files named in the docs: tables with images, a mix of sources, chats, a receipt, a page."""
    folder = tmp_path_factory.mktemp("project")
    rows = [f"{at}.png,How wide is it?,{80 + at}" for at in range(20)]
    for page in RUN:
        for block in blocks_of(ROOT / page):
            if block.language == "csv":
                header, *more = block.text.splitlines()
                assert header == "image,question,answer"
                rows += more
            if block.language == "yaml" and (name := re.match(r"# (\S+\.yaml): ixtune ", block.text)):
                (folder / name[1]).write_text(block.text)
    table = "\n".join(["image,question,answer", *dict.fromkeys(rows)])
    for at, row in enumerate(table.splitlines()[1:]):
        write_image(folder / "photos" / row.split(",")[0], 80 + at, 60)
    for name in ("questions.csv", "receipts.csv"):
        (folder / name).write_text(table)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    (folder / "chats.jsonl").write_text("\n".join([json.dumps({"messages": turns})] * 60))
    for name in ("page.png", "receipt.png"):
        write_image(folder / name, 80, 60)
    (folder / "recipes").symlink_to(ROOT / "recipes")
    return folder


def runs_of(page: Path) -> Iterator[tuple[str, Any]]:
    for block in blocks_of(page):
        if block.language == "bash":
            yield from (("command", words) for words in block.commands)
        elif block.language == "yaml" and (found := re.match(r"# \S+\.yaml: ixtune (.*)", block.text)):
            yield "command", found[1].split()
        elif block.language == "python":
            yield "python", block.text


@pytest.mark.timeout(3600)  # a minute alone, several on a machine with other work
def test_the_commands_in_the_docs_run_in_order(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    done = set()
    for page in RUN:
        for kind, content in runs_of(ROOT / page):
            if str(content) in done:
                continue
            done.add(str(content))
            if kind == "python":
                run_python(page, content)
                continue
            ended = call(*content, *SMALL.get(content[0], []))
            assert ended.returncode == 0, (page, content, ended.stdout[-2000:], ended.stderr[-2000:])
    assert (project / "mine/run/report.html").is_file()
    assert (project / "mine/export/config.json").is_file()
    manifests = [
        json.loads((project / f"prepared/mix/{side}/manifest.json").read_text()) for side in ("train", "validation")
    ]
    assert manifests[0]["sources"][1]["rows"] >= 2000
    assert all(manifest["records"]["rows"] for manifest in manifests)


def run_python(page: str, code: str) -> None:
    """Run a block; compare the output of each `print` with the comment after it."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, page, "exec"), {})
    for expected in re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE):
        assert expected in out.getvalue().splitlines(), (page, out.getvalue())


def test_the_readme_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250
    assert len(text.encode()) <= 16_000


def test_links_in_readme_and_contributing_point_to_files() -> None:
    """Check links; those between the pages of docs/ are checked by `make docs`."""
    for page in (README, ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (ROOT / target.partition("#")[0]).exists(), f"{page.name}: {target}"


def test_files_named_in_the_docs_exist() -> None:
    for page in PAGES:
        for path in re.findall(r"`((?:ixtune|tests|docs|recipes|examples)/[^`\s]*)`", page.read_text(encoding="utf-8")):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_the_score_and_benchmark_tables_are_complete() -> None:
    text = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    assert set(SCORES) | set(BENCHMARKS) <= set(re.findall(r"`([a-z0-9_]+)`", text))


def test_the_recipe_table_matches_the_shipped_recipes_and_their_heads() -> None:
    section = (DOCS / "recipes.md").read_text(encoding="utf-8").partition("## Shipped recipes")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `([a-z0-9.-]+)` \| [^|]+ \| ([0-9.]+)", section, re.MULTILINE))
    assert set(rows) == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    for name, needs in rows.items():
        head = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
        assert re.search(rf"fits: {needs} of|, {needs} GiB at most", head), name


def test_the_errors_in_troubleshooting_exist_in_the_code() -> None:
    """… is a value; all pieces between the values must be parts of one text in the code."""
    texts = [
        _literal(node) for path in (ROOT / "ixtune").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
    ]
    texts = [re.sub(r"\s+", " ", text) for text in texts if text]
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    errors = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    assert len(errors) > 20
    for error in errors:
        pieces = [piece.strip() for piece in re.split("…%?", error) if len(piece.strip()) > 3]
        found = any(all(piece in text for piece in pieces) for text in texts)
        assert found or error.startswith("gpu "), error


def _literal(node: ast.AST) -> str:
    """Return a text of the code without its values."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return " ".join(
            str(part.value)
            for outer in node.values
            for part in ast.walk(outer)
            if isinstance(part, ast.Constant) and isinstance(part.value, str)
        )
    return ""


def test_how_it_works_describes_every_package() -> None:
    section = (DOCS / "how-it-works.md").read_text(encoding="utf-8").partition("## Packages")[2].partition("\n## ")[0]
    names = {
        path.stem for path in (ROOT / "ixtune").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    described = set(re.findall(r"`([a-z_]+)`", section))
    assert {name for name in names if not name.startswith("_")} <= described


def test_make_targets_in_the_docs_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"make ([a-z]+)\b", "\n".join(re.findall(r"`[^`\n]+`", page.read_text("utf-8")))):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"


def test_the_docs_contain_no_placeholders() -> None:
    for page in PAGES:
        assert not re.search(r"\b(TBD|TODO|FIXME|XXX)\b", page.read_text(encoding="utf-8")), page.name


def test_every_generated_section_has_a_generator() -> None:
    import runpy

    makers = runpy.run_path(str(DOCS / "hooks.py"))["GENERATED"]
    marks = {
        name for page in DOCS.rglob("*.md") for name in re.findall(r"<!-- generated: ([a-z ]+) -->", page.read_text())
    }
    assert marks == set(makers)
