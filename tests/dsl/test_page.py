"""docs/ops.md is what the declarations say."""

from pathlib import Path

from tileproof.dsl import load_library, page


def test_the_reference_page_is_current() -> None:
    committed = Path(__file__).parents[2] / "docs" / "ops.md"
    expected = page.page(load_library().values())
    assert committed.read_text() == expected, "run: python -m tileproof.dsl.page > docs/ops.md"
