"""Where answers are kept: an SQLite file, whose every commit is on disk before the observer goes on.

A session is a list of steps and how many of them are done. A step is answered once: the same answer again is
acknowledged and changes nothing, another one is refused, and so is a step whose turn has not come. So a page may send
an answer as often as it likes until it hears of it.
"""

import contextlib
import datetime
import hashlib
import json
import re
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cprl_jax.runtime.errors import UserError
from cprl_jax.study import catalogue as catalogue_lib
from cprl_jax.study import plan, records
from cprl_jax.study import settings as settings_lib
from cprl_jax.study.catalogue import Catalogue
from cprl_jax.study.settings import Settings

FILE = "answers.sqlite"
TOKEN = re.compile(r"[0-9a-f]{64}")
_CODE = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"  # nothing that looks like something else
_TABLES = """
CREATE TABLE IF NOT EXISTS observers (
  observer INTEGER PRIMARY KEY AUTOINCREMENT, token TEXT NOT NULL UNIQUE, study TEXT NOT NULL, source TEXT NOT NULL,
  participant TEXT NOT NULL, started TEXT NOT NULL, finished TEXT, done INTEGER NOT NULL DEFAULT 0, code TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS steps (
  observer INTEGER NOT NULL REFERENCES observers ON DELETE CASCADE, position INTEGER NOT NULL, id TEXT NOT NULL,
  role TEXT, pair TEXT, plan TEXT NOT NULL, record TEXT, received TEXT, PRIMARY KEY (observer, position));
CREATE INDEX IF NOT EXISTS steps_by_pair ON steps (role, pair);
CREATE TABLE IF NOT EXISTS events (
  observer INTEGER NOT NULL REFERENCES observers ON DELETE CASCADE, position INTEGER NOT NULL,
  number INTEGER NOT NULL, event TEXT NOT NULL, PRIMARY KEY (observer, position, number));
"""


