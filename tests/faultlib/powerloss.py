"""What a power loss may leave of a folder, told from the log of all that was done to it.

`begin` keeps a copy of the folder, taken for durable, and empties the log. After the processes were
killed, `lose_power` makes the folder what a disk could hold: everything that a sync which had
returned made durable, and of the rest some, as `rng` chooses: nothing, all, the first so many, any
of them, or the last one torn at a sector, with garbage there.

A file's sync does not make its name durable, only that of its folder does. Names of a journalling
file system come back in order (`Names.ORDERED`, as ext4 and XFS do); `Names.ANY` keeps any of the
unsynced ones. Renames are atomic in both. Before it changes anything it checks that the log tells
the whole story: replayed in full it must give what is in the folder now.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from tests.faultlib import oplog
from tests.faultlib.oplog import Kind, LogIncomplete, Record

SECTOR_BYTES = 512
UNSEEN = ("-shm", ".log")  # as in setup.c


class Names(Enum):
    """In which order unsynced names reach the disk."""

    ORDERED = "ordered"
    ANY = "any"


@dataclass(slots=True)
class Change:
    """One write or truncation of one file."""

    record: Record
    is_durable: bool = False
    is_forsaken: bool = False  # a sync of it failed: no later one makes it durable


@dataclass(slots=True, eq=False)
class File:
    """What a file held at `begin`, and what was done to it since."""

    base: bytes = b""
    changes: list[Change] = field(default_factory=list)


@dataclass(slots=True)
class NameChange:
    """One change of names: `file` is what the name means after it, or meant before it."""

    record: Record
    file: File | None
    is_durable: bool = False


Content = dict[str, bytes | None]  # by name below a folder; None: a folder


@dataclass(frozen=True, slots=True)
class Loss:
    """What was lost: for whoever tells of a run."""

    changes: int
    lost: int
    torn: int
    names: int
    names_lost: int


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """What a file holds after the loss; one object for all names of one file."""

    content: bytes


Tree = dict[str, File | None]  # None: a folder
Left = dict[str, Held | None]


def begin(folder: Path, log: Path) -> None:
    """From here on is logged; what is there now counts as durable. No process may be at work."""
    base = _base(log)
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    inodes: dict[str, int] = {}
    for name, path in _entries(folder):
        inodes[name] = path.stat().st_ino
        if path.is_dir():
            (base / name).mkdir()
        else:
            shutil.copyfile(path, base / name)
    (base.parent / f"{base.name}.json").write_text(json.dumps(inodes))
    log.write_bytes(b"")


def lose_power(
    folder: Path, log: Path, rng: random.Random, *, names: Names = Names.ORDERED
) -> Loss:
    """Rewrite the folder to what a power loss could leave, and begin anew. LogIncomplete: no log."""
    left, loss = _choose(folder, log, rng, names)
    _write_tree(folder, left)
    begin(folder, log)
    return loss


def what_may_be_left(
    folder: Path, log: Path, rng: random.Random, *, names: Names = Names.ORDERED
) -> Content:
    """The same as names and contents (None: a folder), leaving folder and log as they are."""
    left, _ = _choose(folder, log, rng, names)
    return {name: None if held is None else held.content for name, held in left.items()}


def read_folder(folder: Path) -> Content:
    """What is in a folder, but for what is not logged."""
    return {n: None if path.is_dir() else path.read_bytes() for n, path in _entries(folder)}


def write_folder(folder: Path, content: Content) -> None:
    """Make this the content of the folder, instead of what is there."""
    folder.mkdir(exist_ok=True)
    _write_tree(folder, {n: None if d is None else Held(d) for n, d in content.items()})


class _Story:
    """The log, understood: the files, their changes, the changes of names, and what is durable."""

    def __init__(self, log: Path) -> None:
        self.files: dict[int, File] = {}
        self.base: Tree = {}
        self.names: list[NameChange] = []
        self._created: dict[int, NameChange] = {}
        base = _base(log)
        inodes = json.loads((base.parent / f"{base.name}.json").read_text())
        for name, path in _entries(base):
            if path.is_dir():
                self.base[name] = None
            else:
                self.base[name] = self.files.setdefault(inodes[name], File(path.read_bytes()))
        self.tree: Tree = dict(self.base)
        self.records = oplog.read(log)
        for record in self.records:
            self._take(record)

    def _take(self, record: Record) -> None:
        match record.kind:
            case Kind.WRITE | Kind.TRUNCATE:
                file = self.files.get(record.file)
                if file is None:
                    raise LogIncomplete(f"a write to a file never named: {record.ticket}")
                file.changes.append(Change(record))
            case Kind.SYNC | Kind.SYNC_FAILED:
                file = self.files.get(record.file)
                for change in file.changes if file is not None else []:
                    if change.record.ticket < record.offset and not change.is_forsaken:
                        failed = record.kind is Kind.SYNC_FAILED and not change.is_durable
                        change.is_forsaken = failed
                        change.is_durable = not failed
            case Kind.SYNC_FOLDER:
                for named in self.names:
                    if named.record.ticket < record.offset and record.name in _parents(named):
                        named.is_durable = True
            case Kind.NAMED:
                created = self._created.get(record.offset)
                if created is not None and created.file is not None:
                    self.files[record.file] = created.file
            case _:
                self._take_name(record)

    def _take_name(self, record: Record) -> None:
        change = NameChange(record, self.tree.get(record.name))
        if record.kind is Kind.CREATE:
            change.file = File()
            self._created[record.ticket] = change
        if record.kind is Kind.RENAME and change.file is None:
            raise LogIncomplete(f"a folder was renamed: {record.name}")
        self.names.append(change)
        _rename_in(self.tree, change)


def _choose(folder: Path, log: Path, rng: random.Random, names: Names) -> tuple[Left, Loss]:
    story = _Story(log)
    _assert_complete(folder, story)
    chosen = _choose_names(story.names, rng, names)
    tree = dict(story.base)
    for change in chosen:
        _rename_in(tree, change)
    held: dict[File, Held] = {}
    lost = torn = total = 0
    for file in [file for _, file in sorted(tree.items()) if file is not None]:
        if file not in held:
            kept, is_torn = _choose_changes(file, rng)
            held[file] = Held(_content(file, kept))
            total += len(file.changes)
            lost += max(0, len(file.changes) - len(kept))
            torn += is_torn
    left = {name: None if file is None else held[file] for name, file in tree.items()}
    return left, Loss(total, lost, torn, len(story.names), len(story.names) - len(chosen))


def _rename_in(tree: Tree, change: NameChange) -> None:
    """Make the change where it still means something: what it stands on may be lost."""
    record, target = change.record, change.record.data.decode("utf-8", "surrogateescape")
    made = target if record.kind in (Kind.RENAME, Kind.LINK) else record.name
    has_folder = os.path.dirname(made) == "" or os.path.dirname(made) in tree
    match record.kind:
        case Kind.CREATE if has_folder:
            tree[made] = change.file
        case Kind.MKDIR if has_folder:
            tree[made] = None
        case Kind.RENAME | Kind.LINK if has_folder:
            if record.kind is Kind.RENAME and tree.get(record.name) is change.file:
                tree.pop(record.name, None)
            tree[made] = change.file
        case Kind.UNLINK | Kind.RMDIR if tree.get(record.name, change) is change.file:
            for name in [name for name in tree if name.startswith(record.name + "/")]:
                del tree[name]
            del tree[record.name]
        case _:
            pass


def _parents(change: NameChange) -> set[str]:
    """The folders whose sync makes the change durable: of a rename, that of the new name."""
    record = change.record
    if record.kind in (Kind.RENAME, Kind.LINK):
        return {os.path.dirname(record.data.decode("utf-8", "surrogateescape"))}
    return {os.path.dirname(record.name)}


def _choose_names(changes: list[NameChange], rng: random.Random, order: Names) -> list[NameChange]:
    durable = [at for at, change in enumerate(changes) if change.is_durable]
    if order is Names.ORDERED:
        # One journal for all names: what is durable has what came before it with it.
        first = durable[-1] + 1 if durable else 0
        return changes[: rng.choice((first, len(changes), rng.randint(first, len(changes))))]
    share = rng.choice((0.0, 0.3, 0.7, 1.0))
    return [change for change in changes if change.is_durable or rng.random() < share]


def _choose_changes(file: File, rng: random.Random) -> tuple[list[Record], bool]:
    """The changes that reached the disk, in order; whether one of them did only in part."""
    open_ones = [change for change in file.changes if not change.is_durable]
    how = rng.choice(("none", "all", "first", "any", "torn"))
    count = rng.randint(0, len(open_ones))
    if how == "any":
        kept = {id(change) for change in open_ones if rng.random() < 0.5}
    else:
        count = {"none": 0, "all": len(open_ones)}.get(how, count)
        kept = {id(change) for change in open_ones[:count]}
    last = open_ones[count - 1] if how == "torn" and count else None
    records: list[Record] = []
    for change in file.changes:
        if change is last and change.record.kind is Kind.WRITE:
            records += _torn(change.record, rng)
        elif change.is_durable or id(change) in kept:
            records.append(change.record)
    return records, last is not None


def _torn(record: Record, rng: random.Random) -> list[Record]:
    """Some of its sectors, each whole, but for one in which its bytes may be garbage."""
    start, end = record.offset, record.offset + len(record.data)
    sectors = range(start // SECTOR_BYTES, (end - 1) // SECTOR_BYTES + 1) if end > start else []
    garbage = rng.choice(sectors) if sectors and rng.random() < 0.5 else -1
    parts: list[Record] = []
    for sector in sectors:
        low, high = max(start, sector * SECTOR_BYTES), min(end, (sector + 1) * SECTOR_BYTES)
        data = record.data[low - start : high - start]
        if sector == garbage:
            data = rng.randbytes(len(data))
        elif rng.random() < 0.5:
            continue
        parts.append(Record(Kind.WRITE, record.ticket, record.call, record.file, low, "", data))
    return parts


def _content(file: File, changes: list[Record]) -> bytes:
    content = bytearray(file.base)
    for change in changes:
        end = change.offset + len(change.data)
        if change.kind is Kind.TRUNCATE:
            del content[change.offset :]
        if len(content) < end:
            content += bytes(end - len(content))
        content[change.offset : end] = change.data
    return bytes(content)


def _assert_complete(folder: Path, story: _Story) -> None:
    """Replayed in full the log gives the folder, but for the call each process died in."""
    found = read_folder(folder)
    told = {
        name: None if file is None else _content(file, [change.record for change in file.changes])
        for name, file in story.tree.items()
    }
    differing = {name for name in found.keys() | told.keys() if found.get(name) != told.get(name)}
    differing |= found.keys() ^ told.keys()
    last = next((r for r in reversed(story.records) if r.kind is not Kind.NAMED), None)
    if differing and last is not None:
        undone = {last.name, last.data.decode("utf-8", "surrogateescape")} - {""}
        undone |= {n for n, f in story.tree.items() if f and f is story.files.get(last.file)}
        differing -= undone
    if differing:
        raise LogIncomplete(f"the log does not tell how these came to be: {sorted(differing)}")


def _write_tree(folder: Path, left: Left) -> None:
    """Exactly this, files written anew; what has several names keeps them as one file."""
    modes = {name: path.stat().st_mode for name, path in _entries(folder)}
    shutil.rmtree(folder)
    folder.mkdir()
    written: dict[Held, Path] = {}
    for name, held in sorted(left.items()):
        path = folder / name
        if held is None:
            path.mkdir(mode=modes.get(name, 0o700) & 0o7777)
        elif held in written:
            os.link(written[held], path)
        else:
            path.write_bytes(held.content)
            path.chmod(modes.get(name, 0o600) & 0o7777)
            written[held] = path


def _entries(folder: Path) -> list[tuple[str, Path]]:
    """Folders and regular files below, by name, but for those that are not logged."""
    found = sorted(path for path in folder.rglob("*") if not path.is_symlink())
    return [
        (str(path.relative_to(folder)), path)
        for path in found
        if path.is_dir() or (path.is_file() and not path.name.endswith(UNSEEN))
    ]


def _base(log: Path) -> Path:
    return log.with_name(log.name + ".base")
