import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from carevl.data.drawn import DataRoot
from carevl.settings.loader import load_settings
from carevl.stages.ingest import ahead, facts
from carevl.store.run import Run


def test_rows_are_taken_in_by_several_threads_in_their_order_and_few_are_read_ahead() -> None:
    read: list[int] = []
    seen: set[str] = set()

    def values() -> Iterator[int]:
        for n in range(200):
            read.append(n)
            yield n

    def work(n: int) -> int:
        seen.add(threading.current_thread().name)
        time.sleep(0.001 * (n % 3))
        return n

    most = 0
    for n, made in enumerate(ahead(work, values())):
        assert made == n
        most = max(most, len(read) - n)
    assert most <= 17
    assert threading.main_thread().name not in seen


def test_settings_of_videos_are_a_fact_of_the_tables_where_they_are_set(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("{}\n")
    sources = f"data.sources=[{{path: {tmp_path}}}]"

    def inputs(*more: str) -> dict[str, Any]:
        settings = load_settings("mini", [sources, "benchmarks=[]", *more])
        return facts(settings, DataRoot.of(settings, Run(tmp_path / "run")))

    assert "video" not in inputs()["data"]
    assert inputs("data.video.frames=4")["data"]["video"]["frames"] == 4
    assert inputs("data.video.frames=null") == inputs()


def test_a_list_of_questions_and_its_images_are_facts_of_the_tables(tmp_path: Path, draw: Callable[..., bytes]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(draw())
    (tmp_path / "questions.txt").write_text("What is it?\n")
    source = {"path": str(tmp_path / "photos"), "questions": str(tmp_path / "questions.txt")}

    def inputs(**more: int) -> dict[str, Any]:
        settings = load_settings("mini", [f"data.sources=[{json.dumps(source | more)}]", "benchmarks=[]"])
        return facts(settings, DataRoot.of(settings, Run(tmp_path / "run")))

    first = inputs()
    assert first["files"].keys() == set(source.values())
    assert first["data"]["sources"][0].keys() & {"annotations", "question", "questions", "questions_per_image"} == {
        "questions"
    }
    assert inputs(questions_per_image=1) != first
    (tmp_path / "photos" / "b.png").write_bytes(draw(seed=1))
    assert inputs()["files"] != first["files"]
