"""Hostile files: the journal, the vote, CURRENT, ledgers, a node's papers. Damaged, or as good as new."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

from consensus.directory import LedgerDirectory
from consensus.engine import Journal, VoteRecord
from consensus.engine.opening import segment_name
from consensus.errors import Damaged, StorageFailed
from consensus.examining import examine
from consensus.ledger import CannotApply
from consensus.storage import open_ledger
from mesh import errors as mesh_errors
from mesh.credentials import ClientCredentials
from mesh.identity import Principal, key_pem, new_key
from node import folder as node_folder
from tests.engine.disk import SimDisk
from tests.hostile.mesh_of_one import Later, copy_of_template
from tests.hostile.mutating import bend, bend_text
from tests.hostile.papers import One, authority
from tests.hostile.running import Kind, Target

SEGMENT_BYTES = 1_024
PAGE_BYTES = 4_096
JOURNAL = Path("/journal")
VOTE = Path("/vote")
DOCTORED_FILES = 3
AT_ONCE_SHARE = 0.75


class Segments:
    """A journal of several segments, bent in one place or more, and opened again."""

    def __init__(self, rng: Random, folder: Path) -> None:
        self._disk = SimDisk()
        self._later = Later()
        journal = self._open(self._disk)
        for index in range(1, 60):
            journal.append(index, 1 + index // 25, b"\x00" + rng.randbytes(rng.randrange(1, 90)))
            if index == 35:
                journal.truncate_from(33)
                journal.append(33, 3, b"\x01")
                break
        for index in range(34, 55):
            journal.append(index, 3, b"\x00" + rng.randbytes(rng.randrange(1, 90)))
            if index % 5 == 0:
                journal.sync(lambda: None)
                self._later.drain()
        journal.sync(lambda: None)
        self._later.drain()
        self._rows = list(journal.rows)
        names = self._disk.names(JOURNAL)
        self._files = {name: self._disk.read(JOURNAL / name) for name in names}

    def _open(self, disk: SimDisk) -> Journal:
        return Journal(
            JOURNAL,
            background=self._later,
            segment_bytes_max=SEGMENT_BYTES,
            disk=disk,  # type: ignore[arg-type]  # it has the methods, not the class
        )

    def make(self, rng: Random) -> object:
        files = dict(self._files)
        for _ in range(rng.choice((1, 1, 1, 2))):
            name = rng.choice(sorted(files))
            match rng.randrange(10):
                case 0:
                    files.pop(name)
                case 1:
                    files[segment_name(rng.choice((0, 1, 3, 1 << 40)))] = files[name]
                case _:
                    files[name] = bend(rng, files[name])
            if not files:
                break
        return list(files.items())

    def feed(self, given: object) -> bool:
        disk = SimDisk()
        assert isinstance(given, list)
        for name, data in given:
            disk.replace(JOURNAL / name, data)
        try:
            journal = self._open(disk)
        except Damaged:
            return False
        rows = journal.rows
        known = {(command, index, term) for command, index, term in self._rows}
        # Nothing may come out of bent bytes that was never put in; what was cut is no such thing.
        made_up = [row for row in rows[1:] if row not in known and row[1] not in range(30, 37)]
        assert not made_up, f"entries that nobody wrote: {made_up[:3]}"
        last = journal.last_index
        journal.append(last + 1, max(9, journal.last_term), b"\x01")
        journal.sync(lambda: None)
        self._later.drain()
        assert journal.synced_index == last + 1, "an open journal takes nothing"
        journal.close()
        return True

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass


def _votes(rng: Random, folder: Path) -> Target:
    disk = SimDisk()
    record = VoteRecord(VOTE, disk=disk)  # type: ignore[arg-type]
    record.save(7, "n1")
    data = disk.read(VOTE)

    def take(given: object) -> None:
        assert isinstance(given, bytes)
        disk.replace(VOTE, given)
        found = VoteRecord(VOTE, disk=disk)  # type: ignore[arg-type]
        assert (found.term, found.voted_for) == (7, "n1"), "a bent vote was believed"

    return One(take, lambda rng: bend(rng, data), (Damaged,))


def longer_than_anything(path: Path) -> None:
    """A definition of 2^35 bytes, by the length with which its cell begins (fileformat2, 1.6)."""
    data = bytearray(path.read_bytes())
    header_at = data.index(b"tablesubtasksubtask") - 7  # its first byte is its own length
    assert data[header_at] == 7
    data[header_at - 3 : header_at + 2] = b"\xff" * 4 + b"\x7f"
    path.write_bytes(data)


def bent_page(rng: Random, data: bytes) -> bytes:
    at = rng.choice((0, rng.randrange(len(data) // PAGE_BYTES) * PAGE_BYTES))
    return data[:at] + bend(rng, data[at : at + PAGE_BYTES]) + data[at + PAGE_BYTES :]


class InForce(LedgerDirectory):
    """One that was prepared before: what is looked at is the ledger in it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.path = super().prepare()

    def prepare(self) -> Path:
        return self.path


