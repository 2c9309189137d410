"""How far a run is: chunks and tokens that are done and left, over several jobs at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from virnucpro.base.errors import UserError
from virnucpro.base.records import read_record
from virnucpro.base.text import clock_time, number
from virnucpro.chunking.manifest import ChunkManifest
from virnucpro.chunking.size import BASES, SPECIAL_TOKENS
from virnucpro.jobs import read_job_log
from virnucpro.report.plan import Planned

EMBEDS = ("embed_esm2", "embed_dnabert_s")
SPLITS = ("split_proteins", "split_nucleotides")
"""Rules by name."""


@dataclass
class RunningJob:
    """A job that has been started; ``tokens`` are those of its chunk, 0 where it embeds none."""

    rule: str
    wildcards: Mapping[str, str]
    log: Path | None
    tokens: int = 0

    @classmethod
    def of(cls, rule: str, wildcards: Mapping[str, str], logs: Sequence[str], inputs: Sequence[str]) -> RunningJob:
        """From what Snakemake says of a job, whose paths may end in a remark in brackets."""
        paths = [each.partition(" (")[0] for each in inputs]
        manifests = [Path(path) for path in paths if path.endswith(".json")]
        tokens = _chunk_tokens(manifests[0], rule) if rule in EMBEDS and manifests else 0
        return cls(rule, wildcards, Path(logs[0].partition(" (")[0]) if logs else None, tokens)

    def __str__(self) -> str:
        return " ".join([self.rule, *self.wildcards.values()])


def _chunk_tokens(manifest: Path, rule: str) -> int:
    try:
        chunk = read_record(manifest, ChunkManifest)
    except (UserError, OSError):
        return 0
    if rule == EMBEDS[1]:
        return chunk.residues // BASES.a_token
    return chunk.residues + SPECIAL_TOKENS * chunk.proteins


@dataclass
class _Work:
    """Chunks and tokens: done in this run, and left when they were last counted."""

    chunks_done: int = 0
    tokens_done: int = 0
    chunks_left: int = 0
    tokens_left: int = 0


@dataclass
class RunProgress:
    """What is done and what is left.

    Attributes:
        left_of: gives what is left; asked again once the samples are split.
        steps: how many of Snakemake's jobs are done, and how many there are.
    """

    left_of: Callable[[], Sequence[Planned]]
    clock: Callable[[], float] = time.monotonic
    steps: tuple[int, int] = (0, 0)
    running: dict[int, RunningJob] = field(default_factory=dict)
    _work: _Work = field(default_factory=_Work)
    _began: float = 0.0
    _embedding_since: float | None = None
    _partial: float = 0.0

    def begin(self, planned: Sequence[Planned]) -> None:
        """Take what the plan has counted."""
        self._began = self.clock()
        self._count(planned)

    def started(self, number: int, job: RunningJob) -> None:
        self.running[number] = job
        if job.rule in EMBEDS and self._embedding_since is None:
            self._embedding_since = self.clock()

    def ended(self, number: int) -> RunningJob | None:
        """Forget a job that has failed, or been done."""
        return self.running.pop(number, None)

    def finished(self, number: int) -> RunningJob | None:
        """Count a job that is done."""
        job = self.ended(number)
        if job is not None and job.rule in EMBEDS:
            self._work.chunks_done += 1
            self._work.tokens_done += job.tokens
        elif job is not None and job.rule in SPLITS:
            self._count(self.left_of())
        return job

    def look(self) -> None:
        """Read in their logs how far running jobs are."""
        jobs = [job for job in self.running.values() if job.tokens and job.log is not None]
        self._partial = sum(job.tokens * read_job_log(job.log).share for job in jobs if job.log)

    def _count(self, parts: Iterable[Planned]) -> None:
        work = self._work
        work.chunks_left, work.tokens_left = work.chunks_done, work.tokens_done  # and what was done before the count
        for part in parts:
            work.chunks_left += part.chunks
            work.tokens_left += part.tokens // BASES.a_token if part.of_bases else part.tokens

    @property
    def chunks(self) -> tuple[int, int]:
        """How many are done, and how many this run has to do."""
        return self._work.chunks_done, max(self._work.chunks_done, self._work.chunks_left)

    @property
    def seconds(self) -> float:
        return self.clock() - self._began

    @property
    def share(self) -> float:
        """The share of the tokens that is done, 0 to 1; of the steps where nothing is to be embedded."""
        done, wanted = self._tokens()
        if wanted:
            return min(1.0, done / wanted)
        return self.steps[0] / self.steps[1] if self.steps[1] else 0.0

    def _tokens(self) -> tuple[float, int]:
        done = self._work.tokens_done
        wanted = max(done, self._work.tokens_left)
        return min(done + self._partial, wanted), wanted

    def words(self) -> str:
        """What is done and left, rate and time left."""
        done, wanted = self.chunks
        tokens, tokens_wanted = self._tokens()
        if wanted == 0 or done == wanted or self._embedding_since is None:
            names = dict.fromkeys(job.rule for job in self.running.values())
            step = f"step {self.steps[0]} of {self.steps[1]}: " if self.steps[1] else ""
            embedded = "all embedded, " if wanted and done == wanted else ""
            return embedded + step + (", ".join(names) or "waiting")
        parts = [f"{done:,} of {number(wanted, 'chunk')}"]
        jobs = sum(job.rule in EMBEDS for job in self.running.values())
        if jobs > 1:
            parts.append(number(jobs, "job"))
        if tokens > 0:
            rate = tokens / max(self.clock() - self._embedding_since, 1e-9)
            parts += [f"{rate:,.0f} tokens/s", f"{clock_time((tokens_wanted - tokens) / rate)} left"]
        return ", ".join(parts)
