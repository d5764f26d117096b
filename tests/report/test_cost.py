"""Claims about the table and the picture of what quantizing costs."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

from edgekit.records import CostPoint, CostRecord, EngineInfo, SuiteRecord, from_data, to_json
from edgekit.report.cost import cost_picture, cost_tables
from edgekit.report.scatter import log_ticks, ticks
from edgekit.report.terminal import print_table
from edgekit.report.write import COST_FILES, write_cost
from tests.report.example import example_divergence

SVG = "{http://www.w3.org/2000/svg}"


def read_svg(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314


def point(name: str, n_mib: float, kl: float, **changes) -> CostPoint:
    made = CostPoint(
        name, f"m onnx {name}", EngineInfo("onnxruntime", "1", "m"), int(n_mib * 2**20), 5.35, 4.5,
        example_divergence(kl),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


POINTS = (
    point("int8-g32", 137.5, 0.0019),
    point("int4-g32", 87.1, 0.2987),
    point("int4-g32:rtn:no-fold", 87.1, 0.34),
    point("int4-g128", 83.0, 0.514),
)


def record(points=POINTS, front=("int4-g128", "int4-g32", "int8-g32"), **changes) -> CostRecord:
    made = CostRecord(
        model="SmolLM2-135M-Instruct",
        source_sha256="0" * 64,
        text="builtin",
        n_documents=31,
        n_tokens=4045,
        text_sha256="1" * 64,
        float_bytes=269 << 20,
        float_perplexity=15.3,
        reference="stored: the 256 likeliest",
        points=points,
        front=front,
    )
    return dataclasses.replace(made, **changes)


def shown(data: CostRecord, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    for table in cost_tables(data):
        print_table(table, console)
    return console.file.getvalue()


def test_the_table_fits_80_columns_a_setting_a_line():
    lines = shown(record()).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    (line,) = [line for line in lines if "rtn:no-fold" in line]
    assert line.split() == [
        "int4-g32:rtn:no-fold", "87.1", "4.50", "0.3400", "±0.068", "98.8", "%", "4.32",
    ]  # fmt: skip
    (best,) = [line for line in lines if line.startswith(" int8-g32")]
    assert best.split()[-1] == "*"


def test_suites_have_a_table_of_their_own():
    suite = SuiteRecord("multi_step", 4, 3, 0.75, 0.3, 0.95)
    asked = tuple(dataclasses.replace(p, suites=(suite,)) for p in POINTS)
    assert [table.key for table in cost_tables(record())] == ["quality-cost"]
    assert [table.key for table in cost_tables(record(asked))] == ["quality-cost", "suites"]
    assert "75.0 %" in shown(record(asked))


def test_the_picture_is_whole_xml_with_a_point_for_each_setting():
    root = read_svg(cost_picture(record()))
    circles = root.findall(f"{SVG}circle")
    assert len(circles) == 4
    assert [c.get("class") for c in circles].count("point best") == 3
    words = [text.text for text in root.findall(f"{SVG}text")]
    assert {p.name for p in POINTS} <= set(words)
    assert "int8-g32: 137.5 MiB, KL 0.001900" in root.find(f"{SVG}desc").text


def test_points_stand_where_their_values_say():
    """Right of another is larger, above another is farther, and all are inside the axes."""
    root = read_svg(cost_picture(record()))
    place = {
        c.find(f"{SVG}title").text.split(": ")[0]: (float(c.get("cx")), float(c.get("cy")))
        for c in root.findall(f"{SVG}circle")
        for _ in [0]
    }
    assert place["int4-g128"][0] < place["int4-g32"][0] < place["int8-g32"][0]
    assert place["int4-g128"][1] < place["int4-g32"][1] < place["int8-g32"][1]
    for x, y in place.values():
        assert 76 <= x <= 736
        assert 44 <= y <= 404
    # The axis is logarithmic: equal ratios are equal ways.
    three = tuple(point(str(kl), 10 + kl, kl) for kl in (0.01, 0.1, 1.0))
    circles = read_svg(cost_picture(record(three, ()))).findall(f"{SVG}circle")
    a, b, c = (float(circle.get("cy")) for circle in circles)
    assert a - b == pytest.approx(b - c, abs=0.2)


def test_the_front_goes_down_in_steps():
    root = read_svg(cost_picture(record()))
    path = root.find(f"{SVG}path").get("d")
    assert re.fullmatch(r"M[\d.]+ 44V[\d.]+(H[\d.]+V[\d.]+){2}H736", path)
    heights = [float(v) for v in re.findall(r"V([\d.]+)", path)]
    assert heights == sorted(heights)


def test_names_do_not_cover_each_other():
    near = tuple(point(f"int4-g32:m{i}", 87.0 + 0.01 * i, 0.3 + 0.001 * i) for i in range(5))
    root = read_svg(cost_picture(record((*near, POINTS[0]), ())))
    names = [t for t in root.findall(f"{SVG}text") if ":m" in t.text]
    places = [(float(t.get("x")), float(t.get("y"))) for t in names]
    assert len(set(places)) == 5
    for i, (x, y) in enumerate(places):
        for other_x, other_y in places[i + 1 :]:
            assert abs(y - other_y) >= 14 or abs(x - other_x) >= 7 * len("int4-g32:m0")


@pytest.mark.parametrize(
    "points",
    [
        (point("one", 5, 0.1),),
        (point("zero", 5, 0.0), point("far", 6, 30.0)),
        (point("a", 5, 0.1), point("b", 5, 0.1)),
        (point("x <b>&\x1b[31m", 5, 0.1),),
        (point("n" * 200, 5, 0.1), point("m", 900, 0.2)),
    ],
    ids=["one", "zero", "equal", "hostile", "long"],
)
def test_any_points_can_be_drawn(points):
    root = read_svg(cost_picture(record(points, (points[0].name,), model="<m>&\x07")))
    assert len(root.findall(f"{SVG}circle")) == len(points)


def test_ticks_are_round_numbers():
    assert ticks(2.8, 5.6) == pytest.approx([3, 3.5, 4, 4.5, 5, 5.5])
    assert ticks(0, 100) == pytest.approx([0, 20, 40, 60, 80, 100])
    assert log_ticks(-3.2, -0.2) == pytest.approx([0.001, 0.01, 0.1])
    assert log_ticks(-1.1, 0.1) == pytest.approx([0.1, 0.2, 0.5, 1])


def test_the_json_is_the_record(tmp_path):
    written = write_cost(record(), tmp_path / "out")
    assert [path.name for path in written] == list(COST_FILES)
    data = json.loads(written[0].read_text(encoding="utf-8"))
    assert from_data(CostRecord, data) == record()
    assert written[0].read_text(encoding="utf-8") == to_json(record())
    assert written[1].read_text(encoding="utf-8") == cost_picture(record())
