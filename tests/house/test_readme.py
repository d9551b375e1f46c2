"""The pages for people: every command and snippet in them is run, in order, in a copy of the project.

A page's blocks share one folder. Each ```python block runs as a script of its own; each ```sh block runs as bash, but
`make` lines are only asked what they would do, and lines that install or fetch are left out. A ```toml block that is a
plan must load. Every other block must say what it is, so that nothing runnable slips by without a tag.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md"))
PAGES = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", *DOCS]
LEFT_OUT = re.compile(r"(git|cd|source|\.|uv|conda|pip|pre-commit|python3? -m (venv|pip)) |\.ci/run")
SHOWN = {"text", "toml", "json", "html", "http", "make", "yaml"}
LONGEST = 240  # seconds a block may take
FENCE = re.compile(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    where: str
    tag: str
    text: str


def blocks(page: str, text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = []
    for hit in FENCE.finditer(text):
        line = text.count("\n", 0, hit.start()) + 1
        found.append(Block(f"{page}:{line}", hit[2], re.sub(f"^{hit[1]}", "", hit[3], flags=re.MULTILINE)))
    if 2 * len(found) != len(re.findall(r"^ *```", text, re.MULTILINE)):
        pytest.fail(f"{page}: a block is opened and not closed")
    return found


def script(text: str) -> tuple[str, int]:
    """What of a shell block is run, and how many lines are left out."""
    lines = [re.sub(r"^(\$ )?(\.venv/bin/)?", "", line) for line in text.replace("\\\n", " ").splitlines()]
    kept = [re.sub(r"^make\b", "make -n", line) for line in lines if not LEFT_OUT.match(line)]
    return "\n".join(kept) + "\n", len(lines) - len(kept)


def follow(block: Block, folder: Path) -> None:
    """Do what a block says, in the folder."""
    if block.tag in {"sh", "bash"}:
        run(block, ["bash", "-euo", "pipefail", "-c", script(block.text)[0]], folder)
    elif block.tag == "python":
        run(block, [sys.executable, "-c", block.text], folder)
    elif block.tag == "toml" and {"data", "training"} & set(tomllib.loads(block.text)):
        load(block, folder)
    elif block.tag not in SHOWN:
        wanted = ", ".join(["sh", "bash", "python", *sorted(SHOWN)])
        pytest.fail(f"{block.where}: a block's tag is one of {wanted}; came '{block.tag}'")


def run(block: Block, command: list[str], folder: Path) -> None:
    """Run a block, or fail with where it stands and what it said. The programs are those beside this Python."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    try:
        ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=LONGEST, check=False)
    except subprocess.TimeoutExpired:
        pytest.fail(f"{block.where}: took more than {LONGEST} s\n{block.text}")
    if ran.returncode:
        pytest.fail(f"{block.where}: exit {ran.returncode}\n{block.text}\n{ran.stdout[-2000:]}{ran.stderr[-4000:]}")


def load(block: Block, folder: Path) -> None:
    """Read a plan as `fedgen run` would."""
    from fedgen.plan import read

    file = folder / "plan-of-the-page.toml"
    file.write_text(block.text, "utf-8")
    read(file)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_page_does_what_it_says(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (ROOT / page).exists():
        pytest.skip(f"{page} is not written yet")
    folder = tmp_path / "copy"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "dist"))
    monkeypatch.chdir(folder)
    for block in blocks(page, (ROOT / page).read_text("utf-8")):
        follow(block, folder)


def test_blocks_are_found_with_their_line_and_tag() -> None:
    text = "# a\n\n```sh\nls\n```\n\n- b\n  ```python\n  if 1:\n      x\n  ```\n"
    assert blocks("p.md", text) == [Block("p.md:3", "sh", "ls\n"), Block("p.md:8", "python", "if 1:\n    x\n")]


def test_what_installs_is_left_out_and_make_is_only_asked() -> None:
    text = (
        "git clone x\ncd x\n.venv/bin/pip install y\n. .venv/bin/activate\n.ci/run\nmake demo\n$ fedgen \\\nlist\ncdx\n"
    )
    assert script(text) == ("make -n demo\nfedgen  list\ncdx\n", 5)


BAD = [("sh", "false\ntrue"), ("sh", "make nothing-of-this-name"), ("python", "assert False"), ("", "ls")]


@pytest.mark.parametrize(("tag", "text"), BAD)
def test_a_bad_block_fails(tag: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"p\.md:1"):
        follow(Block("p.md:1", tag, text), tmp_path)


def test_a_block_that_is_not_closed_fails() -> None:
    with pytest.raises(pytest.fail.Exception, match="not closed"):
        blocks("p.md", "```sh\nls\n```\n```sh\nls\n")


def test_a_good_block_passes(tmp_path: Path) -> None:
    follow(Block("p.md:1", "sh", "git clone x\necho a > b"), tmp_path)
    follow(Block("p.md:2", "python", "assert open('b').read() == 'a\\n'"), tmp_path)
