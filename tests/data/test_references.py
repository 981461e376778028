"""Where an image may come from, and the paths and addresses that lead nowhere."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from carevl.data.files import locate
from carevl.data.images import ImageLimits
from carevl.data.references import ImageReader
from carevl.data.rows import RowError


@pytest.fixture
def world(tmp_path: Path, draw: Callable[..., bytes]) -> Path:
    """A data directory with images in it and secrets around it."""
    for name in ("data/img/a.png", "data/part/b.png", "data/with.dots/c", "outside/secret.png", "data2/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(draw())
    (tmp_path / "data/link.png").symlink_to(tmp_path / "outside/secret.png")
    (tmp_path / "data/linked").symlink_to(tmp_path / "outside")
    (tmp_path / "data/inner.png").symlink_to("img/a.png")
    (tmp_path / "data/loop").symlink_to("loop")
    os.mkfifo(tmp_path / "data/pipe.png")
    return tmp_path


def reader(world: Path, **caps: int) -> ImageReader:
    filesystem, base = locate(str(world / "data"))
    return ImageReader(filesystem, base, ImageLimits(**caps))


def read(world: Path, reference: object, near: str = "part") -> bytes:
    return reader(world).read(reference, str(world / "data" / near))


def refused(world: Path, reference: object) -> str:
    with pytest.raises(RowError) as failure:
        read(world, reference)
    return failure.value.kind


def test_bytes_structs_and_text_give_the_same_bytes(world: Path, draw: Callable[..., bytes]) -> None:
    data = draw()
    packed = base64.b64encode(data).decode()
    for reference in (
        data,
        {"bytes": data, "path": "../outside/secret.png"},
        {"bytes": None, "path": "img/a.png"},
        {"path": "b.png"},
        packed,
        "\n".join(packed[n : n + 76] for n in range(0, len(packed), 76)),
        f"data:image/png;base64,{packed}",
        f"DATA:;BASE64,{packed}",
    ):
        assert read(world, reference) == data


@pytest.mark.parametrize(
    "path", ["img/a.png", "b.png", "./b.png", "../img/a.png", "img/../img/a.png", "inner.png", "with.dots/c"]
)
def test_paths_inside_the_data_are_read(world: Path, draw: Callable[..., bytes], path: str) -> None:
    assert read(world, path) == draw()


def test_absolute_paths_and_file_uris_inside_the_data_are_read(world: Path, draw: Callable[..., bytes]) -> None:
    inside = world / "data/img/a.png"
    for reference in (str(inside), inside.as_uri(), f"file://localhost{inside}", "file:img/a.png"):
        assert read(world, reference) == draw()


@pytest.mark.parametrize(
    "path",
    [
        "../outside/secret.png",
        "../../outside/secret.png",
        "img/../../outside/secret.png",
        "link.png",
        "linked/secret.png",
        "../../data2/d.png",
        "/etc/passwd",
        "file:///etc/passwd",
        "file:///%2e%2e/etc/passwd",
        "file://host/share/a.png",
        "http://127.0.0.1/a.png",
        "HTTPS://example.org/a.png",
    ],
)
def test_what_leads_out_is_refused(world: Path, path: str) -> None:
    assert refused(world, path) == "image_refused"


def test_a_name_that_is_too_long_is_shown_in_part(world: Path) -> None:
    with pytest.raises(RowError, match=r"^'x{120}' cannot be read: ….* File name too long$") as failure:
        read(world, "x" * 4000)
    assert failure.value.kind == "image_missing"
    assert len(failure.value.message) < 500


def test_an_absolute_path_outside_is_refused_whether_or_not_it_exists(world: Path) -> None:
    assert refused(world, str(world / "outside/secret.png")) == "image_refused"
    assert refused(world, str(world / "outside/absent.png")) == "image_refused"


@pytest.mark.parametrize(
    "reference",
    [
        *(None, "", {}, {"bytes": None, "path": None}, 5, [b"x"], "absent.png", "img", ".", "loop", "pipe.png"),
        *("a\0.png", "file:///a%00", "\ud800.png", "x" * 5000, "y" * 300, "img/a.png/b", "ftp://host/a.png"),
    ],
)
def test_what_is_not_there_is_missing(world: Path, reference: object) -> None:
    assert refused(world, reference) == "image_missing"


@pytest.mark.parametrize("reference", ["data:image/png,abc", "data:image/png;base64,###", "data:"])
def test_bad_data_uris_are_broken(world: Path, reference: str) -> None:
    assert refused(world, reference) == "image_broken"


def test_caps_on_bytes_hold_for_every_kind_of_reference(world: Path, draw: Callable[..., bytes]) -> None:
    data = draw()
    packed = base64.b64encode(data).decode()
    capped = reader(world, max_image_bytes=len(data) - 1)
    for reference in (data, packed, f"data:;base64,{packed}", "img/a.png"):
        with pytest.raises(RowError) as failure:
            capped.read(reference, str(world / "data"))
        assert failure.value.kind == "image_too_large"
    assert reader(world, max_image_bytes=len(data)).read("img/a.png", str(world / "data")) == data


def test_numbers_urls_and_empty_bytes_beside_a_path_are_read(world: Path, draw: Callable[..., bytes]) -> None:
    data = draw()
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    for reference in (list(data), {"url": uri}, {"image_url": {"url": uri}}, {"bytes": b"", "path": "b.png"}):
        assert read(world, reference) == data
    assert refused(world, [1.5, 2]) == "image_missing"


def test_links_of_the_hubs_cache_lead_into_its_blobs_and_nowhere_else(
    tmp_path: Path, draw: Callable[..., bytes]
) -> None:
    snapshot = tmp_path / "datasets--mine/snapshots/abc"
    for folder in (snapshot, tmp_path / "datasets--mine/blobs", tmp_path / "datasets--other/blobs"):
        folder.mkdir(parents=True)
    for place in ("datasets--mine", "datasets--other"):
        (tmp_path / place / "blobs/1111").write_bytes(draw())
    (snapshot / "a.png").symlink_to("../../blobs/1111")
    (snapshot / "b.png").symlink_to("../../../datasets--other/blobs/1111")
    images = ImageReader(*locate(str(snapshot)), ImageLimits())
    assert images.read("a.png", str(snapshot)) == draw()
    with pytest.raises(RowError, match="set the source's image_root") as failure:
        images.read("b.png", str(snapshot))
    assert failure.value.kind == "image_refused"


def test_an_image_that_is_absent_from_an_image_root_elsewhere_is_missing_and_not_refused(world: Path) -> None:
    near = str(world / "data2")
    with pytest.raises(RowError) as failure:
        reader(world).read("absent.png", near)
    assert failure.value.kind == "image_missing"
    assert failure.value.message == "'absent.png': no such file in the directory of its source"
    assert reader(world).read("../data/img/a.png", near)
    for outside in ("d.png", "../outside/secret.png", "link.png"):
        with pytest.raises(RowError) as failure:
            reader(world).read(outside, near)
        assert failure.value.kind == ("image_missing" if outside == "d.png" else "image_refused")
