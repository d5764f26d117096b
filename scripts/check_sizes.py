"""Fail when a Python file is longer than 600 lines; print the five longest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MAX_LINES = 600


def main() -> int:
    """Count the lines of every tracked or new Python file."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.py"],  # noqa: S607
        check=True,
        capture_output=True,
        cwd=Path(__file__).parent.parent,
    )
    root = Path(__file__).parent.parent
    names = [
        name for name in listed.stdout.decode().split("\0") if name and (root / name).is_file()
    ]
    sizes = sorted(((len((root / n).read_bytes().splitlines()), n) for n in names), reverse=True)
    for n_lines, name in sizes[:5]:
        print(f"{n_lines:5} {name}")
    print(f"{sum(n for n, _ in sizes):5} lines in {len(sizes)} files")
    too_long = [f"{name}: {n_lines} lines" for n_lines, name in sizes if n_lines > MAX_LINES]
    if too_long:
        print(f"longer than {MAX_LINES} lines, split them:", *too_long, sep="\n  ")
    return 1 if too_long else 0


if __name__ == "__main__":
    sys.exit(main())
