"""``fairbench check-method``."""

from __future__ import annotations

from typing import Annotated

import typer

from fairbench.app.options import Debug, Json
from fairbench.app.terminal import guarded, print_json
from fairbench.core.text import shown

__all__ = ["check_method"]


def check_method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="See: fairbench list methods.")],
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Check a method's contract on tiny backbones, in under a minute."""
    with guarded(debug):
        from fairbench.methods import get_method

        get_method(name)  # before torch is even imported
        from fairbench.methods.parts.contract import check_method as outcomes

        found = []
        for outcome in outcomes(name):
            problem = None if outcome.problem is None else " ".join(outcome.problem.split())
            found.append({"what": outcome.what, "ok": problem is None, "problem": problem})
            if not json_ and problem is None:
                print(f"ok    {outcome.what}", flush=True)
            elif not json_:
                print(f"FAIL  {outcome.what}: {shown(str(problem))}", flush=True)
        if json_:
            print_json(found)
        if not all(one["ok"] for one in found):
            raise typer.Exit(2)
