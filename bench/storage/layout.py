"""What the parts of a record that have fields of their own may hold, checked when one is read.

Everything that the rest of the code reads from a record by name is named here, with its kind; what
isn't named may hold anything that JSON can. One wrong value then is one warning that names the
field, instead of a failure wherever the value is met.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
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

_DEEPEST = 100
"""Levels of lists and objects above which a configuration and the like isn't one: Python gives up
on writing down what is nested a few hundred levels deep, and a record needs fewer than ten."""

_SPELLED_OUT = ("config", "card", "environment", "seconds", "rescored")
"""What of a record may hold anything and is written down again: in keys, tables and pages."""

_NESTED = {dict, list}
_SHOWN = 60
_LISTS, _OBJECTS = {list}, {dict}
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
    if _is_deep([record.get(name) for name in _SPELLED_OUT]):
        deep = next(name for name in _SPELLED_OUT if _is_deep([record.get(name)]))
        raise ValueError(f"{deep} is nested more than {_DEEPEST} levels deep")
    for name, check in _RECORD.items():
        if name in record:
            check(record[name], name)


def _is_deep(values: list[Any]) -> bool:
    """Whether a value holds lists and objects nested more than `_DEEPEST` levels deep."""
    level: list[Any] = [values]
    for _ in range(_DEEPEST + 1):
        inner: list[Any] = []
        for one in level:
            inner.extend(one.values() if type(one) is dict else one)
        level = [one for one in inner if type(one) in _NESTED]
        if not level:
            return False
    return True


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


_Sound = Callable[[Sequence[Any]], bool]
"""Whether values, one or more, pass a check for certain."""

_SOUND: dict[Check, _Sound] = {}
"""Quick looks at many values at once, by check: most records are right, and hold many values. What
isn't right, or can't be told so, is then checked value by value, which finds the words for it."""


def _sound_if(check: Check, sound: _Sound) -> Check:
    _SOUND[check] = sound
    return check


def _are_sound(values: Sequence[Any], check: Check) -> bool:
    """Whether all values pass a check for certain."""
    if not values:
        return True
    sound = _SOUND.get(check)
    return sound is not None and sound(values)


def _joined(parts: Iterable[Iterable[Any]]) -> list[Any]:
    return list(chain.from_iterable(parts))


def _or_nothing(check: Check) -> Check:
    def checked(value: Any, field: Field) -> None:
        if value is not None:
            check(value, field)

    def sound(values: Sequence[Any]) -> bool:
        return _are_sound([value for value in values if value is not None], check)

    return _sound_if(checked, sound)


def _list(check: Check) -> Check:
    def checked(value: Any, field: Field) -> None:
        if not isinstance(value, list):
            _refuse(field, "a list", value)
        if not _are_sound(value, check):
            for place, item in enumerate(value):
                check(item, (field, place))

    def sound(values: Sequence[Any]) -> bool:
        return set(map(type, values)) == _LISTS and _are_sound(_joined(values), check)

    return _sound_if(checked, sound)


def _by_name(check: Check) -> Check:
    def checked(value: Any, field: Field) -> None:
        if not isinstance(value, dict):
            _refuse(field, "an object", value)
        if not _are_sound(list(value.values()), check):
            for name, item in value.items():
                check(item, (field, name))

    def sound(values: Sequence[Any]) -> bool:
        if set(map(type, values)) != _OBJECTS:
            return False
        return _are_sound(_joined(one.values() for one in values), check)

    return _sound_if(checked, sound)


def _fields(**checks: Check) -> Check:
    """An object whose fields of these names, where they are there, are of these kinds."""

    def checked(value: Any, field: Field) -> None:
        if not isinstance(value, dict):
            _refuse(field, "an object", value)
        for name, check in checks.items():
            if name in value:
                check(value[name], (field, name))

    def sound(values: Sequence[Any]) -> bool:
        return set(map(type, values)) == _OBJECTS and all(
            _are_sound([one[name] for one in values if name in one], check)
            for name, check in checks.items()
        )

    return _sound_if(checked, sound)


_DIRECTIONS = get_args(Better)


def _direction(value: Any, field: Field) -> None:
    if value not in _DIRECTIONS:
        _refuse(field, f"one of {', '.join(_DIRECTIONS)}", value)


def _count(value: Any, field: Field) -> None:
    _whole(value, field)
    if value > _MOST_IMAGES:
        _refuse(field, f"a number of images, at most {_MOST_IMAGES}", value)


def _level(value: Any, field: Field) -> None:
    _number(value, field)
    if not 0 < value < 1:
        _refuse(field, "a number above 0 and below 1", value)


def _of_types(*types: type) -> _Sound:
    """All values are of these types."""
    return lambda values: set(map(type, values)).issubset(types)


def _numbers(values: Sequence[Any]) -> bool:
    kinds = set(map(type, values))
    if kinds == {float}:  # most are
        return True
    wholes = [value for value in values if type(value) is int]
    return kinds <= {float, int} and -LARGEST_WHOLE <= min(wholes) <= max(wholes) <= LARGEST_WHOLE


def _wholes_to(most: int) -> _Sound:
    """All values are whole numbers from 0 to `most`."""

    def sound(values: Sequence[Any]) -> bool:
        return set(map(type, values)) == {int} and min(values) >= 0 and max(values) <= most

    return sound


_SOUND |= {
    _anything: lambda values: True,
    _text: _of_types(str),
    _yes_or_no: _of_types(bool),
    _number: _numbers,
    _whole: _wholes_to(LARGEST_WHOLE),
    _count: _wholes_to(_MOST_IMAGES),
    _direction: lambda values: set(map(type, values)) == {str} and set(values) <= {*_DIRECTIONS},
    _level: lambda values: set(map(type, values)) == {float} and all(0 < v < 1 for v in values),
}


def _shares(value: Any, field: Field) -> None:
    """Wanted shares of the groups."""
    if not _sum_to_one(value):
        _refuse(field, "shares that sum to 1", value)


def _sum_to_one(value: Any) -> bool:
    told = value.values() if isinstance(value, dict) else value
    return not told or (min(told) >= 0 and abs(sum(told) - 1) <= _OFF)


def _all(*checks: Check) -> Check:
    def checked(value: Any, field: Field) -> None:
        for check in checks:
            check(value, field)

    def sound(values: Sequence[Any]) -> bool:
        return all(_are_sound(values, check) for check in checks)

    return _sound_if(checked, sound)


def _needed(names: tuple[str, ...], check: Check) -> Check:
    """An object that lacks none of these fields."""

    def checked(value: Any, field: Field) -> None:
        check(value, field)
        if missing := [name for name in names if name not in value]:
            raise ValueError(f"{_spelled(field)} lacks {', '.join(missing)}")

    def sound(values: Sequence[Any]) -> bool:
        return _are_sound(values, check) and all(needed <= one.keys() for one in values)

    needed = set(names)
    return _sound_if(checked, sound)


def _table(value: Any, field: Field) -> None:
    """Whole numbers, of which every row has as many."""
    _COUNTS(value, field)
    if not _is_table(value):
        _refuse(field, "a table whose rows are equally long", value)


def _square(value: Any, field: Field) -> None:
    _table(value, field)
    if not _is_square(value):
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


def _is_table(value: Sequence[Sequence[Any]]) -> bool:
    return bool(value and value[0]) and len(set(map(len, value))) == 1


def _is_square(value: Sequence[Sequence[Any]]) -> bool:
    return len(value) == len(value[0]) >= 2


def _agree(value: Mapping[str, Any]) -> bool:
    """Whether the shapes of what a judge counted agree."""
    groups, confusion, effect = len(value["target"]), value["confusion"], value["effect"]
    return (
        len(value["counts"][0]) == groups >= 2
        and (confusion is None or len(confusion) == groups)
        and (effect is None or effect > 0)
    )


_SOUND |= {
    _shares: lambda values: all(map(_sum_to_one, values)),
    _table: lambda values: _are_sound(values, _COUNTS) and all(map(_is_table, values)),
    _square: lambda values: _are_sound(values, _table) and all(map(_is_square, values)),
    _counted: lambda values: _are_sound(values, _COUNTED) and all(map(_agree, values)),
}

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

_NUMBERS: Check = _list(_list(_whole))
_COUNTS: Check = _list(_list(_count))

_COUNTED: Check = _needed(
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
