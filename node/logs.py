"""Log lines as events with fields, `key=value` or JSON, on standard error."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

# What a record has anyway; the rest are the event's own fields.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
FIELD_CHARS_MAX = 2_000


def set_up_logs(level: str, *, as_json: bool) -> None:
    """Make the root logger write structured lines. Calling it again replaces the earlier form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else KeyValueLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


class KeyValueLines(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO node.runtime node started node=n1 port=7400`"""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={_plain(value)}" for key, value in fields_of(record).items())
        line = f"{_stamp(record)} {record.levelname} {record.name} {record.getMessage()}{fields}"
        return line + _trace(self, record)


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, event, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        head = {
            "time": _stamp(record),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
        }
        trace = _trace(self, record)
        tail = {"trace": trace.strip()} if trace else {}
        return json.dumps({**fields_of(record), **head, **tail}, default=str)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """The fields that came with an event."""
    return {key: value for key, value in vars(record).items() if key not in _OWN}


def _stamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return "\n" + formatter.formatException(record.exc_info) if record.exc_info else ""


def _plain(value: object) -> str:
    text = str(value)[:FIELD_CHARS_MAX]
    is_bare = text.isprintable() and text and not any(c in text for c in " =\"'")
    return text if is_bare else json.dumps(text)
