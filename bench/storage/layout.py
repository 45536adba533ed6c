"""What the parts of a record that have fields of their own may hold, checked when one is read.

Everything that the rest of the code reads from a record by name is named here, with its kind; what
isn't named may hold anything that JSON can. One wrong value then is one warning that names the
field, instead of a failure wherever the value is met.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, get_args

from fairbench.core.score import Better

__all__ = ["LARGEST_WHOLE", "check_baseline", "check_layout"]

LARGEST_WHOLE = 2**63 - 1
"""Above this a whole number isn't one that anything here counts."""

Field = str | tuple[Any, str | int]
"""Where a value stands: a name, or what it is in and its name or place there. Spelled out only for
a message: most values are right."""

Check = Callable[[Any, Field], None]
"""Raises a ValueError that names the field if a value isn't of its kind."""

_SHOWN = 60
_FLOATS, _TEXTS, _WHOLES = {float}, {str}, {int}
_OFF = 1e-6
"""How far from 1 the sum of shares may lie."""
_MOST_IMAGES = 10**12
"""Sums and squares of more would leave what whole numbers and floats hold."""


def check_layout(record: Mapping[str, Any]) -> None:
    """Check the fields inside of a record's configuration, card, facts and so on.

    Args:
        record: A record as JSON holds it, of any schema, with all of its fields.

    Raises:
        ValueError: If a field holds something of another kind; the message names it.
    """
    for name, check in _RECORD.items():
        if name in record:
            check(record[name], name)


def check_baseline(baseline: Any) -> None:
    """Check the fields of a baseline of `fairbench check`, as JSON holds it.

    Raises:
        ValueError: If a field is missing or holds something of another kind; the message names it.
    """
    _whole_object(baseline, "the baseline", _BASELINE)
    for place, run in enumerate(baseline["runs"]):
        _whole_object(run, ("runs", place), _BASELINE_RUN)
        if run["images"] is not None:
            _whole_object(run["images"], (("runs", place), "images"), _BASELINE_IMAGES)


def _whole_object(value: Any, field: Field, checks: Mapping[str, Check]) -> None:
    """An object that has all of these fields, and no others."""
    if not isinstance(value, dict):
        _refuse(field, "an object", value)
    if missing := checks.keys() - value.keys():
        raise ValueError(f"{_spelled(field)} lacks {', '.join(sorted(missing))}")
    if unknown := value.keys() - checks.keys():
        raise ValueError(f"{_spelled(field)} has unknown {', '.join(sorted(unknown))}")
    for name, check in checks.items():
        check(value[name], (field, name))


