"""Videos become frames: which ones, in what order, and every file and bound that makes a row error of them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from carevl.data import videos
from carevl.data.images import ImageLimits, identify
from carevl.data.intake import Intake, item_id, merge_images
from carevl.data.reading import Source, read_source
from carevl.data.rows import RowError
from carevl.data.video_files import check_whole, video_kind
from carevl.data.videos import FrameReader, Frames
from carevl.settings.data import Video
from tests.helpers.videos import KINDS, draw_clip, number_of, record_sound, repeat_frame

N = 20
CLIP = draw_clip(N)


def frames_of(data: bytes, **settings: object) -> Frames:
    return FrameReader(Video.model_validate(settings)).read(data)


def numbers(found: Frames, n: int = N) -> list[int]:
    return [number_of(file, n) for file in found.files]


def error_of(data: bytes, **settings: object) -> str:
    with pytest.raises(RowError) as failure:
        frames_of(data, **settings)
    assert failure.value.kind == "media"
    return failure.value.message


@pytest.mark.parametrize(("container", "codec"), [*KINDS.items(), ("webm", "libvpx"), ("avi", "libx264")])
def test_frames_of_every_kind_are_evenly_spaced_and_in_order(container: str, codec: str) -> None:
    found = frames_of(draw_clip(N, container, codec), frames=5)
    first = numbers(found)[0]
    assert 0 <= first < 4
    assert numbers(found) == [first + 4 * n for n in range(5)]
    assert found.seconds == pytest.approx([0.2 * n for n in numbers(found)], abs=0.002)


def test_the_seed_moves_all_frames_together_within_their_intervals() -> None:
    found = [numbers(frames_of(CLIP, frames=4, seed=seed)) for seed in range(12)]
    assert all(shown == [shown[0] + 5 * n for n in range(4)] and 0 <= shown[0] < 5 for shown in found)
    assert len({shown[0] for shown in found}) > 2
    assert frames_of(CLIP, frames=4, seed=3) == frames_of(CLIP, frames=4, seed=3)


def test_a_video_shows_eight_frames_or_so_many_a_second() -> None:
    assert len(frames_of(CLIP).files) == 8
    assert len(frames_of(CLIP, fps=1).files) == 4
    assert len(frames_of(CLIP, fps=0.01).files) == 1
    many = frames_of(CLIP, fps=5, max_frames=10)
    assert [n - numbers(many)[0] for n in numbers(many)] == list(range(0, N, 2))
    with pytest.raises(ValueError, match="set one of them to null"):
        Video(frames=4, fps=1)


def test_a_video_of_fewer_frames_shows_each_once() -> None:
    assert numbers(frames_of(draw_clip(3), frames=8), 3) == [0, 1, 2]
    assert numbers(frames_of(draw_clip(1), frames=8), 1) == [0]


@pytest.mark.parametrize("container", ["mp4", "webm"])
def test_frames_are_chosen_by_the_time_that_they_are_shown(container: str) -> None:
    times = [0, 1, 2, 3, 4, 5, 6, 7, 8, 72, 76]  # the ninth is shown from 8 to 72, of some 80
    found = frames_of(draw_clip(11, container, times=times), frames=10)
    shown = dict(zip(numbers(found, 11), found.seconds, strict=True))
    assert 8 in shown
    assert 1 <= len([n for n in shown if n < 8]) <= 2
    assert [shown[n] for n in shown] == pytest.approx([times[n] / 5 for n in shown], abs=0.002)
    assert len(shown) <= 4


def test_frames_are_whole_jpeg_images_of_the_size_of_the_video() -> None:
    for file in frames_of(draw_clip(size=(98, 34))).files:
        facts = identify(file, ImageLimits())
        assert (facts.format, facts.width, facts.height) == ("JPEG", 98, 34)


def test_a_video_that_was_filmed_upright_is_shown_upright() -> None:
    matrix = b"".join(n.to_bytes(4, "big", signed=True) for n in (0, 1 << 16, 0, -(1 << 16), 0, 0))
    straight = b"".join(n.to_bytes(4, "big") for n in (1 << 16, 0, 0, 0, 1 << 16, 0))
    head, found, rest = CLIP.rpartition(straight)  # of the track; the first one is of the film
    assert found
    [file] = frames_of(head + matrix + rest, frames=1).files
    with Image.open(io.BytesIO(file)) as picture:
        assert picture.size == (48, 64)


@pytest.mark.parametrize("container", KINDS)
def test_a_cut_video_is_never_a_shorter_one(container: str) -> None:
    clip = draw_clip(N, container)
    reader = FrameReader(Video(frames=1))
    unseen = []
    for length in range(len(clip)):
        with suppress(RowError):
            check_whole(clip[:length], video_kind(clip[:12]) or "")
            unseen.append(length)
    for length in {*unseen[::8], unseen[-1]}:  # where nothing but headers are left
        with pytest.raises(RowError):
            reader.read(clip[:length])


def test_a_video_without_a_length_says_how_to_write_it_anew() -> None:
    clip = bytearray(draw_clip(N, "webm"))
    at = clip.index(b"\x18\x53\x80\x67") + 4
    clip[at : at + 8] = b"\x01" + b"\xff" * 7
    assert "ffmpeg -i IN -c copy" in error_of(bytes(clip))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "JPEG", "WEBP", "AVIF", "TIFF"])
def test_pictures_are_no_videos_whatever_their_name(kind: str) -> None:
    file = io.BytesIO()
    shown = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    shown[0].save(file, kind, **({"save_all": True, "append_images": shown[1:]} if kind == "GIF" else {}))
    assert f"no video but a {kind}; name it in `images`" in error_of(file.getvalue())


@pytest.mark.parametrize("container", KINDS)
def test_a_video_among_images_says_so(container: str) -> None:
    with pytest.raises(RowError, match="name it in `video` or `videos`") as failure:
        identify(draw_clip(2, container), ImageLimits())
    assert failure.value.kind == "media"


def test_other_files_are_no_videos() -> None:
    assert "zero bytes" in error_of(b"")
    assert "begin with b'#EXTM3U" in error_of(b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")
    assert "begin with b'ffconcat" in error_of(b"ffconcat version 1.0\nfile /etc/passwd\n")
    assert "it has no video stream" in error_of(record_sound())
    assert "it has no video stream" in error_of(record_sound("matroska"))


@pytest.mark.parametrize("container", KINDS)
def test_headers_that_are_damaged_are_errors(container: str) -> None:
    clip = draw_clip(N, container)
    for start in (12, 64, len(clip) - 400):
        damaged = clip[:start] + bytes(byte ^ 0x5A for byte in clip[start : start + 300]) + clip[start + 300 :]
        with suppress(RowError):
            assert len(frames_of(damaged, frames=4).files) == 4  # what was hit was of no use


def test_damaged_frames_are_errors() -> None:
    clip = draw_clip(N, "avi", "libx264", size=(320, 240))
    start = clip.index(b"movi")
    assert error_of(clip[:start] + clip[start:].replace(b"\0\0\0\1", b"\0\0\0\0"))


def test_bounds_say_which_setting_they_are() -> None:
    assert "data.video.max_seconds = 3" in error_of(CLIP, max_seconds=3)
    assert "data.video.max_seconds = 3" in error_of(draw_clip(N, "webm"), max_seconds=3)
    assert "64 x 48 pixels, over data.video.max_pixels = 3071" in error_of(CLIP, max_pixels=3071)
    assert frames_of(CLIP, max_seconds=4, max_pixels=3072).files


def test_a_video_is_not_larger_than_it_declares() -> None:
    clip = repeat_frame(3, (2000, 1000), declared=(64, 48))
    assert len(frames_of(clip, frames=2).files) == 2
    assert error_of(clip, frames=2, max_pixels=100_000)


def test_decoding_ends_when_its_time_is_over() -> None:
    assert "data.video.decode_seconds = 1" in error_of(repeat_frame(300, (4000, 2000)), decode_seconds=1)


def test_decoding_takes_no_more_memory_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "_MEMORY", 220 << 20)
    assert frames_of(CLIP).files
    assert "MiB of memory" in error_of(draw_clip(2, codec="mpeg4", size=(4096, 2160)), frames=2)


def test_without_its_decoder_a_video_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install av" in error_of(CLIP)


def test_a_video_is_decoded_once_for_all_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run, runs = subprocess.run, []

    def count(*args, **options):
        runs.append(args)
        return run(*args, **options)

    monkeypatch.setattr(subprocess, "run", count)
    reader = FrameReader(Video(), tmp_path)
    other = draw_clip(N, "webm")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(reader.read, [CLIP, CLIP, other, CLIP, other]))
    assert len(runs) == 2
    assert found[0] == found[1] == found[3] != found[2] == found[4]
    broken = CLIP[:-400].replace(b"moov", b"moof")
    for _ in range(2):
        with pytest.raises(RowError):
            reader.read(broken)
    assert len(runs) == 2  # it breaks off, which needs no decoder
    assert [path.name[:7] for path in tmp_path.iterdir()] == ["frames-"]


def row(**change: object) -> dict[str, object]:
    return {"question": "What happens?", "chosen": "It turns red.", "rejected": "It turns green."} | change


def take_in(directory: Path, rows: list[dict[str, object]], **options: object):
    (directory / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source("videos", str(directory))
    intake = Intake(source, **options)
    return [intake(found) for found in read_source(source)]


def test_an_item_shows_the_frames_where_its_video_stands(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(CLIP)
    (tmp_path / "misnamed.png").write_bytes(CLIP)
    Image.new("RGB", (8, 8), "white").save(tmp_path / "a.png")
    told = {
        "messages": [{"role": "user", "content": "<image>Is it in <video>?"}, {"role": "assistant", "content": "No."}]
    }
    rows = [{**told, "rejected_response": "Yes.", "images": ["a.png"], "videos": ["clip.mp4"]}]
    (images, item), (_, misnamed) = take_in(tmp_path, [row(video="clip.mp4"), row(video="misnamed.png")])
    [(_, large)] = take_in(tmp_path, rows)
    [(more, mixed)] = take_in(tmp_path, rows, frames=FrameReader(Video(frames=3)))
    assert item["error"] is None
    assert [number_of(image["bytes"], N) for image in images] == sorted(
        number_of(image["bytes"], N) for image in images
    )
    assert (item["places"], len(item["images"]), item["turns"]) == ([0] * 8, 8, [])
    assert item["images"] == [image["image_id"] for image in images] == misnamed["images"]
    assert item["item_id"] == item_id(item["images"], [0] * 8, (), item["question"], item["responses"])
    [video] = json.loads(item["sources"][0]["extra"])["videos"]
    assert (video["first"], len(video["seconds"]), len(video["sha256"])) == (0, 8, 64)
    assert large["error"]["kind"] == "images_many"
    assert "9 images, of which 8 are frames (data.video has their number)" in large["error"]["message"]
    assert (mixed["question"], mixed["places"]) == ("Is it in ?", [0, 9, 9, 9])
    assert json.loads(mixed["sources"][0]["extra"])["videos"][0]["first"] == 1
    assert len(merge_images(more)) == 4


def test_frames_count_against_the_pixels_of_an_item(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(CLIP)
    [(_, item)] = take_in(tmp_path, [row(video="clip.mp4")], limits=ImageLimits(max_item_pixels=8 * 64 * 48 - 1))
    assert item["error"]["kind"] == "image_too_large"


def test_videos_in_earlier_turns_keep_their_places(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(CLIP)
    ask = [{"type": "video", "video": "clip.mp4"}, {"type": "text", "text": "What happens?"}]
    talk = [
        {"role": "user", "content": ask},
        {"role": "assistant", "content": "It turns."},
        {"role": "user", "content": "To?"},
    ]
    answers = {side: [*talk, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    [(_, item)] = take_in(tmp_path, [answers], frames=FrameReader(Video(frames=2)))
    assert (item["places"], item["turns"][0]) == ([], {"role": "user", "text": "What happens?", "places": [0, 0]})


def test_paths_of_videos_keep_to_the_rules_of_images(tmp_path: Path) -> None:
    (tmp_path / "outside.mp4").write_bytes(CLIP)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    places = ["../outside.mp4", str(tmp_path / "outside.mp4"), "link.mp4", f"file://{tmp_path}/outside.mp4"]
    addresses = ["http://127.0.0.1/clip.mp4", "https://example.com/clip.mp4"]
    rows = [row(video=video) for video in (*places, *addresses, "missing.mp4", None, 7)]
    kinds = [item["error"]["kind"] for _, item in take_in(inside, rows)]
    assert kinds == ["image_refused"] * 6 + ["image_missing"] * 3


def test_a_video_over_its_bytes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(CLIP)
    reader = FrameReader(Video(max_bytes=len(CLIP) - 1))
    [(_, item)] = take_in(tmp_path, [row(video="clip.mp4")], frames=reader)
    assert item["error"]["kind"] == "image_too_large"
    assert f"{len(CLIP)} bytes, over data.video.max_bytes" in item["error"]["message"]


def test_rows_hold_videos_as_bytes_structs_and_base64(tmp_path: Path) -> None:
    import base64

    import pyarrow as pa
    import pyarrow.parquet as pq

    text = base64.b64encode(CLIP).decode()
    (tmp_path / "clip.mp4").write_bytes(CLIP)
    pq.write_table(pa.Table.from_pylist([row(video=CLIP)]), tmp_path / "bytes.parquet")
    struct = {"bytes": CLIP, "path": "x.mp4"}
    pq.write_table(pa.Table.from_pylist([row(video=struct)]), tmp_path / "struct.parquet")
    rows = [row(video=video) for video in (text, f"data:video/mp4;base64,{text}", "clip.mp4")]
    items = [item for _, item in take_in(tmp_path, rows)]
    assert len({item["item_id"] for item in items}) == 1
    assert len(items) == 5
