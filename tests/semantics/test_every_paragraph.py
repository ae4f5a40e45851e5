"""Each promise of docs/semantics.md is a test with its name, and each row of docs/reliability.md names tests."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SEMANTICS = ROOT / "docs" / "semantics.md"
RELIABILITY = ROOT / "docs" / "reliability.md"


def name_of(title: str) -> str:
    """Return the name of the test of a paragraph: "Others' mounts stay." is test_others_mounts_stay."""
    words = re.findall(r"[a-z]+", title.lower().replace("'", ""))
    return "_".join(["test", *words])


def test_every_paragraph_is_a_test() -> None:
    text = SEMANTICS.read_text()
    paragraphs = [block for block in text.split("\n\n") if block.strip() and not block.startswith("#")][1:]
    titles = [re.match(r"\*\*(.+?)\*\*", block) for block in paragraphs]
    assert all(titles), "a paragraph without a title"
    promised = {name_of(title[1]) for title in titles if title}
    assert len(promised) == len(paragraphs)
    tests = set[str]()
    for path in Path(__file__).parent.glob("test_*.py"):
        if path != Path(__file__):
            tests |= set(re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE))
    assert promised == tests


def test_every_row_of_the_table_names_tests_that_are_there() -> None:
    rows = [line for line in RELIABILITY.read_text().splitlines() if line.startswith("| ") and "::" in line]
    assert len(rows) > 100
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row)
        assert named, row
        assert len(named) == row.count("::"), row
        for path, name in named:
            text = (ROOT / path).read_text()
            assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{path}::{name}"
