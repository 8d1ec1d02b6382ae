"""Runs below some folders, followed: what is new since a reader last asked."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import InputError
from launch.comparing.annotations import Annotation, write_annotation
from launch.comparing.comparison import compare
from launch.comparing.followed_run import FollowedRun
from launch.comparing.page_curves import ALL_CELLS, points_per_curve
from launch.comparing.page_data import Json, overview, read_picture, run_content
from launch.comparing.ranking import By
from launch.comparing.run_record import RunRecord
from launch.comparing.run_sources import DEEPEST, run_directories

MOST_RUNS = 500
ALL_POINTS = 200_000
"""Of all curves: more than in a file, because the page comes from the same machine."""
LOOK_SECONDS = 0.3
"""Readers who ask sooner share what the last look found."""
SILENCE_SECONDS = 10.0
"""How often it is told for how long a run has been silent."""


@dataclass(slots=True)
class Entry:
    """A run directory and what was last said of it."""

    run: FollowedRun
    record: RunRecord | None = None
    error: str = ""
    """Why it cannot be shown: it is empty, or a file is broken."""
    content: Json | None = None
    version: int = 0
    """The look at which the content changed."""


class RunsBelow:
    """All runs in some folders; every look reads what was written since the one before."""

    def __init__(
        self, folders: Sequence[Path], *, metric: str | None, by: By | None, by_seed: bool
    ) -> None:
        self.folders = folders
        self.metric, self.by, self.by_seed = metric, by, by_seed
        self.version = 0
        self._entries: dict[str, Entry] = {}
        self._page: Json = overview(None, [], 0.0)
        self._looked = self._told = 0.0
        self._lock = threading.Lock()

    def since(self, version: int) -> Json:
        """What a reader who knows that version lacks: nothing, or the overview and some runs."""
        with self._lock:
            if time.monotonic() - self._looked > LOOK_SECONDS:
                self._look()
                self._looked = time.monotonic()
            if version == self.version:
                return {"version": version}
            known = version if version < self.version else 0
            entries = self._entries.values()
            fresh = [e.content for e in entries if e.content is not None and e.version > known]
            return {"version": self.version, "page": self._page, "runs": fresh}

    def annotate(self, source: str, annotation: Annotation) -> None:
        """Keep a note and tags in the directory of a run.

        Raises:
            InputError: If there is no such run here, or its directory cannot be written.
        """
        with self._lock:
            entry = self._entries.get(source)
        if entry is None:
            raise InputError("run", given=source, expected="one that is shown")
        write_annotation(entry.run.path, annotation)

    def picture(self, source: str, name: str) -> bytes | None:
        """A picture that a run is said to have; None for anything else."""
        with self._lock:
            entry = self._entries.get(source)
            paths = entry.record.pictures if entry and entry.record else []
        return next((read_picture(path) for path in paths if path.name == name), None)

    def _look(self) -> None:
        """Read what has changed, and compare the runs anew if anything has."""
        paths = {str(path): path for path in self._directories()}
        gone = [source for source in self._entries if source not in paths]
        for source in gone:
            del self._entries[source]
        for source, path in paths.items():
            self._entries.setdefault(source, Entry(FollowedRun(path)))
        changed = [entry for entry in self._entries.values() if entry.run.has_changed()]
        for entry in changed:
            try:
                entry.record, entry.error = entry.run.read(), ""
            except InputError as error:
                entry.record, entry.content, entry.error = None, None, str(error)
        now = time.time()
        running = any(e.record and e.record.status == "running" for e in self._entries.values())
        silent = running and now - self._told > SILENCE_SECONDS
        if changed or gone or silent:
            self._tell(changed, now)

    def _tell(self, changed: Sequence[Entry], now: float) -> None:
        self._told = now
        records = [entry.record for entry in self._entries.values() if entry.record is not None]
        page = self._overview(records, now)
        if not changed and page == self._page:
            return
        self.version += 1
        self._page = page
        points = points_per_curve(records, ALL_POINTS)
        cells = ALL_CELLS // max(len(records), 1)
        for entry in changed:
            if entry.record is not None:
                entry.content = run_content(entry.record, points=points, cells=cells, now=now)
                entry.version = self.version

    def _overview(self, records: list[RunRecord], now: float) -> Json:
        lines = [f"left out: {entry.error}" for entry in self._entries.values() if entry.error]
        metric = self.metric
        if metric is not None and records and not any(metric in run.metrics for run in records):
            lines.append(
                f"No run has recorded {metric} yet; the runs are ranked by another metric."
            )
            metric = None
        try:
            found = compare(records, metric=metric, by=self.by, by_seed=self.by_seed)
        except InputError:  # no run has recorded any metric
            return overview(None, lines, now)
        return overview(found, lines, now)

    def _directories(self) -> list[Path]:
        paths = (path for folder in self.folders for path in run_directories(folder, DEEPEST))
        once = {path.resolve(): path for path in itertools.islice(paths, MOST_RUNS)}
        return list(once.values())
