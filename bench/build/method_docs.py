"""The page of methods from their cards, for ``docs/methods.md``: run as a module, it prints it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fairbench.core.method import Method, MethodCard
from fairbench.core.parameters import parameters_of
from fairbench.methods import get_method, method_names

HEAD = """\
# Methods

Written from the methods' cards by `python -m fairbench.build.method_docs`; a test holds that it
is up to date. Every parameter is set by `--param name=value`, a named set of them by
`--param preset=name`.
"""

ROLES = ("method", "control", "ablation", "oracle")


def page() -> str:
    """The whole page, methods before controls and oracles."""
    methods = [get_method(name) for name in method_names()]
    methods.sort(key=lambda method: (ROLES.index(method.card.role), method.card.name))
    return "\n".join([HEAD, *(line for method in methods for line in _section(method))])


def _section(method: type[Method]) -> Iterator[str]:
    card = method.card
    yield f"## {card.name}\n"
    yield f"{card.title[:1].upper()}{card.title[1:]}.\n"
    yield from _facts(card)
    parameters = parameters_of(method)
    if parameters:
        yield "\n| parameter | type | default | meaning |\n| --- | --- | --- | --- |"
        for one in parameters:
            kind = one.type.replace("|", "\\|")
            yield f"| `{one.name}` | {kind} | {_plain(one.default)} | {one.help} |"
    if method.presets:
        yield "\n| preset | role | what it sets |\n| --- | --- | --- |"
        for name, values in method.presets.items():
            made: Any = method
            role = made(**values).configured_card().role
            told = ", ".join(f"`{key}={_plain(value)}`" for key, value in values.items())
            yield f"| `{name}` | {role} | {told} |"
    if card.deviations:
        yield "\nDepartures from the paper:\n"
        yield from (f"- {sentence}" for sentence in card.deviations)
    yield ""


def _facts(card: MethodCard) -> Iterator[str]:
    prompts = {
        "either": "with or without prompts",
        "needed": "that take prompts",
        "none": "without prompts",
    }
    paper = f"[arXiv {card.arxiv}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else "none"
    learned = ", ".join(sorted(card.supervision)) or "nothing but the model"
    if card.reference_images:
        learned += f" ({card.reference_images} reference images)"
    ranked = "ranked" if card.ranked else "not ranked"
    yield f"- role: {card.role}, {ranked}; acts in {card.family}"
    yield f"- paper: {paper}"
    yield f"- learns from: {learned}"
    if card.training_set != "none":
        yield f"- trains on: {card.training_set} images of the data set"
    needs = sorted(card.needs - {"predictions"})
    wanted = f"; needs {', '.join(needs)}" if needs else ""
    wanted = wanted or ("" if card.needs else "; also pipelines that are called as a whole")
    yield f"- backbones: {prompts[card.prompts]}{wanted}"
    calls = card.extra_network_calls
    yield f"- adds: {card.extra_parameters} (parameters), {calls} (network calls)"
    if card.batch_coupled:
        yield "- images of one batch depend on each other"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    print(page(), end="")