def _ledgers(rng: Random, folder: Path) -> Target:
    """A ledger of which a page is bent: opened as a starting node opens it."""
    directory = InForce(copy_of_template(folder, 0))
    path = directory.path
    beside = [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm")]
    data = path.read_bytes()

    def take(given: object) -> None:
        for left in beside:
            left.unlink(missing_ok=True)
        path.write_bytes(given)  # type: ignore[arg-type]
        _, ledger, reader = open_ledger(directory)
        reader.close()
        ledger.close()

    return One(take, lambda rng: bent_page(rng, data), (CannotApply, Damaged, StorageFailed))


class Pointed:
    """A folder with two ledgers, and a CURRENT that is bent: it names one of them, or the folder is damaged."""

    NAMES = ("ledger-0", "ledger-1")

    def __init__(self, rng: Random, folder: Path) -> None:
        self._directory = LedgerDirectory(folder / "state")
        self._directory.prepare()
        for path in (self._directory.journal / "1", self._directory.vote):
            path.write_bytes(b"x")
        self._stand()
        self._current = self._directory.root / "CURRENT"

    def _stand(self) -> None:
        for name in self.NAMES:
            (self._directory.root / name).mkdir(exist_ok=True)

    def make(self, rng: Random) -> object:
        return bend(rng, rng.choice(self.NAMES).encode() + b"\n")

    def feed(self, given: object) -> bool:
        assert isinstance(given, bytes)
        self._current.write_bytes(given)
        try:
            path = self._directory.prepare()
        except Damaged:
            assert given not in [name.encode() + b"\n" for name in self.NAMES]
            return False
        assert path == self._directory.root / given.decode().strip() / "ledger.db"
        # The other is gone now.
        self._stand()
        return True

    def check(self) -> None:
        """What is refused leaves every ledger where it was, or the next start would lose it."""
        found = sorted(path.name for path in self._directory.root.glob("ledger-*"))
        assert found == list(self.NAMES), found

    def close(self) -> None:
        pass


class Doctored:
    """A stopped node's folder with files bent, looked at by the doctor, which raises nothing.

    Most often all that it checks by themselves are bent at once, sometimes one after the other.
    """

    def __init__(self, rng: Random, folder: Path) -> None:
        self._root, self._folder = copy_of_template(folder, 0), folder
        paths = [path for path in sorted(self._root.rglob("*")) if path.is_file()]
        self._files = {path: path.read_bytes() for path in paths}
        assert len(self._files) == DOCTORED_FILES + 1, "all but CURRENT are bent at once"
        assert examine(self._root, self._aside()).is_sound

    def _aside(self) -> Path:
        aside = self._folder / "aside"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        return aside

    def make(self, rng: Random) -> object:
        """Names and contents, DOCTORED_FILES of them, and whether they are bent at once."""
        paths = list(self._files)
        is_at_once = rng.random() < AT_ONCE_SHARE
        if is_at_once:
            # Without a CURRENT no ledger would be looked at.
            chosen = rng.sample([p for p in paths if p.name != "CURRENT"], DOCTORED_FILES)
        else:
            chosen = rng.choices(paths, k=DOCTORED_FILES)
        named = [(str(p.relative_to(self._root)), self._bent(rng, p)) for p in chosen]
        return [is_at_once, *named]

    def _bent(self, rng: Random, path: Path) -> bytes:
        data = self._files[path]
        return bent_page(rng, data) if path.suffix == ".db" else bend(rng, data)

    def feed(self, given: object) -> int:
        assert isinstance(given, list)
        is_at_once, *named = given
        if is_at_once:
            return len(named) * self._is_found_sound(dict(named))
        return sum(self._is_found_sound({name: bent}) for name, bent in named)

    def _is_found_sound(self, bent: dict[str, bytes]) -> bool:
        paths = {self._root / name: data for name, data in bent.items()}
        for path, data in paths.items():
            path.write_bytes(data)
        try:
            found = examine(self._root, self._aside())
        finally:
            for wal in self._root.rglob("ledger.db-*"):
                wal.unlink()
            for path in paths:
                path.write_bytes(self._files[path])
        vote = self._root / "vote"
        is_vote_bent = paths.get(vote, self._files[vote]) != self._files[vote]
        assert not (is_vote_bent and found.is_sound), "a bent vote was found sound"
        return found.is_sound

    def check(self) -> None:
        """The bent file was put back: the folder is sound again."""
        assert examine(self._root, self._aside()).is_sound

    def close(self) -> None:
        pass


def _identities(rng: Random, folder: Path) -> Target:
    path = folder / "node.json"
    identity = node_folder.Identity("m1", "n1", "one", "h:1", True, {"n1": "h:1"}, {"n2": "h:2"})
    node_folder.write_identity(path, identity)
    text = path.read_text(encoding="utf-8")
    values = (None, 1, [], {}, "", "x", [1], {"a": 1}, True, "\x00", [[]] * 9)

    def make(rng: Random) -> object:
        if rng.random() < 0.4:
            content = json.loads(text)
            content[rng.choice(list(content))] = rng.choice(values)
            return json.dumps(content).encode()
        if rng.random() < 0.01:
            return b"[" * 60_000
        return bend_text(rng, text).encode("utf-8", "surrogatepass")

    def take(given: object) -> None:
        path.write_bytes(given)  # type: ignore[arg-type]
        found = node_folder.read_identity(path)
        names = (found.mesh_id, found.node_id, found.name, found.address)
        assert all(isinstance(one, str) for one in names), f"no texts: {names}"
        for told in (found.voters, found.members):
            assert all(isinstance(one, str) for pair in told.items() for one in pair), told

    return One(take, make, (node_folder.BootError,))


def _papers(rng: Random, folder: Path) -> Target:
    key, place = new_key(), folder / "papers"
    certificate = authority().issue(key.public_key(), Principal("client", "c"))
    made = ClientCredentials(authority().certificate_pem, certificate, key_pem(key))
    made.save(place)
    originals = {path.name: path.read_bytes() for path in sorted(place.iterdir())}
    last = ""

    def make(rng: Random) -> object:
        name = rng.choice(sorted(originals))
        return name.encode() + b"\n" + bend(rng, originals[name])

    def take(given: object) -> None:
        nonlocal last
        assert isinstance(given, bytes)
        name, _, data = given.partition(b"\n")
        if last:
            (place / last).write_bytes(originals[last])
        last = name.decode()
        (place / last).write_bytes(data)
        found = ClientCredentials.load(place)
        found.check(where="papers")

    return One(take, make, (mesh_errors.IdentityError,))


# Those that cost little come first: most is known soon.
KINDS = (
    Kind("file-journal", Segments, round_inputs=1_000, ci_inputs=500),
    Kind("file-vote", _votes),
    Kind("file-identity", _identities),
    Kind("file-papers", _papers, ci_inputs=500),
    Kind("file-current", Pointed, ci_inputs=200),
    Kind("file-ledger", _ledgers, ci_inputs=200),
    Kind(
        "file-doctored",
        Doctored,
        round_inputs=1_800,
        check_every_inputs=600,
        ci_inputs=60,
        inputs_per_feed=DOCTORED_FILES,
    ),
)
