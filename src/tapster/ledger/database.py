# SPDX-License-Identifier: Apache-2.0
"""The ledger's file: making it, opening it, refusing it, and changing it atomically.

SQLite runs in WAL mode with `synchronous=NORMAL`. A transaction survives the death of
its process. A power cut may lose the last transactions; it ends their devices too. So
naming `next` may give a number again that it gave just before a power cut.

One trap decides how this module looks at the file. POSIX locks belong to the process,
and closing any descriptor of a file drops all of the process's locks on it (fcntl(2)).
SQLite knows this. So only SQLite may open the file, even for a look at its header:
another descriptor would unlock the file under another ledger of the same process.
"""

import os
from stat import S_ISDIR, S_ISREG

from tapster.errors import LedgerError, LedgerTooNew
from tapster.kernel import files
from tapster.ledger import sqlite
from tapster.ledger.failure import damaged, denied, failure
from tapster.light import Callable, Iterator, closing, contextmanager, suppress

APPLICATION_ID = 0x54415053
SCHEMA_VERSION = 2
"""The schema of the next release. Until that release, changes join the last
migration."""
BUSY_SECONDS = 30.0
"""How long a transaction waits for the transactions of other processes."""
LOG_TRIES = 100
"""How often switching to the write-ahead log is tried."""
LOOKS = 3
"""How often a file that looks damaged is looked at before it counts as damaged."""

MIGRATIONS: dict[int, str] = {
    1: """
    ALTER TABLE lease RENAME COLUMN link TO lower;
    ALTER TABLE lease RENAME COLUMN wired TO backends;
    ALTER TABLE lease RENAME COLUMN user TO caller_uid;
    ALTER TABLE history RENAME COLUMN user TO caller_uid;
    ALTER TABLE lease ADD COLUMN guard INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE lease ADD COLUMN standby INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE lease ADD COLUMN tap_owner INTEGER;
    ALTER TABLE lease ADD COLUMN tap_group INTEGER;
    ALTER TABLE lease ADD COLUMN open_at_release INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE lease ADD COLUMN labels TEXT NOT NULL DEFAULT '';
    ALTER TABLE history ADD COLUMN labels TEXT NOT NULL DEFAULT '';
    DROP INDEX lease_process;
    CREATE INDEX lease_process ON lease (pid, pid_start, pid_pidns, state)
        WHERE pid IS NOT NULL;
    DROP INDEX lease_manager;
    DROP INDEX lease_reserved;
    DROP INDEX lease_user;
    CREATE INDEX lease_unsettled ON lease (manager)
        WHERE manager IS NOT NULL OR state = 'reserved';
    CREATE INDEX lease_user ON lease (caller_uid, state) WHERE caller_uid IS NOT NULL;
    DROP INDEX history_name;
    CREATE INDEX history_name ON history (name, created);
    CREATE INDEX history_owner ON history (owner, created);
    CREATE INDEX history_mac ON history (mac, created);
    CREATE INDEX history_created ON history (created);
    CREATE INDEX history_ended ON history (ended);
    CREATE TABLE event (
        seq    INTEGER PRIMARY KEY,
        time   REAL NOT NULL,
        event  TEXT NOT NULL,
        lease  TEXT NOT NULL,
        name   TEXT NOT NULL,
        owner  TEXT NOT NULL,
        caller_uid INTEGER,
        detail TEXT NOT NULL
    ) STRICT;
    CREATE INDEX event_time ON event (time);
    CREATE INDEX event_caller ON event (caller_uid, time);
    CREATE INDEX event_lease ON event (lease);
    ALTER TABLE lease ADD COLUMN asked TEXT;
    ALTER TABLE stable ADD COLUMN caller_uid INTEGER;
    ALTER TABLE stable ADD COLUMN mac TEXT;
    ALTER TABLE counter ADD COLUMN caller_uid INTEGER;
    CREATE INDEX counter_caller ON counter (caller_uid) WHERE caller_uid IS NOT NULL;
    CREATE INDEX stable_mac ON stable (mac) WHERE mac IS NOT NULL;
    CREATE INDEX stable_caller ON stable (caller_uid, template)
        WHERE caller_uid IS NOT NULL;
    CREATE INDEX history_caller ON history (caller_uid, created);
    ALTER TABLE lease ADD COLUMN root_guard INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE lease ADD COLUMN bpdu_guard INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE lease ADD COLUMN outbound_pps INTEGER;
    ALTER TABLE lease ADD COLUMN redirect TEXT;
    CREATE INDEX lease_on_close ON lease (on_close)
        WHERE on_close AND state = 'active';
    """,
}
"""SQL that brings schema version n to n + 1."""


class Damage(Exception):
    """A table holds values that no release of Tapster writes."""


