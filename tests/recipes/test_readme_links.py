"""Links from one page to another lead somewhere, to a heading where they name one."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "asr").rglob("*.md")), *sorted((ROOT / "recipes").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """The anchors that a reader of Markdown gives the page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if re.match(r"\w+:", target):
            continue  # another site
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def test_the_pages_are_found():
    assert {"README.md", "recipes/librispeech/README.md", "recipes/librispeech/stages.md"} <= {
        str(page.relative_to(ROOT)) for page in PAGES
    }


def test_an_anchor_is_made_of_its_heading(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A title\n\n## `transcribe.py`: a long recording\n\n```bash\n# a comment\n```\n")
    assert anchors(page) == {"a-title", "transcribepy-a-long-recording"}
