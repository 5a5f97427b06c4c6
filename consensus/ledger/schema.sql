-- The task ledger. Changed only by apply(), one log entry per transaction, the same on every node.
-- A number of milliseconds ending in _ms is counted time; one ending in _wall_ms is for display only.
-- Lines marked `Invariant:` are checked, in the same words, by invariants.py.

-- Where the ledger stands. One row.
CREATE TABLE ledger (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  schema_version INTEGER NOT NULL,   -- the lay-out of these tables
  applied_index INTEGER NOT NULL,    -- the log index of the last entry applied: the revision
  applied_term INTEGER NOT NULL,     -- its term
  counted_ms INTEGER NOT NULL,       -- counted time; Invariant: counted time never goes back
  wall_ms INTEGER NOT NULL,          -- the clamped wall time of the last entry
  digest BLOB NOT NULL,              -- chain over every entry's outcomes and events
  mesh_id TEXT NOT NULL,             -- empty until the mesh is bootstrapped
  fence INTEGER NOT NULL,            -- the last fence given; Invariant: no claim carries a fence above the last one given
  task_seq INTEGER NOT NULL,         -- the last task number given
  oldest_revision INTEGER NOT NULL,  -- events below this revision are no longer kept
  task_count INTEGER NOT NULL,       -- Invariant: the counts of tasks and ready subtasks are right
  running_count INTEGER NOT NULL,    -- tasks that have not ended
  ready_count INTEGER NOT NULL       -- subtasks that are ready
) STRICT;

-- Nodes that were admitted.
CREATE TABLE member (
  node_id TEXT PRIMARY KEY,
  name TEXT NOT NULL,                -- for people
  address TEXT NOT NULL,             -- host:port others dial
  voter INTEGER NOT NULL,            -- 1: has a Raft vote; written by bootstrap and membership entries only
  admitted_wall_ms INTEGER NOT NULL,
  apply_version_max INTEGER NOT NULL, -- the highest apply version it can run
  replaces TEXT NOT NULL,            -- the damaged member it came in place of; empty: it came by a token
  leaving INTEGER NOT NULL           -- 1: another came in its place; gone with its vote. Invariant: only a voter is leaving
) STRICT, WITHOUT ROWID;

