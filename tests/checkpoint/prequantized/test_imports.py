from __future__ import annotations

import subprocess
import sys


def test_opening_code_imports_no_heavy_package():
    modules = (
        *(f"checkpoint.{name}" for name in ("reader", "repository", "remote", "config")),
        *(f"text.{name}" for name in ("tokenizer", "chat", "escaping")),
        "hub.download",
    )
    lines = [f"import edgekit.{name}" for name in modules]
    lines += ["import edgekit.families, edgekit.families.inspect, edgekit.families.rope, sys"]
    lines += ["print([m for m in ('tokenizers', 'jinja2', 'huggingface_hub') if m in sys.modules])"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
