"""The skill `shell`: run a program by its argument list. Loaded only by workers that allow it.

There is no shell string anywhere: nothing is expanded, split or quoted.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec

from mesh.agent import Agent, AgentError, Final

OUTPUT_BYTES_MAX = 30_000  # as JSON, of stdout and of stderr; what comes after is read and dropped
ARGUMENTS_MAX = 256
TIMEOUT_MS_DEFAULT = 60_000
READ_BYTES = 65_536

shell = Agent("shell")


class ShellInput(msgspec.Struct, forbid_unknown_fields=True):
    argv: list[str]
    timeout_ms: int = TIMEOUT_MS_DEFAULT
    stdin: str = ""


@shell.skill("shell")
async def run_program(wish: ShellInput) -> dict[str, Any]:
    """Run argv; gives code, stdout, stderr and if they were cut. Killed when cancelled."""
    if not wish.argv or len(wish.argv) > ARGUMENTS_MAX:
        raise Final(f"argv has 1 to {ARGUMENTS_MAX} items", code="BAD_INPUT")
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *wish.argv, stdin=pipe, stdout=pipe, stderr=pipe
        )
    except (OSError, ValueError) as error:
        raise Final(f"{wish.argv[0]} does not start: {error}", code="NOT_STARTED") from error
    try:
        async with asyncio.timeout(wish.timeout_ms / 1_000):
            _, out, err = await asyncio.gather(
                _feed(process, wish.stdin.encode()), _drain(process.stdout), _drain(process.stderr)
            )
            code = await process.wait()
    except TimeoutError as error:
        message = f"{wish.argv[0]} ran longer than {wish.timeout_ms} ms"
        raise AgentError(message, code="TIMEOUT") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return {
        "code": code,
        "stdout": out[0],
        "stderr": err[0],
        "is_cut": out[1] or err[1],
    }


async def _feed(process: asyncio.subprocess.Process, data: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(data)
        await process.stdin.drain()
    process.stdin.close()


async def _drain(stream: asyncio.StreamReader | None) -> tuple[str, bool]:
    assert stream is not None
    kept = bytearray()
    is_cut = False
    while piece := await stream.read(READ_BYTES):
        room = OUTPUT_BYTES_MAX - len(kept)
        kept += piece[:room]
        is_cut = is_cut or len(piece) > room
    text = kept.decode("utf-8", "replace")
    # Control characters take six bytes each in JSON, and the whole answer has a bound.
    while len(msgspec.json.encode(text)) > OUTPUT_BYTES_MAX:
        text, is_cut = text[: len(text) * 3 // 4], True
    return text, is_cut