-- Nodes that were removed: they learn it from here, and their ids are never admitted again. Who comes
-- back under an old id might have lost its vote and could vote twice.
CREATE TABLE departed (
  node_id TEXT PRIMARY KEY,
  address TEXT NOT NULL,             -- where it was last dialled
  revision INTEGER NOT NULL,         -- of the entry that removed it
  counted_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One-use invitations.
CREATE TABLE token (
  token_id BLOB PRIMARY KEY,
  secret_digest BLOB NOT NULL,       -- of the secret; the secret itself is never here
  expires_ms INTEGER NOT NULL,
  principal TEXT NOT NULL,           -- who made it
  used_by TEXT NOT NULL              -- node id; empty: not used yet
) STRICT, WITHOUT ROWID;

-- Requirements, interned: a skill and the labels a worker must carry.
CREATE TABLE class (
  class_id INTEGER PRIMARY KEY,
  skill TEXT NOT NULL,
  labels BLOB NOT NULL,              -- SubtaskSpec with only `where`, sorted and without doubles
  UNIQUE (skill, labels)
) STRICT;

-- Worker sessions and their standing offers.
CREATE TABLE session (
  session BLOB PRIMARY KEY,
  epoch INTEGER NOT NULL,            -- grows each time it is opened
  nonce BLOB NOT NULL,               -- of the last open, 8 bytes: the same again gives the same epoch
  node_id TEXT NOT NULL,             -- through which it speaks
  name TEXT NOT NULL,
  profile BLOB NOT NULL,             -- WorkerHello with skills and labels
  slots INTEGER NOT NULL,            -- how many subtasks it may hold at once; 0: its offer is withdrawn
  held INTEGER NOT NULL,             -- Invariant: a session's held equals its claimed subtasks
  claim_sequence INTEGER NOT NULL,   -- of the last Claim of this epoch
  lease_until_ms INTEGER NOT NULL,   -- its claims are lost after this time; only while it holds something
  granted_fence INTEGER NOT NULL,    -- of its last grant: orders workers that hold equally many
  active_ms INTEGER NOT NULL,        -- its last command; idle sessions are forgotten in the end
  is_open INTEGER NOT NULL           -- 0: closed
) STRICT, WITHOUT ROWID;

-- What users submit.
CREATE TABLE task (
  seq INTEGER PRIMARY KEY,           -- grows with every submission
  task_id BLOB NOT NULL,             -- chosen by the caller
  tenant TEXT NOT NULL,
  name TEXT NOT NULL,
  principal TEXT NOT NULL,
  state INTEGER NOT NULL,            -- TaskState
  band INTEGER NOT NULL,             -- 0 goes first
  spec_digest BLOB NOT NULL,         -- of the TaskSpec bytes as received
  output_n INTEGER NOT NULL,         -- whose output is the task's; 0: all that nobody needs
  subtask_count INTEGER NOT NULL,    -- Invariant: a task's counters match its subtasks
  ended_count INTEGER NOT NULL,      -- subtasks that ended in whatever way
  next_n INTEGER NOT NULL,           -- the next number of a subtask or ballot in this task
  due_ms INTEGER,                    -- running: its deadline; ended: when it is forgotten
  retain_ms INTEGER NOT NULL,
  submitted_wall_ms INTEGER NOT NULL,
  ended_wall_ms INTEGER NOT NULL,
  failure_code TEXT NOT NULL,
  failure_message TEXT NOT NULL,
  submitted_revision INTEGER NOT NULL,
  revision INTEGER NOT NULL,         -- of its last change
  UNIQUE (task_id, tenant)
) STRICT;
CREATE INDEX task_due ON task (due_ms, seq) WHERE due_ms IS NOT NULL;

-- Units of work. ref = (task.seq << 20) | n, so a task's subtasks are one range and the order of ref
-- is the order of age.
CREATE TABLE subtask (
  ref INTEGER PRIMARY KEY,
  id TEXT NOT NULL,
  class_id INTEGER NOT NULL,         -- what it requires of a worker
  band INTEGER NOT NULL,             -- of its task
  timeout_ms INTEGER NOT NULL,       -- for each attempt; 0: none
  attempts_max INTEGER NOT NULL,     -- failed attempts before it fails for good
  backoff_ms INTEGER NOT NULL,
  backoff_ms_max INTEGER NOT NULL,
  optional INTEGER NOT NULL,         -- 1: its failure does not fail the task
  ballot_n INTEGER NOT NULL,         -- the ballot it votes in; 0: none
  parent_n INTEGER NOT NULL,         -- the subtask that spawned it; 0: none
  joins_n INTEGER NOT NULL,          -- the spawning subtask that takes its output; 0: none
  depth INTEGER NOT NULL,            -- how many spawns deep
  need_count INTEGER NOT NULL,
  dependent_count INTEGER NOT NULL,
  state INTEGER NOT NULL,            -- SubtaskState; Invariant: no ready subtask has an open need
  open_needs INTEGER NOT NULL,       -- needs that have not ended; Invariant: open needs are counted rightly
  need_bytes INTEGER NOT NULL,       -- bytes of its needs' outputs so far
  attempt INTEGER NOT NULL,          -- grants so far
  failed_count INTEGER NOT NULL,     -- attempts that failed
  lost_count INTEGER NOT NULL,       -- attempts whose worker went away
  fence INTEGER NOT NULL,            -- of the current or last grant; Invariant: a fence belongs to one claim only
  failed_fence INTEGER NOT NULL,     -- of the last attempt that reported failure
  session BLOB,                      -- who holds it; Invariant: only a claimed subtask has a holder
  node_id TEXT NOT NULL,             -- of the current or last grant
  worker TEXT NOT NULL,              -- of the current or last grant
  due_ms INTEGER,                    -- back-off: ready again; claimed: the attempt times out
  label TEXT,                        -- its vote
  weight INTEGER NOT NULL,           -- of its vote
  done_digest BLOB,                  -- of the completion that was accepted
  output_n INTEGER NOT NULL,         -- whose output row is its output; 0: none
  output_bytes INTEGER NOT NULL,
  failure_code TEXT NOT NULL,
  failure_message TEXT NOT NULL,
  claimed_wall_ms INTEGER NOT NULL,
  ended_wall_ms INTEGER NOT NULL,
  past TEXT NOT NULL                 -- grants that were lost or failed, the last 8: fence, node, worker per line
) STRICT;
-- Invariant: no ready subtask is left that a worker with a free slot could take
CREATE INDEX subtask_ready ON subtask (class_id, band, ref) WHERE state = 3;
CREATE INDEX subtask_held ON subtask (session, ref) WHERE state = 4;
CREATE INDEX subtask_due ON subtask (due_ms, ref) WHERE due_ms IS NOT NULL;

-- Inputs and outputs lie apart from the rows that change often. Absent: empty.
CREATE TABLE input (ref INTEGER PRIMARY KEY, data BLOB NOT NULL, content_type TEXT NOT NULL) STRICT;
CREATE TABLE output (ref INTEGER PRIMARY KEY, data BLOB NOT NULL, content_type TEXT NOT NULL) STRICT;

-- The graph, as numbers within the task, parted by blanks; only where there are any.
CREATE TABLE edge (
  ref INTEGER PRIMARY KEY,           -- a subtask or a ballot
  needs TEXT NOT NULL,               -- what it waits for; of a ballot: its voters
  dependents TEXT NOT NULL           -- what waits for it
) STRICT;

-- Votes. Numbered together with the subtasks of their task.
CREATE TABLE ballot (
  ref INTEGER PRIMARY KEY,
  id TEXT NOT NULL,
  hear_all INTEGER NOT NULL,         -- 1: decided only when every voter has ended
  plurality INTEGER NOT NULL,        -- 1: without a majority the largest group wins
  joins_n INTEGER NOT NULL,          -- as for a subtask
  parent_n INTEGER NOT NULL,
  voter_count INTEGER NOT NULL,
  heard_count INTEGER NOT NULL,      -- voters that ended
  tallies BLOB NOT NULL,             -- BallotInfo with tallies, in the order the labels came
  state INTEGER NOT NULL,            -- 0 open, 1 decided, 2 undecided, 3 cancelled
                                     -- Invariant: a decided ballot has no running straggler
  label TEXT NOT NULL,               -- the winning one
  output_n INTEGER NOT NULL,         -- the winning voter's output
  output_bytes INTEGER NOT NULL
) STRICT;

-- What changed, one EventBatch per entry that changed something; and which tasks it touched.
CREATE TABLE event (revision INTEGER PRIMARY KEY, batch BLOB NOT NULL) STRICT;
CREATE TABLE task_event (
  seq INTEGER NOT NULL,
  revision INTEGER NOT NULL,
  PRIMARY KEY (seq, revision)
) STRICT, WITHOUT ROWID;
