"""Runs granted subtasks in this process and collects what is to be told to the node.

Knows nothing of streams: it is given grants, revokes and renewals, and asked for its reports.
Invariant: a claim is in `_held` from its grant until it is settled or lost, so that a resent grant
is not run twice and a report is resent until it has been answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from quorumesh.v1.values_pb2 import Reason
from quorumesh.v1.workers_pb2 import (
    Completion,
    FailureReport,
    FromWorker,
    Grant,
    ProgressReport,
    Settled,
    SlotOffer,
)

from mesh.agent import Context, Skill
from mesh.worker_calls import arguments, completion_of, failure_of, failure_report

STUCK_MS_MAX = 5_000  # an agent that has not stopped so long after its claim was lost is stuck
MESSAGE_BYTES_MAX = 1_000_000
CHECK_MS = 200

Key = tuple[int, int]  # subtask_ref, fence
Report = Completion | FailureReport

log = logging.getLogger("mesh.worker")


@dataclass(slots=True, eq=False)
class Held:
    """One claim of this worker."""

    grant: Grant
    context: Context
    lease_until_ms: int
    timeout_at_ms: int | None
    task: asyncio.Task[None] | None = None
    report: Report | None = None  # kept until the node has answered it


@dataclass(frozen=True, slots=True)
class HostStats:
    running_count: int
    unsettled_count: int
    stuck_count: int
    completed_count: int
    failed_count: int
    lost_count: int


class Host:
    """The slots of a worker. All methods are called on its loop."""

    def __init__(
        self, skills: Mapping[str, Skill], *, slots: int, on_reports: Callable[[], None]
    ) -> None:
        self._skills = skills
        self._slots = slots
        self._on_reports = on_reports
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(max_workers=slots, thread_name_prefix="agent")
        self._held: dict[Key, Held] = {}
        self._stuck: dict[Held, int] = {}  # lost, but its function still runs: since when
        self._reports: dict[Key, Report] = {}
        self._progress: dict[Key, ProgressReport] = {}
        self._renewed_until_ms = 0
        self._offer: int | None = slots
        self._offered = slots
        self._lease_is_over = False
        self._counts = {"completed": 0, "failed": 0, "lost": 0}

    # What the node says.

    def granted(self, grants: Iterable[Grant]) -> None:
        """Start these. A grant that is already known is not started again."""
        for grant in grants:
            key = (grant.subtask_ref, grant.fence)
            if key not in self._held:
                self._start(key, grant)

    def held_elsewhere(self, keys: set[Key]) -> None:
        """A new stream has listed all that this worker holds: whatever is not in it is lost."""
        for key in [key for key in self._held if key not in keys]:
            self.revoked(key, "no longer held after reconnecting")

    def revoked(self, key: Key, why: str) -> None:
        """The claim is lost: stop its agent; whatever it returns is thrown away."""
        held = self._held.pop(key, None)
        self._reports.pop(key, None)
        self._progress.pop(key, None)
        if held is None:
            return
        self._counts["lost"] += 1
        log.info("claim lost: %s fence=%d why=%s", held.grant.subtask, held.grant.fence, why)
        held.context.cancel()
        if held.report is None and held.task is not None:
            self._stuck[held] = _now_ms()
            if self._skills[held.grant.skill].is_async:
                held.task.cancel()

    def renewed(self, lease_ms: int) -> None:
        """All held claims are good for so long from now."""
        self._renewed_until_ms = max(self._renewed_until_ms, _now_ms() + lease_ms)

    def settled(self, answer: Settled) -> None:
        """The node has answered a report; a refused one had no effect."""
        self._reports.pop((answer.subtask_ref, answer.fence), None)
        held = self._held.pop((answer.subtask_ref, answer.fence), None)
        if held is not None and answer.reason != Reason.REASON_UNSPECIFIED:
            log.warning(
                "report refused: %s fence=%d reason=%s %s",
                held.grant.subtask,
                answer.fence,
                Reason.Name(answer.reason),
                answer.message,
            )

    # What the node is told.

    def offer(self, slots: int) -> None:
        """Hold at most so many from now on."""
        if slots != self._offered:
            self._offer = self._offered = slots
            self._on_reports()

    def reconnected(self) -> None:
        """Say everything unanswered again, over a new stream."""
        self._offer = None if self._offered == self._slots else self._offered
        self._reports = {k: h.report for k, h in self._held.items() if h.report is not None}
        if self._reports or self._offer is not None:
            self._on_reports()

    def take_reports(self) -> FromWorker | None:
        """All that came together since the last call, up to a message's bound. None: nothing."""
        if not self._reports and not self._progress and self._offer is None:
            return None
        message = FromWorker()
        if self._offer is not None:
            message.offer.CopyFrom(SlotOffer(slots=self._offer))
            self._offer = None
        size_bytes = 0
        while self._reports and size_bytes < MESSAGE_BYTES_MAX:
            report = self._reports.pop(next(iter(self._reports)))
            if isinstance(report, Completion):
                message.completions.append(report)
            else:
                message.failures.append(report)
            size_bytes += report.ByteSize()
        message.progress.extend(self._progress.values())
        self._progress.clear()
        return message

    def take_lease_end(self) -> bool:
        """True once after claims were dropped here that the ledger may still count as held.

        A new stream then settles what this worker holds.
        """
        is_over, self._lease_is_over = self._lease_is_over, False
        return is_over

    @property
    def is_idle(self) -> bool:
        """Nothing runs and nothing waits for its answer."""
        return not self._held

    @property
    def has_stuck(self) -> bool:
        """An agent goes on although its claim has been lost for longer than STUCK_MS_MAX."""
        now_ms = _now_ms()
        return any(now_ms - since_ms > STUCK_MS_MAX for since_ms in self._stuck.values())

    def stats(self) -> HostStats:
        unsettled_count = sum(1 for held in self._held.values() if held.report is not None)
        return HostStats(
            running_count=len(self._held) - unsettled_count,
            unsettled_count=unsettled_count,
            stuck_count=len(self._stuck),
            completed_count=self._counts["completed"],
            failed_count=self._counts["failed"],
            lost_count=self._counts["lost"],
        )

    def check_clock(self) -> None:
        """Stop what has outlived its lease or its time-out. Called every CHECK_MS."""
        now_ms = _now_ms()
        for key, held in list(self._held.items()):
            if held.report is not None:
                continue
            if held.timeout_at_ms is not None and now_ms >= held.timeout_at_ms:
                self._time_out(key, held)
            elif now_ms >= max(held.lease_until_ms, self._renewed_until_ms):
                self.revoked(key, "its lease ran out without renewal")
                self._lease_is_over = True
                self._on_reports()

    # Running.

    def _start(self, key: Key, grant: Grant) -> None:
        now_ms = _now_ms()
        context = Context(grant, self._progressed)
        held = Held(
            grant=grant,
            context=context,
            lease_until_ms=now_ms + grant.lease_ms_left,
            timeout_at_ms=now_ms + grant.timeout_ms if grant.timeout_ms else None,
        )
        self._held[key] = held
        skill = self._skills.get(grant.skill)
        if skill is None:
            report = failure_report(grant, "UNKNOWN_SKILL", f"no skill {grant.skill} here")
            self._finish(held, report)
            return
        run = self._run_on_loop if skill.is_async else self._run_in_thread
        held.task = self._loop.create_task(run(skill, held))
        held.task.add_done_callback(lambda task: self._ended(held, task))

    async def _run_on_loop(self, skill: Skill, held: Held) -> None:
        # Whatever foreign code raises is data here: it becomes a report and never ends the worker.
        try:
            named = arguments(skill, held.grant, held.context)
            result = await skill.function(**named)
            report: Report = completion_of(held.grant, held.context, result)
        except asyncio.CancelledError:
            report = failure_report(held.grant, "CANCELLED", "the agent cancelled itself")
        except (Exception, SystemExit) as error:
            report = _logged_failure(held.grant, error)
        self._finish(held, report)

    async def _run_in_thread(self, skill: Skill, held: Held) -> None:
        report = await self._loop.run_in_executor(self._threads, _call, skill, held)
        self._finish(held, report)

    def _ended(self, held: Held, task: asyncio.Task[None]) -> None:
        # Also reached by a task that was cancelled before its first step.
        self._stuck.pop(held, None)
        if not task.cancelled():
            task.result()

    def _finish(self, held: Held, report: Report) -> None:
        key = (held.grant.subtask_ref, held.grant.fence)
        if self._held.get(key) is not held or held.report is not None:
            return  # lost, or timed out, meanwhile
        self._report(key, held, report)

    def _report(self, key: Key, held: Held, report: Report) -> None:
        held.report = report
        self._counts["completed" if isinstance(report, Completion) else "failed"] += 1
        self._progress.pop(key, None)
        self._reports[key] = report
        self._on_reports()

    def _time_out(self, key: Key, held: Held) -> None:
        message = f"the attempt took longer than {held.grant.timeout_ms} ms"
        held.context.cancel()
        self._stuck[held] = _now_ms()
        if held.task is not None and self._skills[held.grant.skill].is_async:
            held.task.cancel()
        self._report(key, held, failure_report(held.grant, "TIMEOUT", message))

    def _progressed(self, context: Context, fraction: float, text: str) -> None:
        self._loop.call_soon_threadsafe(self._keep_progress, context, fraction, text)

    def _keep_progress(self, context: Context, fraction: float, text: str) -> None:
        key = (context.grant.subtask_ref, context.grant.fence)
        held = self._held.get(key)
        if held is None or held.context is not context or held.report is not None:
            return
        # Only the last one of each claim waits, so a chatty agent fills nothing.
        self._progress[key] = ProgressReport(
            subtask_ref=key[0], fence=key[1], fraction=fraction, text=text
        )
        self._on_reports()


def _call(skill: Skill, held: Held) -> Report:
    """In a thread: run a plain function to its report."""
    try:
        named = arguments(skill, held.grant, held.context)
        return completion_of(held.grant, held.context, skill.function(**named))
    except (Exception, SystemExit) as error:
        return _logged_failure(held.grant, error)


def _logged_failure(grant: Grant, error: BaseException) -> FailureReport:
    log.warning(
        "agent failed: %s skill=%s fence=%d",
        grant.subtask,
        grant.skill,
        grant.fence,
        exc_info=error,
    )
    return failure_of(grant, error)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
