"""A game that is played, and occurrence records that change, while somebody else reads the tables.

What a reader must find at a version is asked of our own tables at that version, by DuckDB.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import threading
from collections import Counter, defaultdict

import duckdb
import httpx2
from obstore.store import S3Store
from run_example import ROOT, Run, until

from headrace.model.clock import SystemClock
from headrace.tables.delta import DeltaTables
from headrace.testing.object_server import BUCKET

OCCURRENCES = '''

class Occurrence(Record):
    """An occurrence record as the biodiversity example has it, with the columns that we ask for."""

    id: str
    kingdom_normalised: str
    species: str
    seen_at: int


seen = pipeline.topic("seen", Occurrence, partitions=3, key="id", store=False)
pipeline.table(
    "occurrences",
    "SELECT id, kingdom_normalised, species, seen_at FROM seen",
    key="id",
    version="seen_at",
)
'''
KINGDOMS = ("Animalia", "Plantae", "Fungi", "not given")
HOSTS = ("user1.comcast.com", "user2.att.com", "user3.example.com")
RECORDS = 40
"""Occurrence records, each of which is seen again and again, in another kingdom."""
EARLIER = 3
"""The version that pages ask for, where they ask for one."""
VERSIONS, ASKED_MAX = 4, 200
PAUSE_S = 0.2
EVERY = "1 s"
"""Of an epoch: longer than the example's, for the machine has other things to do."""


def write_pipeline(folder):
    """Write the game example's pipeline with the occurrences beside; return its path."""
    path = folder / "pipeline.py"
    game = (ROOT / "examples" / "game" / "pipeline.py").read_text()
    slower = game.replace('Pipeline("game")', f'Pipeline("game", every="{EVERY}")')
    assert slower != game
    path.write_text(slower + OCCURRENCES)
    return path


class Sent:
    """What was sent, turn by turn, and the plain counts of it."""

    def __init__(self):
        self.messages, self.ends, self.seen = [], [], {}

    def turn(self, turn):
        """Return the records of a turn by their topic."""
        made = {"MessageHistory": list(acts(turn)), "seen": list(sightings(turn))}
        self.messages += made["MessageHistory"]
        self.ends.append(len(self.messages))
        self.seen |= {record["id"]: record for record in made["seen"]}
        return made

    def by_type(self):
        return Counter(message["event_type"] for message in self.messages)

    def asked_by_host(self):
        """Return the programs of those who asked, by host."""
        found = defaultdict(list)
        for message in self.messages:
            if message["event_type"] == "request_group":
                found[message["Host"]].append(message["User-Agent"])
        return found

    def by_kingdom(self):
        return Counter(record["kingdom_normalised"] for record in self.seen.values())

    def messages_until(self, turns):
        return self.ends[turns - 1]


class Player:
    """Sends acts and records until it is told to stop. A context manager."""

    def __init__(self, url):
        self._client = httpx2.Client(base_url=url, timeout=30)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._play)
        self._failure = None

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()
        self._client.close()
        assert self._failure is None, self._failure

    def _play(self):
        sent = Sent()
        try:
            for turn in itertools.count():
                if self._ended.wait(PAUSE_S):
                    return
                for topic, records in sent.turn(turn).items():
                    self._send(topic, records)
        except Exception as e:  # noqa: BLE001 - told by whoever waits for the thread
            self._failure = e

    def _send(self, topic, records):
        body = "".join(json.dumps(record) + "\n" for record in records)
        kind = {"Content-Type": "application/x-ndjson"}
        answer = self._client.post(f"/v1/topics/{topic}", content=body, headers=kind)
        answer.raise_for_status()


def acts(turn):
    """Two ask to join a group; one of three turns accepts one, one declines one."""
    for n in range(2):
        yield act("request_group", turn + n)
    if turn % 3:
        yield act("accept_member" if turn % 3 == 1 else "decline_member", turn)


def purchases(turn):
    """Everybody joins or buys something: swords in two ways, and a knife now and then."""
    yield act(("purchase_sword", "buy_sword", "purchase_knife")[turn % 3], turn)
    yield act("purchase_sword", turn + 1)
    yield act(f"joined_guild:{('red', 'blue')[turn % 2]}", turn)


def act(event_type, n):
    return {"event_type": event_type, "Host": HOSTS[n % len(HOSTS)], "User-Agent": f"ab/{n % 5}"}


def sightings(turn):
    """Some records are seen again, in another kingdom than before."""
    for n in range(3):
        id_ = (turn * 3 + n) % RECORDS
        kingdom = KINGDOMS[(turn + n) % len(KINGDOMS)]
        yield {
            "id": str(id_),
            "kingdom_normalised": kingdom,
            "species": f"{kingdom} {id_ % 7}",
            "seen_at": turn,
        }


@contextlib.contextmanager
def playing(folder, names):
    """Play the game in `folder`, with its tables in game-data; give our own answers over them.

    `names`: the table of ours by the name that another engine knows it by. It begins when all of
    them have been written a few times.
    """
    with Run(write_pipeline(folder), folder / "game-data") as run, Player(run.url):
        ours = Ours(run.data, names)
        until(ours.versions, lambda versions: min(versions) > EARLIER)
        yield ours


class Ours:
    """Our own answers over the tables of a data directory, at any version."""

    def __init__(self, data, names):
        self._tables = DeltaTables(data, SystemClock())
        self._names = names

    def version(self, name):
        return self._tables.snapshot(self._names[name]).version

    def versions(self):
        """Return the version of each table; -1 of one that is not there yet."""
        found = map(self._tables.snapshot, self._names.values())
        return [-1 if snapshot is None else snapshot.version for snapshot in found]

    def answer(self, statement, version):
        """Return the rows of a statement over `game.NAME` as of a version."""
        name = table_of(statement)
        rows = self._tables.read(self._tables.snapshot(self._names[name], version))
        with duckdb.connect() as connection:
            connection.execute("CREATE SCHEMA game")
            connection.register("rows", rows)
            connection.execute(f"CREATE VIEW game.{name} AS FROM rows")
            return connection.execute(statement).fetchall()

    def never_torn(self, statement, ask):
        """Check that each answer is true at one version, until it was so at a few of them."""
        seen = set()
        for _ in range(ASKED_MAX):
            seen.add(self.true_version(statement, ask))
            if len(seen) == VERSIONS:
                return
        raise AssertionError(f"the table was not written meanwhile: {seen}")

    def true_version(self, statement, ask):
        """Return the version at which another's answer is true; it must be one of the newest.

        That is, one that was there when it was asked, or came before it had answered.
        """
        name = table_of(statement)
        first = self.version(name)
        found = [tuple(row) for row in ask(statement)]
        last = self.version(name)
        true = {v: self.answer(statement, v) for v in range(first, last + 1)}
        assert found in true.values(), (statement, found, true)
        return next(v for v, rows in true.items() if rows == found)


def table_of(statement):
    (name,) = re.findall(r"\bgame\.(\w+)", statement)
    return name


def put_table(server, folder, prefix):
    """Copy a table that may be written meanwhile to a server's bucket.

    Its commits come first, for they name only files that are there.
    """
    store = S3Store(BUCKET, client_options={"allow_http": True}, **server.options())
    for files in ("_delta_log/*.json", "*.parquet"):
        for path in folder.glob(files):
            store.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())
