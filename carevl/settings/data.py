"""Preference data, benchmarks, and the drawn world."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from carevl.settings.base import HomePath, PathName, Strict

ProtocolName = Literal["official", "official_scorer", "strict", "verdict_prob", "pointwise"]
"""How judges are asked; `carevl.benchmarks.questions` has a table of them."""


class Benchmark(Strict):
    """A labelled test of judges."""

    name: str = Field(
        description="Such as vl-rewardbench; `carevl evaluate --help` lists them; your own as `package.module:Name`."
    )
    path: HomePath = Field(description="Its development data; `miniworld:FILE` is drawn.")
    images: HomePath | None = Field(None, description="Directory of its images when they lie apart.")
    final_path: HomePath | None = Field(None, description="Its test data, used by `carevl run --final` only.")
    final_images: HomePath | None = Field(None, description="Directory of the images of its test data.")
    protocols: list[ProtocolName] = Field(["official_scorer", "strict"], description="How judges are asked.")
    draws: int = Field(1, ge=1, description="Judgments per row where the protocol draws several.")
    rows: int | None = Field(None, ge=1, description="Use the first rows only; all when absent.")


class Source(Strict):
    """Preference data on disk, or questions for models to answer."""

    path: HomePath = Field(
        description="File or directory, local or `s3://…`, `gs://…`, `hf://datasets/…`; `miniworld:FILE` is drawn."
    )
    name: str | None = Field(None, description="Its name in tables; source-0, source-1, … when absent.")
    format: str | None = Field(
        None,
        description="Name of the format, or your own as `package.module:Name`; found from the columns when absent.",
    )
    labels: bool = Field(False, description="Its preference, or its answer, is true: it calibrates experts and router.")
    split: PathName = Field("train", description="Split that its items belong to, and of the files of an export.")
    weight: float = Field(1.0, gt=0, description="How often its rows are drawn, relative to other sources.")
    rows: int | None = Field(None, ge=1, description="Most rows to read of it, its first ones; all when absent.")
    image_root: HomePath | None = Field(None, description="Directory that relative image paths are looked up in.")
    text_only: bool = Field(
        False,
        description="Rows without an image are items of text alone; else they are errors, but where a row has an empty "
        "list of images, or its format no column for them.",
    )
    captions: str | None = Field(None, description="JSON file of image name to caption (LLaVA-RLHF).")
    annotations: HomePath | None = Field(
        None, description="JSON file with right answers to its questions by question_id (VQA)."
    )
    question: str | None = Field(None, description="What is asked about the images of rows that have no question.")
    questions: HomePath | None = Field(
        None,
        description="Text file with a question a line, of which all are asked about each image below `path`; or a file "
        "of rows with images from there.",
    )
    questions_per_image: int | None = Field(
        None, ge=1, description="Draw so many of these questions for each image; null: all are asked."
    )

    @model_validator(mode="after")
    def _draws_from_a_list(self) -> Self:
        if self.questions_per_image is not None and self.questions is None:
            raise ValueError("questions_per_image draws from a list of questions: name one in `questions`")
        return self


class JudgeSet(Strict):
    """Judgments from elsewhere that phase 1 learns from, such as LLaVA-Critic's: conversations that end with one."""

    path: HomePath = Field(description="File or directory, as of a source.")
    name: str | None = Field(None, description="Its name in messages; judge-set-0, judge-set-1, … when absent.")
    image_root: HomePath | None = Field(None, description="Directory that relative image paths are looked up in.")


class Video(Strict):
    """Videos in the preference data, which become images: frames at even distances, without their sound."""

    frames: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Frames of a video, one of each of so many equal intervals; null: 8, or by fps.",
    )
    fps: float | None = Field(None, gt=0, description="Frames a second, in place of a number.")
    max_frames: int = Field(
        8, ge=1, le=1000, description="With fps, most frames of a video: a longer one has them farther apart."
    )
    seed: int = Field(
        0, description="Draws for each video where in its interval a frame is taken, in all of them at the same place."
    )
    max_seconds: float = Field(600, gt=0, description="Longer videos are row errors.")
    max_pixels: int = Field(8_847_360, ge=1, description="Videos with more pixels in a frame are row errors.")
    max_bytes: int = Field(256 << 20, ge=1, description="Videos of larger files are row errors.")
    decode_seconds: int = Field(
        60, ge=1, description="Processor time to decode a video; one that takes more is a row error."
    )

    @model_validator(mode="after")
    def _counts_one_way(self) -> Self:
        if self.frames is not None and self.fps is not None:
            raise ValueError("frames and fps say how many frames in two ways; set one of them to null")
        return self


class Data(Strict):
    """The preference data, and how they are read."""

    sources: list[Source] = Field(min_length=1, description="Preference data; their own preference is not used.")
    judge_sets: list[JudgeSet] = Field(
        [],
        description="Judgments from elsewhere that phase 1 learns beside its own targets, in their own words; they are "
        "not compared with benchmarks.",
    )
    parts: int = Field(
        16,
        ge=1,
        description="Parts of every table: the unit of work, of commit and of resume. One over 128 MB is divided.",
    )
    max_image_pixels: int = Field(50_000_000, ge=1, description="Images with more pixels are row errors.")
    max_images: int = Field(
        8, ge=1, description="Items with more images are row errors; no more than the judge's own max_images."
    )
    max_item_pixels: int = Field(
        100_000_000, ge=1, description="Items whose images have more pixels together are row errors."
    )
    text_only_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Most of all items to learn from that may be text alone: others are routed as dropped, chosen by "
        "chance; 1 keeps all.",
    )
    resize_pixels: int | None = Field(
        None,
        ge=1,
        description="Images with more pixels are resized to so many before any model sees them; null: as they are, or "
        "as the judge was trained to see them.",
    )
    allow_url_fetch: bool = Field(
        False, description="Fetch images and videos from http(s) addresses named in the data."
    )
    video: Video = Field(Video(), description="How videos become images.")
    decontaminate: bool = Field(True, description="Set rows aside that share their image with a benchmark.")
    near_duplicates: Literal["report", "merge", "ignore"] = Field(
        "report", description="Images that look alike: counted in the manifest, made one, or not searched for."
    )

    @property
    def named_sources(self) -> list[tuple[str, Source]]:
        """The sources with their names in tables."""
        return [(source.name or f"source-{n}", source) for n, source in enumerate(self.sources)]


class Miniworld(Strict):
    """The drawn world, for sources whose path begins with `miniworld:`."""

    items: int = Field(640, ge=1, description="Training items to draw.")
    calibration_images: int = Field(3000, ge=1, description="Labelled images to draw.")
    seed: int = Field(7, description="Seed of the drawing.")