class Database:
    """One open ledger file. One thread at a time may use it.

    Every method raises LedgerDamaged, LedgerTooNew or LedgerError if the file cannot
    be used. Then nothing was changed.
    """

    def __init__(
        self,
        path: str,
        populate: Callable[[sqlite.Connection], None],
        *,
        make: bool,
        make_directory: bool,
    ) -> None:
        """Open the file. Make it if it is missing and `make` is set.

        Make its directory, too, if `make_directory` is set.

        `populate` is called once in the life of a ledger, inside the transaction that
        makes it.
        """
        self.path = path
        self.transactions = 0
        """The number of transactions until now: it stands for the latest."""
        try:
            _refuse_unknown(path)
            if make:
                _make_file(path, make_directory=make_directory)
            self.connection = _connect(path)
            try:
                self._prepare(populate)
                self._inode = os.stat(path).st_ino
            except BaseException:
                self.connection.close()
                raise
        except Exception as error:
            if (meaning := self._meaning(error)) is None:
                raise
            raise meaning from error

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def reading(self) -> "_Reading":
        """Lend the connection for reading."""
        return _Reading(self)

    def changing(self) -> "_Changing":
        """Lend the connection in a transaction, which excludes every other one.

        All of the block's changes happen, or, if it raises, none.
        """
        return _Changing(self)

    def begin(self) -> None:
        """Begin a transaction."""
        self._refuse_another_file()
        if self.connection.in_transaction:
            # Ctrl-C came between the end of a block and its commit, and the object of
            # that transaction is not deleted yet.
            _roll_back(self.connection)
        self.connection.execute("BEGIN IMMEDIATE")

    def undo(self, transaction: int) -> None:
        """Roll a transaction back, unless another one has begun since."""
        if self.transactions == transaction:
            with suppress(sqlite.Error):  # the error that led here says more
                _roll_back(self.connection)

    def raise_meaning(self, error: BaseException) -> None:
        """Raise the ledger's error for an error of SQLite or of the file."""
        if (meaning := self._meaning(error)) is not None:
            raise meaning from error

    def _meaning(self, error: BaseException) -> LedgerError | None:
        """Return the ledger's error for an error of SQLite or of the file."""
        if isinstance(error, sqlite.Error):
            return failure(self.path, error)
        if isinstance(error, Damage | UnicodeDecodeError):
            # SQLite's message is garbled, too, if it quotes what is in the file.
            return damaged(self.path, str(error))
        if isinstance(error, UnicodeEncodeError):
            return LedgerError(
                f"ledger {self.path!r} holds UTF-8 only, not {error.object!r}"
            )
        if isinstance(error, PermissionError):
            return denied(self.path)
        if isinstance(error, OSError):
            return LedgerError(f"ledger {self.path!r}: {error.strerror}")
        return None

    def _prepare(self, populate: Callable[[sqlite.Connection], None]) -> None:
        if _version(self.connection, self.path) < SCHEMA_VERSION:
            with _excluding(self.connection):
                version = _version(self.connection, self.path)
                if version == 0:
                    _make(self.connection, populate)
                    version = SCHEMA_VERSION
                for step in range(version, SCHEMA_VERSION):
                    _run(self.connection, MIGRATIONS[step])
                self.connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._use_log()

    def _use_log(self) -> None:
        """Switch to the write-ahead log, unless another process has done so.

        Do it even if the ledger is not new: its maker may have died before this step.
        Do it after the schema is written. So the schema is in the file itself, where
        an earlier release looks, and not only in the log. Two processes that switch
        at once refuse each other without waiting, whatever the timeout. So wait for
        an exclusive transaction, and try again.
        """
        for _ in range(LOG_TRIES):
            (mode,) = self.connection.execute("PRAGMA journal_mode").fetchone()
            if mode == "wal":
                return
            with suppress(sqlite.OperationalError):
                self.connection.execute("PRAGMA journal_mode = WAL")
                return
            with _excluding(self.connection):
                pass
        raise LedgerError(f"ledger {self.path!r} cannot be switched to its log")

    def _refuse_another_file(self) -> None:
        """Raise LedgerError if the path leads to another file: writes would be lost."""
        inode = None
        with suppress(FileNotFoundError):
            inode = os.stat(self.path).st_ino
        if inode != self._inode:
            raise LedgerError(
                f"ledger {self.path!r} was deleted or replaced while in use"
            )


# Classes, and not generators: these would take as long as the transaction.


class _Reading:
    """A block in which the ledger is read."""

    __slots__ = ("_file",)

    def __init__(self, file: Database) -> None:
        self._file = file

    def __enter__(self) -> sqlite.Connection:
        return self._file.connection

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            self._file.raise_meaning(error)


