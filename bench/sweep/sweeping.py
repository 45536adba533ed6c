"""One sweep: a plan's questions, what became of them, and doing the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from fairbench.core.progress import Reporter
from fairbench.storage.cache import cache_folder
from fairbench.storage.files import sweep as tidy
from fairbench.storage.places import Place, place_of
from fairbench.storage.pruning import clean
from fairbench.sweep.asked import Asked, Standing, Standings, ask, standings
from fairbench.sweep.coordinating import Books, Tally, drive
from fairbench.sweep.engine import Crew, Maker
from fairbench.sweep.plan import Plan
from fairbench.sweep.state import ROOT, State
from fairbench.sweep.steps import Ended, Step, steps_of, total_hours

__all__ = ["Sweep"]


@dataclass
class Sweep:
    """The questions of a plan, and the results that they are answered in.

    Attributes:
        asked: The questions.
        left_out: Why combinations of the plan aren't among them, a line each.
        place: Where records are.
        state: Claims and notes beside them.
        standings: What became of the questions when the results were last looked at.
    """

    asked: tuple[Asked, ...]
    left_out: tuple[str, ...]
    place: Place
    state: State
    standings: Standings

    @classmethod
    def of(cls, plan: Plan, results: str, report: Reporter, *, device: str = "auto") -> Sweep:
        """Check a plan and look what is there of it; makes nothing.

        Args:
            plan: The plan.
            results: A folder, or an address.
            report: Told about progress.
            device: As ``--device``.

        Raises:
            FairbenchError: If a run of the plan is wrong, or the results can't be reached.
        """
        place = place_of(results)
        place.update(sidecars=False)
        found = ask([replace(one, device=device) for one in plan.runs], place, report)
        state = State(place.objects)
        now = standings(found.asked, place, state)
        return cls(found.asked, found.left_out, place, state, now)

    def of_standing(self, which: Standing) -> list[Asked]:
        """The questions that stand so."""
        return self.standings.of(self.asked, which)

    def counts(self) -> Mapping[str, int]:
        """How many questions stand how."""
        return {name: len(self.of_standing(name)) for name in get_args(Standing)}

    def why(self, asked: Asked) -> str:
        """Why a failed run failed, in one line."""
        return self.standings.failures[asked.key].line

    def passing(self, asked: Asked) -> bool:
        """Whether a failed run is tried again by itself, as it failed of a full disk."""
        return self.standings.failures[asked.key].passing

    def steps(self, *, retry_failed: bool) -> list[Step]:
        """What is left to do, each behind what it needs; what another sweep is at counts, too."""
        return steps_of(self.standings.left(self.asked, retry_failed=retry_failed))

    def hours(self, *, retry_failed: bool) -> tuple[float, int]:
        """Hours of what is left on one device, and of how many steps nobody knows them."""
        return total_hours(self.steps(retry_failed=retry_failed))

    def document(self, *, retry_failed: bool) -> dict[str, Any]:
        """As JSON."""
        hours, unknown = self.hours(retry_failed=retry_failed)
        return {
            "results": self.place.address,
            **self.counts(),
            "hours_left": round(hours, 6),
            "steps_of_unknown_hours": unknown,
            "runs": [
                {
                    "run": one.title,
                    "key": one.key,
                    "record": one.records[0],
                    "standing": self.standings.standing[one.key],
                    "why": self.why(one) if one.key in self.standings.failures else None,
                    "hours": one.hours,
                }
                for one in self.asked
            ],
            "steps": [
                {"step": step.title, "kind": step.kind, "key": step.key, "hours": step.hours}
                for step in self.steps(retry_failed=retry_failed)
            ],
            "left_out": list(self.left_out),
        }

    def run(
        self,
        make: Maker,
        *,
        report: Reporter,
        jobs: int | None = None,
        device: str = "auto",
        settings: Mapping[str, Any] | None = None,
        retry_failed: bool = False,
    ) -> Tally:
        """Do what is left, and look at the results again.

        Args:
            make: Makes the engine.
            report: Told about progress, and a line for each step that ended.
            jobs: Steps at once; None for what the engine finds.
            device: As ``--device``.
            settings: Of the engine.
            retry_failed: Whether what failed before is tried again.

        Raises:
            InputError: If the engine can't be used here.
        """
        if self.place.mirrored:
            address = self.place.address
        else:
            self.place.folder.mkdir(parents=True, exist_ok=True)
            address = str(self.place.folder.resolve())
            tidy(self.place.folder)
            tidy(self.place.folder / ROOT)
        clean(cache_folder())
        steps = self.steps(retry_failed=retry_failed)
        tally = Tally()
        if steps:
            engine = make(Crew(address, device, jobs, settings or {}))
            tally = self._driven(steps, engine, report)
        self.place.update(sidecars=False)
        now = standings(self.asked, self.place, self.state)
        self.standings = now.with_failed(tally.failed)
        return tally

    def _driven(self, steps: list[Step], engine: Any, report: Reporter) -> Tally:
        ended = 0

        def tell(step: Step, what: Ended) -> None:
            nonlocal ended
            if what.outcome == "lost":
                report.warn(f"{step.title}: {what.line}; it is begun again")
            elif what.outcome == "busy":
                report.note(f"another sweep is at {step.title}")
            else:
                ended += 1
                report.progress("sweep: steps", ended, len(steps))
                if what.outcome == "failed":
                    report.warn(f"{step.title} failed: {what.line}")
                else:
                    report.note(f"{what.line or 'done'}: {step.title} ({what.seconds:.0f} s)")

        report.progress("sweep: steps", 0, len(steps))
        return drive(steps, engine, Books(self.place, self.state), tell=tell)
