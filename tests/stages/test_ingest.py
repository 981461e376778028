import threading
import time
from collections.abc import Iterator

from carevl.stages.ingest import ahead


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
