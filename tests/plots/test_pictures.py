from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from carevl.plots.arms import draw_arms, draw_kinds
from carevl.plots.audit import draw_agreement, draw_coverage, draw_reliability

BINS = [{"confidence": 0.5 + k / 20, "accuracy": 0.5 + k / 25, "low": 0.4, "high": 1.0, "n": 9 + k} for k in range(10)]
POINTS = [
    {"threshold": 1 - k / 20, "coverage": k / 10, "precision": 1 - k / 50, "bound": 0.95 - k / 40} for k in range(1, 11)
]


def _estimate(value):
    return {"value": value, "low": value - 0.05, "high": value + 0.04}


def _reliability(out):
    return draw_reliability(
        out, {f"expert{k}": {"raw": BINS, "calibrated": BINS} for k in range(5)} | {"ensemble": {"calibrated": BINS}}
    )


def _coverage(out):
    return draw_coverage(out, {"points": POINTS, "threshold": 0.8, "level": 0.95, "wanted": 0.95})


def _coverage_of_nothing(out):
    return draw_coverage(out, {"points": [], "threshold": None, "level": 0.95, "wanted": None})


def _agreement(out):
    return draw_agreement(out, ["a", "b", "c"], {("b", "a"): 0.9, ("c", "a"): 0.6}, {("b", "a"): 0.4})


def _by_arm(out):
    return draw_arms(
        out, {"base": _estimate(0.5), "carevl": _estimate(0.7), "late": dict.fromkeys(("value", "low", "high"))}
    )


def _by_kind(out):
    return draw_kinds(
        out, {"base": {"count": _estimate(0.5), "colour": _estimate(0.6)}, "carevl": {"count": _estimate(0.8)}}
    )


DRAWERS = [_reliability, _coverage, _coverage_of_nothing, _agreement, _by_arm, _by_kind]


@pytest.mark.parametrize("draw", DRAWERS)
def test_a_picture_is_png_and_svg_on_solid_paper_with_room_at_its_edges(draw, tmp_path):
    png, svg = draw(tmp_path / "figures" / "picture")
    assert (png.name, svg.name) == ("picture.png", "picture.svg")
    pixels = np.asarray(Image.open(png).convert("RGBA")).astype(int)
    assert (pixels[..., 3] == 255).all()
    paper = pixels[0, 0, :3]
    assert (paper > 240).all()
    for edge in (pixels[:12], pixels[-12:], pixels[:, :12], pixels[:, -12:]):
        assert (edge[..., :3] == paper).all()
    assert (np.abs(pixels[..., :3] - paper).sum(axis=2) > 300).mean() > 0.005
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")


def test_the_same_data_give_the_same_bytes(tmp_path):
    one, two = (_by_arm(tmp_path / name) for name in ("one", "two"))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


def test_other_data_give_another_picture(tmp_path):
    one = draw_arms(tmp_path / "one", {"carevl": _estimate(0.7)})
    two = draw_arms(tmp_path / "two", {"carevl": _estimate(0.6)})
    assert one[0].read_bytes() != two[0].read_bytes()