class Refused(Exception):
    """A request that is not met; `status` is that of HTTP, the message is for the observer's page."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Session(NamedTuple):
    """One observer. `steps` are whole: `plan.public` has what the page may know. `code` is '' before the end."""

    observer: int
    steps: list[plan.Step]
    done: int
    code: str


class Store:
    """Answers of one study. May be used from several threads, and by several processes at once."""

    def __init__(self, folder: Path, settings: Settings, catalogue: Catalogue):
        self.settings, self.catalogue = settings, catalogue
        self._lock = threading.Lock()
        path = folder / FILE
        try:
            self._file = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
            self._file.execute("PRAGMA journal_mode = WAL")
            # FULL: a commit waits until the disk has it. Without, a power cut would undo answers already acknowledged.
            self._file.execute("PRAGMA synchronous = FULL")
            self._file.execute("PRAGMA foreign_keys = ON")
            self._file.execute("PRAGMA secure_delete = ON")
            self._file.executescript(_TABLES)
            other = self._file.execute("SELECT 1 FROM observers WHERE study != ?", (catalogue.study,)).fetchone()
        except sqlite3.Error as error:
            raise UserError(f"{path} cannot be used ({error}); move it away if it is no file of a study") from None
        if other:
            raise UserError(f"{path} has answers about other images or settings; begin another study by --study=NAME")

    def close(self) -> None:
        self._file.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """All or nothing of what is done inside."""
        with self._lock:
            self._file.execute("BEGIN IMMEDIATE")
            try:
                yield self._file
                self._file.execute("COMMIT")
            except BaseException:
                if self._file.in_transaction:  # a full disk has ended it already
                    self._file.execute("ROLLBACK")
                raise

    def begin(self, token: str, participant: str = "", *, number: int = 0) -> Session:
        """The session of this token; a new one if there is none.

        Args:
          token: 64 hexadecimal digits, chosen at random by the page: whoever has it is the observer. Only its hash is
            kept.
          participant: how whoever sent the link calls the observer.
          number: of a plan of a folder of files (`plan.of_file`); 0 makes one, balanced with all others.

        Raises:
          Refused: no token, a name that cannot be kept, or as many sessions as the settings allow.
        """
        steps = plan.of_file(self.settings, self.catalogue, number) if number else None
        with self._writing() as file:
            self._begin(file, token, participant, steps)
        return self.session(token)

    def _begin(self, file: sqlite3.Connection, token: str, participant: str, steps: list[plan.Step] | None) -> None:
        """Makes a session, unless there is one of this token; with a new plan where no `steps` are given."""
        if not isinstance(token, str) or not TOKEN.fullmatch(token):
            raise Refused(400, "the token of a session has 64 hexadecimal digits")
        if not isinstance(participant, str) or len(participant) > 100 or not records.is_unicode(participant):
            raise Refused(400, "the name of a participant is a text of at most 100 characters")
        if file.execute("SELECT 1 FROM observers WHERE token = ?", (_hash(token),)).fetchone():
            return
        begun = file.execute("SELECT count(*) FROM observers").fetchone()[0]
        if steps is None and begun >= self.settings.most_observers:
            raise Refused(403, "the study has all the observers it needs; thank you for your interest")
        code = "".join(secrets.choice(_CODE) for _ in range(8))
        source = "server" if steps is None else "file"
        observer = file.execute(
            "INSERT INTO observers (token, study, source, participant, started, code) VALUES (?, ?, ?, ?, ?, ?)",
            (_hash(token), self.catalogue.study, source, participant, now(), code),
        ).lastrowid
        if steps is None:
            steps = plan.make(self.settings, self.catalogue, (0, observer), self._counts(file))
        file.executemany(
            "INSERT INTO steps (observer, position, id, role, pair, plan) VALUES (?, ?, ?, ?, ?, ?)",
            [
                (observer, place, step["id"], step.get("role"), step.get("pair"), json.dumps(step))
                for place, step in enumerate(steps)
            ],
        )

    def take(self, token: str, participant: str, number: int, code: str, letters: Sequence[tuple]) -> int:
        """Keeps a session that took place without a server, all of it or nothing; returns how many steps are new.

        Args:
          token, participant, number: as in `begin`.
          code: the completion code that the observer was shown.
          letters: (step, record, events), as for `submit`; those of the same session that are kept already change
            nothing.

        Raises:
          Refused: as `begin` and `submit` do.
        """
        steps = plan.of_file(self.settings, self.catalogue, number)  # may take seconds, in which others can write
        with self._writing() as file:
            self._begin(file, token, participant, steps)
            _, before, _ = self._observer(token)
            for letter in letters:
                self._submit(file, token, *letter)
            file.execute("UPDATE observers SET code = ? WHERE token = ?", (code, _hash(token)))
            _, after, _ = self._observer(token)
        return after - before

    def _counts(self, file: sqlite3.Connection) -> dict[str, int]:
        """pair -> observers who have answered it, or still may."""
        rows = file.execute(
            "SELECT pair, count(*) FROM steps JOIN observers USING (observer) WHERE role = ? AND "
            "(record IS NOT NULL OR (finished IS NULL AND started > ?)) GROUP BY pair",
            (plan.COUNTED, self._oldest()),
        )
        return dict(rows.fetchall())

    def _oldest(self) -> str:
        """Unfinished sessions that began before this moment are over."""
        return now(-self.settings.hours)

    def session(self, token: str) -> Session:
        """The state of a session; Refused if there is none, or it is too old to be taken up again."""
        with self._lock:
            observer, done, code = self._observer(token)
            rows = self._file.execute("SELECT plan FROM steps WHERE observer = ? ORDER BY position", (observer,))
            steps = [json.loads(text) for (text,) in rows]
        return Session(observer, steps, done, code if done == len(steps) else "")

    def check(self, token: str) -> None:
        """Raises Refused as `session` does."""
        with self._lock:
            self._observer(token)

    def _observer(self, token: str) -> tuple[int, int, str]:
        row = self._file.execute(
            "SELECT observer, done, code, finished, started, source FROM observers WHERE token = ?", (_hash(token),)
        ).fetchone()
        if row is None:
            raise Refused(401, "there is no such session")
        observer, done, code, finished, started, source = row
        if finished is None and source == "server" and started <= self._oldest():
            raise Refused(410, f"this session is over: it was begun more than {self.settings.hours:g} hours ago")
        return observer, done, code

    def submit(self, token: str, step: str, record: Any, events: Any = ()) -> int:
        """Keeps what a page sends for a step; returns how many steps are done. On disk when it returns.

        Raises:
          Refused: no such session or step, it is not this step's turn, it was answered otherwise before, or the record
            or an event is not what `records` asks for.
        """
        with self._writing() as file:
            return self._submit(file, token, step, record, events)

    def _submit(self, file: sqlite3.Connection, token: str, step: Any, record: Any, events: Any) -> int:
        observer, done, _ = self._observer(token)
        if not isinstance(step, str) or not records.is_unicode(step):
            raise Refused(404, "there is no such step in this session")
        found = file.execute(
            "SELECT position, plan, record FROM steps WHERE observer = ? AND id = ?", (observer, step)
        ).fetchone()
        if found is None:
            raise Refused(404, "there is no such step in this session")
        position, kind, before = found[0], json.loads(found[1])["kind"], found[2]
        if trouble := records.problem(kind, record, answers=self.settings.answers):
            raise Refused(422, f"the record of a step of kind {kind}: {trouble}")
        if not isinstance(events, list | tuple) or len(events) > records.MOST_EVENTS:
            raise Refused(422, f"events are a list of at most {records.MOST_EVENTS}")
        for event in events:
            if trouble := records.problem("event", event):
                raise Refused(422, f"an event: {trouble}")
        text = json.dumps(record, sort_keys=True)
        if before is not None:
            if before != text:
                raise Refused(409, "this step was answered already, in another way")
            return done
        if position != done:
            raise Refused(409, "it is not this step's turn")
        moment = now()
        file.execute(
            "UPDATE steps SET record = ?, received = ? WHERE observer = ? AND position = ?",
            (text, moment, observer, position),
        )
        file.executemany(
            "INSERT INTO events (observer, position, number, event) VALUES (?, ?, ?, ?)",
            [(observer, position, number, json.dumps(event)) for number, event in enumerate(events)],
        )
        file.execute(
            "UPDATE observers SET done = done + 1, finished = CASE WHEN (SELECT count(*) FROM steps WHERE "
            "steps.observer = observers.observer) = done + 1 THEN ? END WHERE observer = ?",
            (moment, observer),
        )
        return done + 1

    def withdraw(self, token: str) -> None:
        """Deletes a session and all that belongs to it, as its observer asks; also an old one."""
        with self._writing() as file:
            if not file.execute("DELETE FROM observers WHERE token = ?", (_hash(token),)).rowcount:
                raise Refused(401, "there is no such session")
        self._forget()

    def delete(self, observer: int) -> bool:
        """Deletes an observer and all answers; whether there was such a one."""
        if not 0 < observer < 2**63:  # SQLite's integers
            return False
        with self._writing() as file:
            found = file.execute("DELETE FROM observers WHERE observer = ?", (observer,)).rowcount
        self._forget()
        return bool(found)

    def _forget(self) -> None:
        """Takes what was deleted out of the log of writes, too."""
        with self._lock:
            self._file.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def rows(self, table: str) -> list[dict[str, Any]]:
        """The rows of a table of `records.TABLES`, each with all of its columns; None where nothing is known.

        Answers to test pairs of sessions that are not finished are among them.
        """
        columns = [column.name for column in records.TABLES[table]]
        return [{name: row.get(name) for name in columns} for row in getattr(self, f"_{table}")()]

    def _answers(self) -> Iterator[Mapping[str, Any]]:
        query = "SELECT observer, position, id, plan, record, received FROM steps WHERE record IS NOT NULL"
        for observer, position, step, text, record, received in self._all(f"{query} ORDER BY observer, position"):
            planned = json.loads(text)
            if planned["kind"] != "trial":
                continue
            row = {**planned, **json.loads(record), "observer": observer, "position": position, "step": step}
            row["correct"] = row["answer"] == row["expected"] if row["expected"] else None
            yield row | {"trial": self.settings.trial, "received": received}

    def _observers(self) -> Iterator[Mapping[str, Any]]:
        told: dict[int, dict[str, Any]] = {}
        query = "SELECT observer, record FROM steps WHERE record IS NOT NULL AND role IS NULL"
        for observer, record in self._all(query):
            told.setdefault(observer, {}).update(json.loads(record))
        query = (
            "SELECT observer, source, participant, started, finished, done, code, (SELECT count(*) FROM steps WHERE "
        )
        query += "steps.observer = observers.observer) FROM observers ORDER BY observer"
        for observer, source, participant, started, finished, done, code, steps in self._all(query):
            row = {"observer": observer, "source": source, "participant": participant, "started": started}
            row |= {"finished": finished, "done": done, "steps": steps, "completion_code": code if finished else None}
            yield told.get(observer, {}) | row

    def _events(self) -> Iterator[Mapping[str, Any]]:
        query = "SELECT events.observer, steps.id, event FROM events JOIN steps USING (observer, position)"
        for observer, step, event in self._all(f"{query} ORDER BY events.observer, position, number"):
            yield {**json.loads(event), "observer": observer, "step": step}

    def _pairs(self) -> Iterator[Mapping[str, Any]]:
        for pair in self.catalogue.pairs:
            for candidate in pair.candidates:
                yield {**candidate, "pair": pair.id, "image": pair.image}

    def _all(self, query: str) -> Sequence[tuple]:
        with self._lock:
            return self._file.execute(query).fetchall()


def open_store(folder: Path) -> Store:
    """The answers of the study in `folder` (RUN/study), which was begun; raises UserError where there is none."""
    return Store(folder, settings_lib.read(folder), catalogue_lib.read(folder))


def now(hours: float = 0.0) -> str:
    """The time in UTC, to the millisecond, `hours` from now; earlier ones sort first."""
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours)
    return moment.isoformat(timespec="milliseconds")


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