class _Changing:
    """A block in which the ledger is changed: one transaction.

    Ctrl-C may come at any instruction, also between the block and its end. Then the
    transaction is rolled back when this object is deleted.
    """

    __slots__ = ("_file", "_number")

    def __init__(self, file: Database) -> None:
        self._file = file
        file.transactions = self._number = file.transactions + 1

    def __enter__(self) -> sqlite.Connection:
        try:
            # BEGIN is inside the `try`: if Ctrl-C comes while it waits, it is raised
            # when the transaction has begun.
            self._file.begin()
            return self._file.connection
        except BaseException as error:
            self._fail(error)
            raise

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            self._fail(error)
            return
        try:
            self._file.connection.execute("COMMIT")
            self._number = 0
        except BaseException as failed:
            self._fail(failed)
            raise

    def _fail(self, error: BaseException) -> None:
        self._file.undo(self._number)
        self._number = 0
        self._file.raise_meaning(error)

    def __del__(self) -> None:
        if self._number:
            self._file.undo(self._number)


_OF_ANOTHER_KIND = "it is a database of another kind"


def _make_file(path: str, *, make_directory: bool) -> None:
    directory = os.path.dirname(path)
    if make_directory:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    try:
        files.make(path)  # this opens no file that exists; see the top
    except FileNotFoundError:
        if os.path.isdir(directory):
            raise  # no file can be made there, as in /proc
        raise LedgerError(
            f"there is no directory {directory!r} for the ledger {path!r}: "
            "make the directory, or give the path of another ledger"
        ) from None


def _connect(path: str) -> sqlite.Connection:
    # isolation_level None: transactions begin and end where the code says so.
    # Threads may share a Host, which lets in one thread at a time.
    # mode=rw: SQLite does not make the file, which may have been deleted just now.
    connection = sqlite.connect(
        f"file:{_quoted(path)}?mode=rw",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _refuse_unknown(path: str) -> None:
    """Refuse a file that is no ledger before SQLite can change anything.

    With `immutable` SQLite only reads. But it also ignores the journal and the log
    beside the file. If there is a journal, the file alone tells nothing. If there is
    a log, only the application id can be judged: it is in the file from the start.
    """
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return
    if not S_ISREG(there.st_mode):
        what = "directory" if S_ISDIR(there.st_mode) else "device, a pipe or a socket"
        raise LedgerError(f"{path!r} is a {what}: a ledger is a file")
    if there.st_size == 0:
        return
    for look in range(LOOKS):
        if os.path.exists(path + "-journal"):
            return
        try:
            _look(path)
            return
        except sqlite.DatabaseError:
            # A checkpoint of another process that is half done looks like damage.
            # During a checkpoint there is a log. Then SQLite, which waits for locks,
            # will judge. If the checkpoint has just ended, look again.
            if os.path.exists(path + "-wal"):
                return
            if look == LOOKS - 1:
                raise


def _look(path: str) -> None:
    """Look at the file and change nothing. Raise an error if it is no ledger."""
    uri = f"file:{_quoted(path)}?mode=ro&immutable=1"
    with closing(sqlite.connect(uri, uri=True)) as connection:
        if os.path.exists(path + "-wal"):
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            if application != APPLICATION_ID:
                raise damaged(path, _OF_ANOTHER_KIND)
            return
        if _version(connection, path) == 0:
            raise damaged(path, "it has no schema")
        connection.execute("SELECT sql FROM sqlite_schema").fetchall()
        if not connection.execute("SELECT 1 FROM meta").fetchone():
            raise damaged(path, "it has no settings")


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _version(connection: sqlite.Connection, path: str) -> int:
    """Return the version of the schema; 0 if the file is new."""
    # One statement: another process may be making the ledger at this moment.
    application, version, tables = connection.execute(
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema) "
        "FROM pragma_application_id, pragma_user_version"
    ).fetchone()
    if application == 0 and version == 0 and tables == 0:
        return 0
    if application != APPLICATION_ID:
        raise damaged(path, _OF_ANOTHER_KIND)
    if version > SCHEMA_VERSION:
        raise LedgerTooNew(
            f"ledger {path!r} has schema {version}; "
            f"this release knows schemas up to {SCHEMA_VERSION}"
        )
    if version == 0:
        raise damaged(path, "its schema has no version")
    return int(version)


@contextmanager
def _excluding(connection: sqlite.Connection) -> Iterator[None]:
    """Run a block in a transaction during which no other process can even read."""
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("COMMIT")
    except BaseException:
        _roll_back(connection)
        raise


def _roll_back(connection: sqlite.Connection) -> None:
    # SQLite itself rolls back after some errors, such as a full disk.
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _make(
    connection: sqlite.Connection, populate: Callable[[sqlite.Connection], None]
) -> None:
    from pkgutil import get_data  # the package may be in an archive

    schema = get_data("tapster.ledger", "schema.sql")
    assert schema is not None, "the package has it"
    _run(connection, schema.decode())
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    populate(connection)


def _run(connection: sqlite.Connection, script: str) -> None:
    """Run a script inside the open transaction: `executescript` would end it."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite.complete_statement(statement):
            connection.execute(statement)
            statement = ""
