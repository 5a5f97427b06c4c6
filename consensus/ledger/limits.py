"""Every bound of the ledger, its unit in its name. Changing one changes what apply does."""

APPLY_VERSION = 2
SCHEMA_VERSION = 2

VALUE_BYTES_MAX = 65_536
SUBTASKS_MAX = 10_000  # of one task, spawned ones and ballots included
NEEDS_BYTES_MAX = 2 << 20  # of all outputs that one subtask is handed
ID_CHARS_MAX = 64  # of one part of an id
TASK_ID_BYTES_MAX = 64
SPAWN_DEPTH_MAX = 32
NAME_CHARS_MAX = 256
SKILL_CHARS_MAX = 128
LABELS_MAX = 64
LABEL_CHARS_MAX = 256
SKILLS_MAX = 1_024  # of one worker
CLASSES_MAX = 100_000
BAND_MAX = 9
MESSAGE_CHARS_MAX = 2_048
CODE_CHARS_MAX = 64
DURATION_MS_MAX = 366 * 24 * 3_600_000

LEASE_MS = 3_000
SLOTS_MAX = 4_096
SESSION_BYTES_MAX = 64
SESSIONS_MAX = 10_000
SESSION_IDLE_MS = 3_600_000  # an idle session is forgotten after this
RENEW_SESSIONS_MAX = 10_000

ATTEMPTS_DEFAULT = 3
ATTEMPTS_MAX = 1_000
BACKOFF_MS_DEFAULT = 200
BACKOFF_MS_MAX_DEFAULT = 30_000
LOST_COUNT_MAX = 16
PAST_GRANTS_MAX = 8
DEADLINE_MS_DEFAULT = 24 * 3_600_000
RETAIN_MS_DEFAULT = 7 * 24 * 3_600_000

TIMERS_PER_ENTRY_MAX = 1_000
ROWS_DELETED_PER_ENTRY_MAX = 1_000
FAULT_PAUSE_MS = 60_000  # what met a bug is put off for this long
FAULTS_PER_ENTRY_MAX = 100  # grants put off in one entry
EVENTS_KEPT_MIN = 1_000  # revisions kept even when no task needs them

MEMBERS_MAX = 1_000
DEPARTED_MAX = 10_000  # removed nodes whose ids are remembered; the oldest go first
FAREWELL_MS = 60_000  # for so long after its removal a node is still dialled, to be told
TOKENS_MAX = 1_000  # unexpired ones
TOKEN_TTL_MS_MAX = 3_600_000

PAGE_MAX = 1_000
READY_WINDOW_MAX = 512  # ready subtasks of one class kept in memory
READY_READ_MAX = 128  # of one class read at once
CACHED_ROWS_MAX = 50_000  # rows kept in memory between entries
