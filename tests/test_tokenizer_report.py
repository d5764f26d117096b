"""docs/tokenizers.md says what the comparison gives now."""

from __future__ import annotations

import re
from pathlib import Path

from scripts.tokenizer_report import make_report

PAGE = Path(__file__).parent.parent / "docs" / "tokenizers.md"


def test_the_page_is_up_to_date_and_every_count_is_full():
    text = PAGE.read_text(encoding="utf-8")
    assert text == make_report()
    counts = re.findall(r"\| ([\d,]+) of ([\d,]+) (?=\|)", text)
    assert len(counts) == 3 * 15 + 2 * 4 + 3
    # mistral-common's own ways of writing a chat stand last, and are not templates' ways.
    assert all(n == n_all for n, n_all in counts[:-3])
