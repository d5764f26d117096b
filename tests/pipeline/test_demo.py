"""The demo goes through to a report, for a model that gets nothing right and knows no tools too."""

from __future__ import annotations

import json

from edgekit.pipeline.demo import DemoSize, run_demo
from edgekit.quality.verdict import Rule
from edgekit.records import Workload
from edgekit.report.write import write_report
from tests.builders import write_tiny_checkpoint

SIZE = DemoSize(1, 1, 700, 1, 16, Workload(8, 4, 2, 0), 1)
NO_TOOLS = (
    "{%- for message in messages %}{{- '<s>' + message['role'] + message['content'] + '</s>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<s>assistant' }}{%- endif %}"
)


def test_a_random_model_without_tools_gets_a_whole_report(tmp_path):
    model = write_tiny_checkpoint(tmp_path / "m", max_position_embeddings=2048)
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": NO_TOOLS}))
    told: list[str] = []
    data = run_demo(
        str(model),
        tmp_path / "out",
        size=SIZE,
        rule=Rule(),
        progress=lambda *step: None,
        tell=told.append,
    )
    assert [line[:6] for line in told if line[0].isdigit()] == [f"{n} of 5" for n in range(1, 6)]
    asked = [quality for quality in data.qualities if quality.suites]
    assert len(asked) == 3  # int4, int8 and the server
    for quality in asked:
        assert {suite.suite for suite in quality.suites} == {
            "structured_output", "long_context", "multi_step",
        }  # fmt: skip
        assert all(suite.n_items == 1 for suite in quality.suites)
    assert len(data.comparisons) == 2
    assert all(record.is_met for record in data.verifications)
    written = write_report(data, tmp_path / "out")
    assert all(path.stat().st_size for path in written)
