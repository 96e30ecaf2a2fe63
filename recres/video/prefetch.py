"""Doing the next pieces of work in threads while the consumer is busy with the present one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Prefetcher(Generic[Item, Result]):
    """Iterate over function(item) for each item, up to `ahead` results before they are asked for.

    Results come in the order of the items, whatever the number of workers; an exception in the
    function is raised where its result would have come. To be used as a context manager: leaving
    it, for whatever reason, drops the work not begun and waits for the threads.

        with Prefetcher(load, items, workers=2) as batches:
            for batch in batches: ...
    """

    def __init__(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        workers: int = 1,
        ahead: int | None = None,
    ):
        if workers < 1:
            raise ValueError(f"workers is {workers}, expected at least 1")
        if ahead is not None and ahead < 1:
            raise ValueError(f"ahead is {ahead}, expected at least 1")
        self._function = function
        self._items = iter(items)
        self._ahead = 2 * workers if ahead is None else ahead
        self._pending: deque[Future[Result]] = deque()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")

    def __enter__(self) -> Prefetcher[Item, Result]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the work not begun, and wait for what is being done."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()
        self._items = iter(())

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        self._fill()
        if not self._pending:
            raise StopIteration
        result = self._pending.popleft().result()
        self._fill()  # the workers go on while the consumer is busy with this one
        return result

    def _fill(self) -> None:
        while len(self._pending) < self._ahead:
            try:
                item = next(self._items)
            except StopIteration:
                return
            self._pending.append(self._pool.submit(self._function, item))
