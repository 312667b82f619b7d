"""Every fenced command of README and docs is run, page by page in order, in a folder like the repository.

    ```sh, ```python        run; what a block of JSON or plain text after it shows is what each of its commands prints
    <!-- not run: why -->   before a block that cannot run here; files named there must exist

Before they are run: `make serve` becomes a service on a free port, which then stands for the port that the page names; a page
that only asks port 8000 finds the bundled model there; ten minutes of training become seconds.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import onnx
import pytest

from tests.service import ROOT, environment, serve
from tests.shown import is_shown

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
RUN = ("sh", "python")
FENCED = re.compile(
    r"^(?:<!-- not run: (?P<why>[^>]*) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
SERVE = re.compile(r"((?:CONVSERVE_\w+=\S+ )*)make serve\b")


@dataclass(frozen=True)
class Block:
    """A fenced block; `shown` is what its commands print, by the block after it."""

    language: str
    text: str
    why_not: str | None
    shown: str | None

    @property
    def commands(self) -> list[str]:
        """Python as a whole, a shell's lines one by one."""
        return [self.text] if self.language == "python" else re.sub(r"\\\n\s*", "", self.text).splitlines()


def blocks(page: Path) -> list[Block]:
    found = list(FENCED.finditer(text := page.read_text(encoding="utf-8")))
    assert len(found) * 2 == len(re.findall("^```", text, re.MULTILINE)), "a fence is not closed, or has a language with spaces"
    shown: list[str | None] = [None] * len(found)
    for number, (one, after) in enumerate(pairwise(found)):
        if after["language"] in ("json", "") and "\n#" not in text[one.end() : after.start()]:
            shown[number] = after["text"]
    return [Block(one["language"], one["text"], one["why"], after) for one, after in zip(found, shown, strict=True)]


@dataclass
class Shell:
    """A folder like the repository, and the services that a page's commands find."""

    folder: Path
    services: ExitStack
    ports: dict[str, int] = field(default_factory=dict)

    def run(self, command: str, language: str) -> str:
        """What the command prints. Services go on when it has ended."""
        if started := SERVE.match(command):
            settings = dict(one.removeprefix("CONVSERVE_").lower().split("=") for one in started[1].split())
            self.start(settings.pop("port", "8000"), **settings)
            return ""
        for port in re.findall(r"localhost:(\d+)", command):
            if port not in self.ports:
                self.start(port)
            command = command.replace(f"localhost:{port}", f"127.0.0.1:{self.ports[port]}")
        command = command.replace("--minutes 10", "--minutes 0.1")
        program = [sys.executable, "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
        ended = subprocess.run(
            [*program, command],
            cwd=self.folder,
            env=environment() | {"NO_PROXY": "*"},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}"
        return ended.stdout

    def start(self, port: str, **settings: str) -> None:
        if "model" in settings:
            settings["model"] = str(self.folder / settings["model"])
        self.ports[port] = self.services.enter_context(serve(drain_seconds=0, **settings)).port


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and entry.name != "models":
            (tmp_path / entry.name).symlink_to(entry)
    shutil.copytree(ROOT / "models", tmp_path / "models")
    for name in (".venv", ".venv-dev"):
        (tmp_path / name).symlink_to(sys.prefix)
    for part in ("train", "test"):
        (tmp_path / "DATA" / part).mkdir(parents=True)
        for label in "01":
            (tmp_path / "DATA" / part / label).symlink_to(ROOT / "tests" / "data" / "digits" / part / label)
    write_lenet(tmp_path / "lenet.onnx")
    (tmp_path / "digits.txt").write_text("\n".join("0123456789"), encoding="utf-8")
    with ExitStack() as services:
        yield Shell(tmp_path, services)


def write_lenet(path: Path) -> None:
    """The digits network as another framework exports it: floats from 0 to 1 come in, and nothing is said of them."""
    model = onnx.load(ROOT / "models" / "digits.onnx")
    to_channels_first, to_float, to_unit, *_ = nodes = model.graph.node
    assert [node.op_type for node in nodes[:3]] == ["Transpose", "Cast", "Mul"]
    to_channels_first.output[0] = to_unit.output[0]
    nodes.remove(to_float)
    nodes.remove(to_unit)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    del model.metadata_props[:]
    onnx.save(model, path)


@pytest.mark.timeout(300)  # training takes 25 s of CPU
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_a_page_do_what_it_says(name: str, shell: Shell) -> None:
    for block in blocks(ROOT / name):
        if block.language not in RUN or block.why_not:
            continue
        for command in block.commands:
            printed = shell.run(command, block.language)
            if block.shown is None or not printed:
                assert "urn:convserve:problem" not in printed
            elif block.shown.startswith("{"):
                assert is_shown(json.loads(printed), json.loads(block.shown)), f"{command}\n{printed}"
            else:
                assert is_shown(printed, block.shown), f"{command}\n{printed}"


@pytest.mark.parametrize("name", NAMES)
def test_a_block_that_is_not_run_says_why(name: str) -> None:
    for block in blocks(ROOT / name):
        assert block.language in (*RUN, "json", "yaml", ""), f"nothing runs {block.language}: {block.text}"
        if block.why_not is not None:
            assert len(block.why_not.split()) > 3, block.why_not
            for named in re.findall(r"[\w/.-]+\.(?:py|md)\b", block.why_not):
                assert (ROOT / named).is_file(), named


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        other = page.parent / path if path else page
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings], target


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_a_page_names_is_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for named in set(re.findall(r"`((?:app|benchmarks|docs|k8s|tests|training)/[\w./-]+\.\w+)`", text)):
        assert (ROOT / named).is_file(), named


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if page.name != "README.md" and f"({page.name})" not in index] == []