def _seen(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _refuse(field: Field, expected: str, value: Any) -> None:
    raise ValueError(f"{_spelled(field)} must be {expected}, seen {_seen(value)}")


def _spelled(field: Field) -> str:
    if isinstance(field, str):
        return field
    outer, name = field
    return f"{_spelled(outer)}.{name}" if isinstance(name, str) else f"{_spelled(outer)}[{name}]"


def _text(value: Any, field: Field) -> None:
    if not isinstance(value, str):
        _refuse(field, "text", value)


def _yes_or_no(value: Any, field: Field) -> None:
    if not isinstance(value, bool):
        _refuse(field, "true or false", value)


def _number(value: Any, field: Field) -> None:
    if type(value) is float:  # most are
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(field, "a number", value)
    if isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        _refuse(field, f"a number of at most {LARGEST_WHOLE}", value)


def _whole(value: Any, field: Field) -> None:
    if type(value) is not int or not 0 <= value <= LARGEST_WHOLE:  # a bool is none
        _refuse(field, f"a whole number from 0 to {LARGEST_WHOLE}", value)


def _anything(value: Any, field: Field) -> None:
    return None


def _or_nothing(check: Check) -> Check:
    def checked(value: Any, field: Field) -> None:
        if value is not None:
            check(value, field)

    return checked


def _list(check: Check) -> Check:
    def checked(value: Any, field: Field) -> None:
        if not isinstance(value, list):
            _refuse(field, "a list", value)
        if not (value and _all_sound(value, check)):
            for place, item in enumerate(value):
                check(item, (field, place))

    return checked


def _all_sound(values: list[Any], check: Check) -> bool:
    """Whether all values pass a check for certain: what most lists hold takes no call a value."""
    kinds = set(map(type, values))
    if check is _number:
        return kinds == _FLOATS
    if check is _text:
        return kinds == _TEXTS
    most = _MOST.get(check)
    return most is not None and kinds == _WHOLES and min(values) >= 0 and max(values) <= most


def _by_name(check: Check) -> Check:
    def checked(value: Any, field: Field) -> None:
        if not isinstance(value, dict):
            _refuse(field, "an object", value)
        for name, item in value.items():
            check(item, (field, name))

    return checked


def _fields(**checks: Check) -> Check:
    """An object whose fields of these names, where they are there, are of these kinds."""

    def checked(value: Any, field: Field) -> None:
        if not isinstance(value, dict):
            _refuse(field, "an object", value)
        for name, check in checks.items():
            if name in value:
                check(value[name], (field, name))

    return checked


_DIRECTIONS = get_args(Better)


def _direction(value: Any, field: Field) -> None:
    if value not in _DIRECTIONS:
        _refuse(field, f"one of {', '.join(_DIRECTIONS)}", value)


def _count(value: Any, field: Field) -> None:
    _whole(value, field)
    if value > _MOST_IMAGES:
        _refuse(field, f"a number of images, at most {_MOST_IMAGES}", value)


_MOST: Mapping[Check, int] = {_whole: LARGEST_WHOLE, _count: _MOST_IMAGES}
"""The largest of a kind of whole numbers from 0 on."""


def _level(value: Any, field: Field) -> None:
    _number(value, field)
    if not 0 < value < 1:
        _refuse(field, "a number above 0 and below 1", value)


def _shares(value: Any, field: Field) -> None:
    """Wanted shares of the groups."""
    told = value.values() if isinstance(value, dict) else value
    if told and (min(told) < 0 or abs(sum(told) - 1) > _OFF):
        _refuse(field, "shares that sum to 1", value)


def _all(*checks: Check) -> Check:
    def checked(value: Any, field: Field) -> None:
        for check in checks:
            check(value, field)

    return checked


def _needed(names: tuple[str, ...], check: Check) -> Check:
    """An object that lacks none of these fields."""

    def checked(value: Any, field: Field) -> None:
        check(value, field)
        if missing := [name for name in names if name not in value]:
            raise ValueError(f"{_spelled(field)} lacks {', '.join(missing)}")

    return checked


def _table(value: Any, field: Field) -> None:
    """Whole numbers, of which every row has as many."""
    _COUNTS(value, field)
    if not value or not value[0] or len(set(map(len, value))) > 1:
        _refuse(field, "a table whose rows are equally long", value)


def _square(value: Any, field: Field) -> None:
    _table(value, field)
    if len(value) != len(value[0]) or len(value) < 2:
        _refuse(field, "a table of as many rows as columns, 2 or more", value)


def _counted(value: Any, field: Field) -> None:
    """What a judge counted of one crossing: shapes agree, wanted shares are shares."""
    _COUNTED(value, field)
    groups = len(value["target"])
    if groups < 2:
        _refuse((field, "target"), "shares of 2 groups or more", value["target"])
    for name in ("counts", "confusion"):
        if value[name] is not None and len(value[name][0]) != groups:
            _refuse((field, name), f"columns for {groups} groups, as in target", value[name])
    if value["effect"] is not None and value["effect"] <= 0:
        _refuse((field, "effect"), "a number above 0", value["effect"])


_ENDS = _fields(
    value=_or_nothing(_number), low=_or_nothing(_number), high=_or_nothing(_number), n=_whole
)

_CONFIG = _fields(
    method=_text,
    version=_whole,
    parameters=_by_name(_anything),
    preset=_or_nothing(_text),
    backbone=_or_nothing(_text),
    backbone_sha256=_text,
    prompts=_list(_text),
    neutral_prompts=_list(_text),
    num_images=_whole,
    seed=_whole,
    sampling=_fields(steps=_whole, guidance=_number, eta=_number, spacing=_text),
    dtype=_text,
    autocast=_text,
    processes=_whole,
    network_batch=_whole,
    decode_batch=_whole,
    batch_size=_or_nothing(_whole),
    target=_all(_by_name(_number), _shares),
    data_sha256=_text,
    dataset=_text,
    task=_text,
    hashes=_by_name(_text),
    readings=_by_name(_text),
    reference=_list(_by_name(_text)),
    metric_version=_whole,
    control=_list(_text),
    evaluated=_text,
    images=_text,
    size=_list(_whole),
    labels=_text,
    scoring_seed=_whole,
)

_CARD = _fields(
    name=_text,
    title=_text,
    arxiv=_or_nothing(_text),
    family=_text,
    role=_text,
    ranked=_yes_or_no,
    batch_coupled=_yes_or_no,
    uses_target=_yes_or_no,
    trains=_yes_or_no,
    supervision=_list(_text),
    deviations=_list(_text),
    reference_images=_whole,
)

_NUMBERS = _list(_list(_whole))
_COUNTS = _list(_list(_count))

_COUNTED = _needed(
    ("counts", "target", "confusion", "effect"),
    _fields(
        counts=_table,
        target=_all(_list(_number), _shares),
        confusion=_or_nothing(_square),
        effect=_or_nothing(_number),
    ),
)

_FACTS = _fields(
    fair=_by_name(
        _needed(("n",), _fields(n=_list(_whole), target=_list(_number), confusion=_square))
    ),
    estimate=_needed(
        ("per_prompt", "ranked", "images", "judges"),
        _fields(
            per_prompt=_yes_or_no,
            ranked=_text,
            images=_list(_whole),
            judges=_by_name(_by_name(_counted)),
            real_distance=_or_nothing(_number),
        ),
    ),
    baseline=_needed(
        ("method", "scores"),
        _fields(
            method=_text,
            scores=_by_name(
                _needed(("value", "low", "high", "n"), _all(_ENDS, _fields(value=_number)))
            ),
        ),
    ),
    fairness=_fields(
        corrected=_by_name(
            _by_name(
                _fields(
                    value=_number,
                    low=_number,
                    high=_number,
                    floor=_or_nothing(_number),
                    condition=_or_nothing(_number),
                    reason=_text,
                )
            )
        ),
        quota=_needed(
            ("statistic", "degrees"),
            _fields(
                statistic=_or_nothing(_number),
                degrees=_whole,
                p_value=_or_nothing(_number),
                quota=_yes_or_no,
            ),
        ),
        by_prompt=_by_name(_ENDS),
        design_effect=_by_name(_number),
        lattice=_by_name(_by_name(_number)),
    ),
    copies=_needed(("images", "distinct"), _by_name(_whole)),
    not_measured=_by_name(_text),
)

_GROUPS = _by_name(
    _list(
        _needed(
            ("group", "count", "n"),
            _fields(
                group=_text,
                count=_count,
                n=_count,
                share=_or_nothing(_number),
                low=_or_nothing(_number),
                high=_or_nothing(_number),
                target=_or_nothing(_number),
                corrected=_or_nothing(_ENDS),
                prompt_accuracy=_or_nothing(_ENDS),
            ),
        )
    )
)

_SCORES = _list(
    _fields(
        name=_text,
        value=_number,
        low=_or_nothing(_number),
        high=_or_nothing(_number),
        n=_whole,
        better=_direction,
        floor=_or_nothing(_number),
        level=_level,
        version=_whole,
    )
)

_RECORD: Mapping[str, Check] = MappingProxyType(
    {
        "config": _CONFIG,
        "card": _CARD,
        "environment": _fields(device=_text, platform=_text, packages=_by_name(_text)),
        "seconds": _by_name(_number),
        "peak_memory_mib": _number,
        "extra_parameters": _whole,
        "network_calls_per_image": _number,
        "scores": _SCORES,
        "groups": _GROUPS,
        "facts": _FACTS,
        "rescored": _or_nothing(_fields(created=_text, scores=_list(_text))),
    }
)

_QUESTION = _fields(
    evaluated=_text,
    method=_text,
    dataset=_text,
    task=_text,
    backbone=_text,
    num_images=_whole,
    seed=_whole,
    dtype=_text,
    network_batch=_whole,
    decode_batch=_whole,
    parameters=_list(_text),
    steps=_whole,
    guidance=_number,
    eta=_number,
    scheduler=_text,
    encoders=_list(_text),
    faces=_yes_or_no,
    controls=_list(_text),
    judges=_list(_text),
    accept_judge=_yes_or_no,
)

_BASELINE: Mapping[str, Check] = MappingProxyType(
    {
        "schema": _whole,
        "created": _text,
        "code": _anything,
        "accepted": _list(
            _fields(reason=_text, created=_text, scores=_by_name(_list(_or_nothing(_number))))
        ),
        "runs": _list(_by_name(_anything)),
    }
)

_BASELINE_RUN: Mapping[str, Check] = MappingProxyType(
    {
        "question": _QUESTION,
        "key": _text,
        "hashes": _by_name(_text),
        "count": _whole,
        "scores": _SCORES,
        "first": _or_nothing(_SCORES),
        "images": _or_nothing(_by_name(_anything)),
    }
)

_BASELINE_IMAGES: Mapping[str, Check] = MappingProxyType(
    {
        "sha256": _text,
        "prompt_index": _NUMBERS,
        "image_index": _NUMBERS,
        "batch_id": _NUMBERS,
        "valid": _text,
        "labels": _by_name(_by_name(_text)),
    }
)
