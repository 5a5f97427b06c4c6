"""The library as shipped breaks each rule: the reason for what of ours replaces its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = (
    "row_1_a_flipped_byte_is_served_as_data",
    "row_1_entries_are_acknowledged_that_were_never_synced",
    "row_2_a_damaged_vote_is_no_vote",
    "row_3_a_kill_while_compacting_loses_the_tail",
    "row_4_an_old_append_cuts_agreeing_entries",
    "row_5_an_answer_without_term_commits",
    "row_6_a_snapshot_chunk_commits_an_unverified_tail",
    "row_7_a_later_reset_undoes_backing_up",
    "row_8_a_raising_command_runs_again_and_again",
    "row_9_a_lost_forward_is_never_answered",
    "row_10_two_changes_are_in_force_at_once",
    "row_11_a_returning_node_deposes_a_leader",
    "row_12_a_leader_that_nobody_hears_answers_reads",
    "row_13_an_entry_is_code",
    "row_14_it_forks_beside_threads_to_dump",
    "row_15_a_large_entry_is_finished_twice",
    "row_16_a_new_voter_counts_before_it_holds_anything",
)


@pytest.mark.stock
@pytest.mark.parametrize("row", ROWS)
def test_the_library_as_shipped_breaks(row: str) -> None:
    """In a process of its own, where nothing of ours has touched the library."""
    run = subprocess.run(
        [sys.executable, str(ROOT / "tests/engine/stock.py"), row],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) is True
