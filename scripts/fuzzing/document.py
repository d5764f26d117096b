"""Writer of the tables of docs/security.md, from the raw results of fuzzing.

The text between two marks in the page is replaced; the rest is left unchanged.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from fuzzing.caps import caps

_MARKED: Final = "<!-- {name}: written by scripts/fuzz.py --doc -->\n{text}<!-- end of {name} -->"


def write_tables(results: Path, page: Path) -> None:
    """Write budget and caps into the page."""
    data = json.loads(results.read_text(encoding="utf-8"))
    text = page.read_text(encoding="utf-8")
    for name, table in (("budget", budget_table(data)), ("caps", caps_table())):
        pattern = re.escape(_MARKED).replace(r"\{name\}", name).replace(r"\{text\}", ".*?")
        found = list(re.finditer(pattern, text, flags=re.DOTALL))
        if len(found) != 1:
            raise SystemExit(f"{page}: no single place for the table {name}")
        start, end = found[0].span()
        text = text[:start] + _MARKED.format(name=name, text=table) + text[end:]
    page.write_text(text, encoding="utf-8")


def budget_table(data: dict[str, Any]) -> str:
    """Sum up the campaigns by target."""
    rows: dict[str, dict[str, Any]] = {}
    for campaign in data["campaigns"]:
        for found in campaign["targets"]:
            row = rows.setdefault(found["target"], {"executions": 0, "wall_s": 0.0, "edges": 0})
            row["executions"] += found["executions"]
            row["wall_s"] += found["wall_s"]
            row["edges"] = max(row["edges"], found["coverage"])
            row["peak"] = max(row.get("peak", 0), found["peak_bytes"])
            row["slowest"] = max(row.get("slowest", 0.0), found["slowest_s"])
            row["findings"] = len(found["findings"])
    lines = [
        "| target | inputs | seconds | edges | peak memory | slowest input | open findings |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {row['executions']:,} | {row['wall_s']:.0f} | {row['edges']} "
        f"| {row['peak'] >> 20} MiB | {row['slowest']:.2f} s | {row['findings']} |"
        for name, row in rows.items()
    ]
    n_total = sum(row["executions"] for row in rows.values())
    lines.append(f"| all | {n_total:,} | {sum(r['wall_s'] for r in rows.values()):.0f} | | | | |")
    last = data["campaigns"][-1]
    packages = ", ".join(f"{name} {number}" for name, number in last["packages"].items())
    lines += ["", f"Last campaign: {last['date']}, on commit {last['commit']},"]
    lines += [f"Python {last['python']}, {packages}.", ""]
    return "\n".join(lines)


def caps_table() -> str:
    """List the caps with the value that the code has."""
    lines = ["| what | at most | where |", "| --- | ---: | --- |"]
    lines += [f"| {cap.what} | {cap.shown} | `{cap.module}.{cap.name}` |" for cap in caps()]
    return "\n".join([*lines, ""])
