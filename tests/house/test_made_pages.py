"""Pages and pictures that a script makes are what the script makes today."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_keys_says_what_the_parts_say() -> None:
    page = runpy.run_path(str(DOCS / "keys.py"))["page"]()
    assert (DOCS / "plan.md").read_text("utf-8") == page, "run: python docs/keys.py"
    assert "| `clip` | a number at least 0 | `1.0` |" in page


@pytest.mark.parametrize(
    ("page", "script"),
    [
        (DOCS.parent / "README.md", "results.py"),
        (DOCS / "clusters.md", "cluster_results.py"),
        (DOCS / "results.md", "reproduction.py"),
        (DOCS / "reliability.md", "reliability.py"),
        (DOCS / "serving.md", "serving_results.py"),
        (DOCS / "edge.md", "edge_results.py"),
    ],
)
def test_a_page_shows_the_results_that_are_kept(page: Path, script: str) -> None:
    made = runpy.run_path(str(DOCS / script))["page"]()
    assert page.read_text("utf-8") == made, f"run: python docs/{script}"


def test_the_readme_says_what_few_bytes_came_to() -> None:
    said = runpy.run_path(str(DOCS / "edge_results.py"))["readme"]()
    assert said in " ".join((DOCS.parent / "README.md").read_text("utf-8").split())


def test_the_picture_shows_the_result_that_is_kept() -> None:
    assert (DOCS / "picture.svg").read_text("utf-8") == runpy.run_path(str(DOCS / "picture.py"))["drawn"]()
