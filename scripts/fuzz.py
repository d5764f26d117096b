"""Fuzz the readers of untrusted bytes and print what was found.

    python scripts/fuzz.py [TARGET ...] --seconds 60
    python scripts/fuzz.py --seconds 240 --json docs/fuzzing.json
    python scripts/fuzz.py --doc docs/fuzzing.json      # tables of docs/security.md

Every target runs in a process of its own, guided by coverage (pip install -e ".[fuzz]"). Targets
and their contract are in tests/fuzz. Broken inputs are kept below --out, each with its traceback.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from fuzzing.document import write_tables

ROOT: Final = Path(__file__).resolve().parent.parent
_COVERAGE: Final = re.compile(r"cov: (\d+)")
_PACKAGES: Final = ("atheris", "gguf", "hypothesis", "jinja2", "numpy", "safetensors", "tokenizers")
_GRACE_S: Final = 40
_MIN_RESTART_S: Final = 5


def main() -> int:
    """Run the command line; 1 when something was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help="names of targets; all of them by default")
    parser.add_argument("--seconds", type=int, default=60, help="time for each target")
    parser.add_argument("--out", type=Path, default=ROOT / "fuzzing-out", help="broken inputs")
    parser.add_argument("--json", type=Path, help="add the results to this file")
    parser.add_argument("--doc", type=Path, help="only write docs/security.md from this file")
    options = parser.parse_args()
    if options.doc:
        write_tables(options.doc, ROOT / "docs" / "security.md")
        return 0
    if find_spec("atheris") is None:
        print('atheris is not installed. Run: pip install -e ".[fuzz]"', file=sys.stderr)
        return 3
    sys.path.insert(0, str(ROOT))
    from tests.fuzz.targets import TARGETS

    unknown = sorted(set(options.targets) - TARGETS.keys())
    if unknown:
        print(f"no such target: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
        return 2
    commit = _commit()
    rows = [fuzz(name, options.seconds, options.out / name) for name in options.targets or TARGETS]
    print_rows(rows)
    if options.json:
        add_results(options.json, commit, rows)
    return int(any(row["findings"] for row in rows))


def fuzz(name: str, seconds: int, folder: Path) -> dict[str, Any]:
    """Fuzz one target; a process that dies is a finding, and another takes its place."""
    folder.mkdir(parents=True, exist_ok=True)
    row: dict[str, Any] = {"target": name, "executions": 0, "accepted": 0, "wall_s": 0.0}
    row |= {"coverage": 0, "peak_bytes": 0, "base_bytes": 0, "slowest_s": 0.0, "findings": {}}
    end_s = time.monotonic() + seconds
    while (left_s := int(end_s - time.monotonic())) >= min(seconds, _MIN_RESTART_S):
        (folder / "stats.json").unlink(missing_ok=True)
        command = [sys.executable, str(ROOT / "scripts/fuzzing/child.py"), name, str(left_s)]
        ended = _run([*command, str(folder)], folder / "log.txt", left_s + _GRACE_S)
        log_text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        add_run(row, folder, log_text)
        if ended != "0":
            row["findings"][f"process ended: {ended}"] = 1
            shutil.copy(folder / "work" / "current.bin", folder / f"ended-{ended}.bin")
            if not row["executions"]:
                print(log_text[-2000:], file=sys.stderr)
                break
    return row


def _run(command: list[str], log_path: Path, timeout_s: float) -> str:
    """Run a process; give its exit status, or ``hang``."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log_path.open("wb") as log:
        try:
            done = subprocess.run(
                command, stdout=log, stderr=log, cwd=ROOT, env=env, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            return "hang"
    return str(done.returncode)


def add_run(row: dict[str, Any], folder: Path, log_text: str) -> None:
    """Add the statistics of one process to those of the target."""
    path = folder / "stats.json"
    stats = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for key in ("executions", "accepted", "wall_s"):
        row[key] += stats.get(key, 0)
    for key in ("peak_bytes", "base_bytes", "slowest_s"):
        row[key] = max(row[key], stats.get(key, 0))
    for key, n_times in stats.get("findings", {}).items():
        row["findings"][key] = row["findings"].get(key, 0) + n_times
    row["coverage"] = max([row["coverage"], *map(int, _COVERAGE.findall(log_text))])


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print(
        f"{'target':16}{'executions':>12}{'per s':>8}{'edges':>7}{'found':>7}"
        f"{'peak':>10}{'slowest':>10}"
    )
    for row in rows:
        rate = row["executions"] / max(row["wall_s"], 0.1)
        print(
            f"{row['target']:16}{row['executions']:12,}{rate:8.0f}{row['coverage']:7}"
            f"{len(row['findings']):7}{row['peak_bytes'] >> 20:6} MiB{row['slowest_s']:8.2f} s"
        )
    for row in rows:
        for key, n_times in row["findings"].items():
            print(f"  {row['target']}: {key} ({n_times} times)")


def _commit() -> str:
    """Name the commit under test."""
    return subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"],  # noqa: S607 - git of the developer
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    ).stdout.strip()


def add_results(path: Path, commit: str, rows: list[dict[str, Any]]) -> None:
    """Add a campaign to the file of raw results."""
    data: dict[str, Any] = {"campaigns": []}
    if path.is_file():
        data = json.loads(path.read_text(encoding="utf-8"))
    data["campaigns"].append(
        {
            "date": datetime.now(UTC).date().isoformat(),
            "commit": commit,
            "python": sys.version.split()[0],
            "packages": {name: version(name) for name in _PACKAGES if find_spec(name)},
            "targets": rows,
        }
    )
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
