"""Scoring many responses at once, in worker processes that know nothing of jax."""

import contextlib
import math
import multiprocessing.context
import os
import signal
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Self

from r1jax import rewards

Pair = tuple[Mapping[str, Any], rewards.Response]
Parts = dict[str, float]

CHUNKS_PER_WORKER = 4  # enough to even out long and short responses, few enough to be cheap


class RewardPool:
    """Scores lists of responses, with the same result for any number of workers.

        with RewardPool({"accuracy": 1.0, "format": 1.0}, workers=4) as pool:
            parts = pool.score_all(problems, responses)

    workers=0 scores in this process. Otherwise the workers are spawned, not forked (a fork
    of a process with jax's threads can deadlock), import `r1jax.rewards` and what it needs,
    and end with this process, however it ends. They are started on entry, so that they come
    up while the caller compiles. For one caller at a time.

    Raises:
      ValueError: weights that `rewards.check_weights` refuses; a negative worker count.
    """

    def __init__(self, weights: Mapping[str, float], workers: int):
        rewards.check_weights(weights)
        if workers < 0:
            raise ValueError(f"workers={workers} is negative; use 0 to score in this process")
        self._weights = dict(weights)
        self._workers = workers
        self._executor: ProcessPoolExecutor | None = None
        self._begun: list[tuple[list[int], list[Pair], Future | None]] = []

    def __enter__(self) -> Self:
        if self._workers:
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers. A later `score_all` starts new ones."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def score_all(
        self, problems: Sequence[Mapping[str, Any]], responses: Sequence[rewards.Response]
    ) -> list[Parts]:
        """`rewards.score` of each response to the problem beside it, in order.

        A worker's death (out of memory, a crash in a library) costs a new pool and another
        try. What is still missing after the second death is scored one response at a time,
        and a response that then kills its worker gets `rewards.failed`.

        Raises:
          ValueError: the lists differ in length.
        """
        if len(problems) != len(responses):
            raise ValueError(
                f"{len(problems)} problems for {len(responses)} responses; "
                "give one problem for each response, repeated within a group"
            )
        pairs = list(zip(problems, responses, strict=True))
        if not self._workers:
            return _score_chunk(pairs, self._weights)
        size = max(1, math.ceil(len(pairs) / (self._workers * CHUNKS_PER_WORKER)))
        missing = {start: pairs[start : start + size] for start in range(0, len(pairs), size)}
        scored: dict[int, list[Parts]] = {}
        for _ in range(2):
            scored |= self._attempt(missing)
            missing = {start: chunk for start, chunk in missing.items() if start not in scored}
            if not missing:
                break
        for start, chunk in missing.items():
            # A broken pool does not say who broke it: only alone can a response be blamed.
            alone = [self._attempt({0: [pair]}).get(0) for pair in chunk]
            scored[start] = [
                parts[0] if parts else rewards.failed(self._weights) for parts in alone
            ]
        return [parts for start in sorted(scored) for parts in scored[start]]

    def begin(self, pairs: Mapping[int, Pair]) -> None:
        """Starts to score responses, by a number of the caller's, while it goes on.

        For answers that come one after the other: `finish` gives the scores of all that
        were begun.
        """
        numbers, given = list(pairs), list(pairs.values())
        future = None
        if self._workers:
            with contextlib.suppress(BrokenProcessPool):  # `finish` sees to it
                future = self._start().submit(_score_chunk, given, self._weights)
        self._begun.append((numbers, given, future))

    def finish(self) -> dict[int, Parts]:
        """Scores by number, of all responses begun since the last time; as `score_all`'s."""
        begun, self._begun = self._begun, []
        scored: dict[int, Parts] = {}
        for numbers, pairs, future in begun:
            try:
                parts = None if future is None else future.result()
            except BrokenProcessPool:
                self.close()
                parts = None
            if parts is None:
                parts = self.score_all(*zip(*pairs, strict=True))
            scored |= dict(zip(numbers, parts, strict=True))
        return scored

    def _attempt(self, chunks: Mapping[int, list[Pair]]) -> dict[int, list[Parts]]:
        """Scores chunks in parallel; returns those that were done before any worker died."""
        executor = self._start()
        futures: dict[int, Future[list[Parts]]] = {}
        scored: dict[int, list[Parts]] = {}
        broken = False
        try:
            for start, chunk in chunks.items():
                futures[start] = executor.submit(_score_chunk, chunk, self._weights)
        except BrokenProcessPool:  # died while we were still handing out work
            broken = True
        for start, future in futures.items():
            try:
                scored[start] = future.result()
            except BrokenProcessPool:
                broken = True
        if broken:
            self.close()
        return scored

    def _start(self) -> ProcessPoolExecutor:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self._workers,
                mp_context=_Context(),
                initializer=_start_worker,
            )
            for _ in range(self._workers):
                self._executor.submit(os.getpid)  # a worker is started when there is work
        return self._executor


def _score_chunk(pairs: Sequence[Pair], weights: Mapping[str, float]) -> list[Parts]:
    return [rewards.score(problem, response, weights) for problem, response in pairs]


def _start_worker() -> None:
    """Runs first in each worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    # A worker waits on a queue whose other end it holds too, so it would outlive a parent
    # that was killed. The parent's sentinel tells.
    multiprocessing.parent_process().join()
    os._exit(1)


class _Process(multiprocessing.context.SpawnProcess):
    """A spawned process that does not import the caller's script.

    multiprocessing runs the parent's `__main__` again in every worker, so that functions
    defined there can be unpickled. Ours come from this module, while a training script would
    drag jax in, and one without a `__main__` guard would start a pool of its own.
    """

    def start(self) -> None:
        # What the child is to import is read from here. Other threads see the stand-in for
        # the few milliseconds that it takes.
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main


class _Context(multiprocessing.context.SpawnContext):
    Process = _Process
