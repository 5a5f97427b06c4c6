"""Journal and vote opened anew after the disk was full: off the loop, for a journal takes its time to read.

Until that is done the node says nothing to its peers and takes nothing. It decides nothing about
when: its owner does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from consensus.directory import LedgerDirectory
from consensus.engine import Journal, VoteRecord
from consensus.ports import Background
from consensus.storage import let_go_if_refused, open_vote


@dataclass(frozen=True, slots=True)
class Reopened:
    """What was opened, as at a start: each may have failed already, and says so."""

    journal: Journal
    vote: VoteRecord


Done = Callable[[Reopened | BaseException], None]


class Mending:
    """Opens the storage of one node anew, once at a time. What nobody wants any more is closed again."""

    def __init__(self, directory: LedgerDirectory, background: Background) -> None:
        self._directory = directory
        self._background = background
        self._is_closed = False
        self.is_under_way = False

    def begin(self, ledger: Path, open_journal: Callable[[], Journal], done: Done) -> None:
        """Open journal and vote beside the ledger in force; `done`, on the loop, gets them or an error.

        Nothing may be applied, installed or dropped meanwhile, and what was open before is closed.
        """
        assert not self.is_under_way
        self.is_under_way = True
        opened: list[Reopened] = []

        def work() -> None:
            # An install that was cut short may have named another one.
            self._directory.put_in_force(ledger)
            journal = open_journal()
            with let_go_if_refused(journal):
                opened.append(Reopened(journal, open_vote(self._directory)))

        def ended(error: BaseException | None) -> None:
            self.is_under_way = False
            if self._is_closed:
                for one in opened:
                    one.journal.close()
            else:
                done(error if error is not None else opened[0])

        self._background.run(work, ended)

    def close(self) -> None:
        """What is under way ends without a word."""
        self._is_closed = True
