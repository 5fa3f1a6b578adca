"""Jobs on a few threads. What they do releases the GIL: hashing, copying, reading and writing.

Plain threads, and not an executor: executors take no work any more once the interpreter begins to
exit, and a save that is in progress then has to come to its end.
"""

import contextlib
from collections.abc import Callable, Iterable
from contextvars import copy_context
from threading import Event, Thread
from typing import TypeVar

from holdtrue.limits import limits

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Job], Result],
    jobs: Iterable[Job],
    failed: Callable[[BaseException], None] = lambda _: None,
    most: int = 0,
) -> list[Result]:
    """Each job's result, in order; the first that fails ends those that have not begun. They are
    begun in order too. `failed` is told at once, for jobs that wait for one another. `most` is how
    many threads, where it is not what `limits` says."""
    todo = list(jobs)
    results: dict[int, Result] = {}
    errors: list[BaseException] = []

    def end(error: BaseException) -> None:
        errors.append(error)
        failed(error)

    remaining = iter(range(len(todo)))  # `next` of it is atomic

    def run() -> None:
        for index in remaining:
            if errors:
                return
            try:
                results[index] = work(todo[index])
            except BaseException as error:
                end(error)

    # Each in a copy of the caller's context: the limits in force are kept there.
    count = min(most or limits().threads, len(todo)) - 1  # the caller's own thread works too
    ended = [Event() for _ in range(count)]

    def run_on(event: Event) -> None:
        try:
            run()
        finally:
            event.set()

    threads = [Thread(target=copy_context().run, args=(run_on, event)) for event in ended]
    try:
        with contextlib.suppress(RuntimeError):  # none can be begun any more, or there are too many
            for thread in threads:
                thread.start()
        run()
    except BaseException as error:  # an interrupt that came between two jobs
        end(error)
    # Nobody is left behind, also where an interrupt comes now: the caller closes the files next,
    # and their numbers are soon those of others. One that has no `ident` finds `errors` first.
    left = [(t, e) for t, e in zip(threads, ended, strict=True) if t.ident is not None]
    while left:
        try:
            thread, event = left[-1]
            event.wait()  # a `join` that was interrupted once takes the thread for ended
            thread.join()
            left.pop()
        except BaseException as error:
            end(error)
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(todo))]
