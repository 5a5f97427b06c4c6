"""What the mesh promises of one task and of one claim, as machines of one step per operation.

Both are nondeterministic: the mesh ends a running task, and lets a lease lapse, when it likes. Such
an inner step is taken by the operation that shows it, no sooner: until then the state that has not
taken it allows all that the other allows, and more. So each operation leads to at most one state.

That also holds for operations that leave the state as it is: where one fits now, it may be taken
now, for nothing that fits later needs it later. The search relies on both.
"""

from __future__ import annotations

from typing import Final, Protocol

from tests.lincheck.history import NOTHING_DONE, TASK_PREFIX, Operation

State = tuple[object, ...]


class Model(Protocol):
    """The machine of one kind of key."""

    initial: State

    def step(self, state: State, operation: Operation) -> State | None:
        """The state after the operation took effect with its result; None: it cannot have."""

    def misfit(self, state: State, operation: Operation) -> str:
        """Why step says None, in words."""

    def describe(self, state: State) -> str:
        """The state, in words."""


def model_of(key: str) -> Model:
    return TASK if key.startswith(TASK_PREFIX) else LOCK


_ABSENT: Final = ("absent",)


class TaskRegister:
    """A task: submitted once (compare absent, set), cancelled while it runs, ended once.

    States: absent; running, cancelled or ended (not yet known how), each with the spec; succeeded
    and failed with the spec and the output.
    """

    initial: State = _ABSENT

    def step(self, state: State, operation: Operation) -> State | None:
        if operation.reason in NOTHING_DONE:
            return state
        match operation.op:
            case "submit":
                return self._submit(state, operation)
            case "cancel":
                return self._cancel(state, operation)
            case _:
                return self._get(state, operation)

    @staticmethod
    def _submit(state: State, operation: Operation) -> State | None:
        spec = operation.subject
        if operation.result == "refused":
            return state if state != _ABSENT and state[1] != spec else None
        if state == _ABSENT:
            return ("running", spec)
        return state if state[1] == spec or operation.is_unknown else None

    @staticmethod
    def _cancel(state: State, operation: Operation) -> State | None:
        phase = state[0]
        if operation.result == "refused":
            if operation.reason == "NOT_FOUND":
                return state if phase == "absent" else None
            if phase == "running":
                return ("ended", state[1])
            return state if phase in ("ended", "succeeded", "failed") else None
        if phase == "running":
            return ("cancelled", state[1])
        return state if phase == "cancelled" or operation.is_unknown else None

    @staticmethod
    def _get(state: State, operation: Operation) -> State | None:
        if operation.is_unknown:
            return state
        seen, phase = operation.subject, state[0]
        if seen in ("succeeded", "failed"):
            if phase in ("running", "ended"):
                return (seen, state[1], operation.output)
            return state if phase == seen and state[2] == operation.output else None
        return state if phase == seen else None

    def misfit(self, state: State, operation: Operation) -> str:
        phase, seen = state[0], operation.subject
        match operation.op, operation.result:
            case "submit", "refused":
                taken = "nothing has this name" if phase == "absent" else "it is the same task"
                return f"refused as taken, but {taken}"
            case "submit", _:
                return "accepted, but the name is taken by another task"
            case "cancel", "ok":
                return f"accepted, but the task was {phase}"
            case "cancel", _:
                return f"refused as {operation.reason}, but the task was {phase}"
        if phase == "absent":
            return f"read of what nobody wrote: {seen}, but no such task was submitted"
        if seen == "absent":
            return f"the task is lost: not found, but it was submitted and {phase}"
        if seen == "cancelled" and phase in ("running", "ended"):
            return f"read of what nobody wrote: cancelled, but the task was {phase}"
        if phase == "ended" or seen == "running":
            return f"stale read: {seen}, but the task was {phase}"
        if phase == seen:
            return f"a final result changed: output {operation.output}, but it was {state[2]}"
        return f"a final state changed: {seen}, but the task was {phase}"

    def describe(self, state: State) -> str:
        phase = str(state[0])
        if phase == "ended":
            return "succeeded or failed"
        return f"{phase} with output {state[2]}" if len(state) > 2 else phase


class FencedLock:
    """A claim: granted with fences that grow, completed once, by the fence that holds it.

    State: (phase, greatest fence granted, output), with phase
      free: granted to nobody, or the lease has lapsed; held; done: the effect is there;
      closed: it ended in another way (cancelled, failed for good), so no effect can come any more.
    """

    initial: State = ("free", 0, None)

    def step(self, state: State, operation: Operation) -> State | None:
        if operation.op == "grant":
            return self._grant(state, operation)
        if operation.result == "refused":
            return self._refuse(state, operation)
        phase, fence, _ = state
        if phase == "held" and fence == operation.subject:
            return ("done", fence, operation.output)
        if operation.is_unknown or self._is_repeat(state, operation):
            return state
        return None

    @staticmethod
    def _grant(state: State, operation: Operation) -> State | None:
        if operation.is_unknown or operation.reason:
            return state
        phase, fence, _ = state
        given = operation.subject
        assert isinstance(given, int) and isinstance(fence, int)
        if phase in ("done", "closed") or given <= fence:
            return None
        return ("held", given, None)

    def _refuse(self, state: State, operation: Operation) -> State | None:
        phase, fence, _ = state
        match operation.reason:
            case "STALE_FENCE" if self._is_repeat(state, operation):
                return None
            case "STALE_FENCE" if phase == "held" and fence == operation.subject:
                return ("free", fence, None)
            case "FINISHED" if self._is_repeat(state, operation):
                return None
            case "FINISHED" if phase not in ("done", "closed"):
                return ("closed", fence, None)
            case _:
                return state

    @staticmethod
    def _is_repeat(state: State, operation: Operation) -> bool:
        return state == ("done", operation.subject, operation.output)

    def misfit(self, state: State, operation: Operation) -> str:
        phase, fence, _ = state
        subject = operation.subject
        assert isinstance(fence, int)
        if operation.op == "grant":
            assert isinstance(subject, int)
            if phase in ("done", "closed"):
                return f"granted after the end: fence {subject}, but the subtask was {phase}"
            if subject == fence:
                return f"a fence was used again: {subject}"
            return f"fences went back: {subject} after {fence}"
        if operation.result == "refused":
            return f"the effect is lost: fence {subject} had completed, then {operation.reason}"
        assert isinstance(subject, int)
        if phase == "done":
            return f"two effects: fence {subject} completed after fence {fence} had"
        if phase == "closed":
            return f"an effect after the end: fence {subject}"
        if subject > fence:
            return f"completed under a fence that nobody was granted: {subject}"
        return f"completed under a stale fence: {subject}, but {self.describe(state)}"

    def describe(self, state: State) -> str:
        phase, fence, output = state
        if phase == "done":
            return f"done under fence {fence} with output {output}"
        return f"{phase}, greatest fence {fence}"


TASK: Final = TaskRegister()
LOCK: Final = FencedLock()
