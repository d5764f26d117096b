"""Export a model to ONNX (onnxruntime, onnxruntime-genai; Android, Linux boards, desktops).

Copy this into a build: it needs only the edgekit package.

    python scripts/export_onnx.py MODEL OUT [SCHEME]

MODEL is a folder, a name under models/, or a Hub id; SCHEME is int4 (default), int4-g64, int8,
fp16 or fp32.
"""

from __future__ import annotations

import sys

import edgekit


def main(model: str, out: str, scheme: str = "int4") -> None:
    """Export one artifact, ask it one question, and say where it lies."""
    (artifact,) = edgekit.export(model, ["onnx"], scheme, out)
    print(artifact.path)
    print(f"{artifact.n_bytes:,} bytes, weights {artifact.manifest.weights_sha256[:12]}")
    with edgekit.load(artifact) as session:
        answer = session.chat([{"role": "user", "content": "What can you do?"}], max_tokens=24)
    print(f"first words: {answer.text!r}")
    print("run it with stock onnxruntime-genai: og.Model(path), or with edgekit run")


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
