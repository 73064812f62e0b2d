"""What must hold at every moment of the soak: stores, models, processes, and a reader that never sees an error."""

import json
import os
import signal
import struct
import time
from pathlib import Path
from typing import Any

from clp_lightning.errors import ClpError
from clp_lightning.promotion import champion
from clp_lightning.store.queries import Store
from clp_lightning.store.schema import TABLES

# They tell when or where something ran, not what came out of it; costs hold seconds, ids hash them, and decisions name ids.
TIMES = {"created_at", "published_at", "duration_seconds", "train_seconds", "evaluate_seconds", "started_at", "seconds"}
TIMES |= {"peak_memory_mb", "run_id", "code_commit", "decided_at", "challenger", "champion", "weights_hash"}


def inconsistent(workspace: Path, runs: int | None) -> list[str]:
    """Return what is wrong with the store: unreadable, not the expected number of runs, a run that lacks rows."""
    path = workspace / "frontier.duckdb"
    if runs is None and not path.exists():
        return []
    store, found = Store(path), []
    try:
        listed = store.runs()
        if runs is not None and len(listed) != runs:
            found.append(f"{len(listed)} runs instead of {runs}")
        for run in listed.run_id:
            methods = store.methods(run)
            if methods.problem.notna().any():
                found.append(f"run {run}: {methods.problem.dropna().tolist()}")
            for name, frame in (("points", store.points(run)), ("metrics", store.metrics(run))):
                if frame.method.nunique() != len(methods):
                    found.append(f"run {run}: {name} of {frame.method.nunique()} methods instead of {len(methods)}")
    except ClpError as error:
        found.append(str(error))
    return found


def half_written(workspace: Path) -> list[str]:
    """Return safetensors files under models/ whose length is not what their header says, and folders without a card."""
    found = []
    for file in (workspace / "models").rglob("*.safetensors"):
        if any(part.startswith(".") for part in file.relative_to(workspace).parts):
            continue  # written beside the final name: never read as a model
        try:
            with file.open("rb") as stream:
                length = struct.unpack("<Q", stream.read(8))[0]
                header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            if file.stat().st_size != 8 + length + max(ends):
                found.append(f"{file}: cut short")
        except FileNotFoundError:
            continue  # DVC removes a stage's outputs before it runs again
        except (OSError, ValueError, KeyError, struct.error) as error:
            found.append(f"{file}: {error}")
    entry = workspace / champion.CHAMPION
    if entry.exists():
        named = json.loads(entry.read_text())
        if not (workspace / champion.KEPT / named["id"] / named["method"] / "clp.json").is_file():
            found.append(f"{entry}: names a policy that is not there")
    return found


def orphans(token: str, prefect: Any, *, after: float) -> list[str]:
    """Return processes of the soak that live although no run does, `after` seconds from now at the latest."""
    deadline = time.monotonic() + after
    while (left := _processes(token, prefect.expected())) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def _processes(token: str, expected: set[int]) -> list[str]:
    wanted, found = f"{token}={os.getpid()}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        try:
            if wanted not in (folder / "environ").read_bytes().split(b"\0") or pid == os.getpid():
                continue
            if os.getpgid(pid) in expected or (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                continue
            found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200])
        except OSError:
            continue  # it ended while we looked
    return found


def read_for_ever() -> None:
    """Read the store named in SOAK_STORE as the dashboard does until SIGTERM; prints counts as JSON."""
    path, going = os.environ["SOAK_STORE"], True

    def stop(*_: Any) -> None:
        nonlocal going
        going = False

    signal.signal(signal.SIGTERM, stop)
    reads, failures, seen = 0, [], set()
    while going:
        try:
            store = Store(path)  # a new session of the dashboard each time: nothing cached
            run = store.run()["run_id"]
            for query in (store.methods, store.points, store.metrics, store.comparisons):
                if query(run).empty:
                    raise ClpError(f"run {run} is half there")
                reads += 1
            store.decisions()
            reads += 2
            seen.add(store.identity())
        except Exception as error:  # whatever a page would have shown
            failures.append(f"{type(error).__name__}: {error}")
        time.sleep(0.1)
    print(json.dumps({"reads": reads, "failed_reads": failures, "publications_seen": len(seen)}))


def compare_stores(left: Path, right: Path) -> list[str]:
    """Return the tables that differ, but for times and the ids that hash them."""
    import duckdb

    found = []
    for table in TABLES:
        if table == "stages":
            continue  # nothing but times
        frames = []
        for path in (left, right):
            with duckdb.connect(path, read_only=True) as connection:
                frame = connection.execute(f"SELECT * FROM {table}").df()  # noqa: S608 - our own names
            if table == "curves":
                frame = frame[frame.name != "seconds"]
            kept = frame[[column for column in frame.columns if column not in TIMES]]
            frames.append(sorted(kept.to_json(orient="records", lines=True).splitlines()))
        if frames[0] != frames[1]:
            only = [line for line in frames[0] if line not in set(frames[1])]
            found.append(f"{table}: {len(frames[0])} and {len(frames[1])} rows, {len(only)} differ, e.g. {only[:1]}")
    return found
