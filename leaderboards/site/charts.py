"""Charts as inline SVG: each has a title, a description and its numbers as a table.

Colours are those of Okabe and Ito, told apart without red-green sight, and every mark has a shape
or a text too. Everything that comes from a record passes through `tag`, which escapes it.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from fairbench.core.text import shown
from fairbench.leaderboards.columns import digits_of, method_of
from fairbench.leaderboards.curves import Curve
from fairbench.leaderboards.placing import place_labels
from fairbench.leaderboards.plane import Plane, Point, quality_of

__all__ = ["Share", "bars", "curve", "figure", "heat_map", "plane", "strips", "tag"]

_WIDTH = 640
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 14, 46
_COLOURS = 8
_CHARACTER = 6.6  # width of a character of the charts' 12 px text

Share = tuple[str, int, int, float, float, float, float | None]
"""Group, count, n, share, low, high and target."""


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """An element; names of attributes may end in an underscore, None leaves one out."""
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(escape(child) for child in children)
    return Markup(f"<{name}{told}>{inner}</{name}>")


def _breakable(name: str) -> Markup:
    """A name that may go on in the next line after an underscore."""
    return Markup("_<wbr>").join(escape(part) for part in shown(name).split("_"))


def _text(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def figure(
    title: str,
    description: str,
    drawing: Markup,
    height: float,
    header: Sequence[str],
    table: Sequence[Sequence[str]],
    *,
    opened: bool = False,
) -> Markup:
    """A drawing with its title, description and numbers.

    Args:
        title: What is shown, in a line.
        description: How to read it, and what is in it.
        drawing: Elements in a box of 640 by `height`.
        height: Of the box.
        header: Of the table of numbers.
        table: Its rows.
        opened: Whether the table is shown at once: where only it says what is what.
    """
    unique = hashlib.sha256(f"{title}{drawing}".encode()).hexdigest()[:10]
    svg = tag(
        "svg",
        tag("title", shown(title), id=f"t{unique}"),
        tag("desc", shown(description), id=f"d{unique}"),
        drawing,
        viewBox=f"0 0 {_WIDTH} {height:.0f}",
        role="img",
        aria_labelledby=f"t{unique}",
        aria_describedby=f"d{unique}",
    )
    head = tag("tr", *(tag("th", _breakable(name), scope="col") for name in header))
    body = [tag("tr", *(tag("td", shown(cell)) for cell in row)) for row in table]
    numbers = tag(
        "details",
        tag("summary", "Numbers of this chart"),
        tag(
            "div",
            tag("table", tag("thead", head), tag("tbody", *body)),
            class_="scroll",
            tabindex="0",
            role="region",
            aria_label=f"Numbers: {shown(title)}",
        ),
        open="" if opened else None,
    )
    caption = tag("figcaption", tag("strong", shown(title)), " ", shown(description))
    drawn = tag(
        "div",
        svg,
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=f"Chart: {shown(title)}",
    )
    return tag("figure", caption, drawn, numbers)


# Axes


class _Axis:
    """A linear scale with round ticks."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        if high <= low:
            high = low + 1.0
        self.low, self.high, self._start, self._end = low, high, start, end

    def __call__(self, value: float) -> float:
        at = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self._start + at * (self._end - self._start)

    def ticks(self) -> list[float]:
        raw = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(one * power for one in (1, 2, 2.5, 5, 10) if one * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def _word(
    x: float, y: float, text: str, class_: str = "t", anchor: str | None = None, **more: object
) -> Markup:
    return tag("text", shown(text), x=x, y=y, class_=class_, text_anchor=anchor, **more)


def _frame(across: _Axis, up: _Axis, height: float, x_name: str, y_name: str) -> list[Markup]:
    bottom, right = height - _BOTTOM, _WIDTH - _RIGHT
    drawn = []
    for value in across.ticks():
        x = across(value)
        drawn.append(_line(x, _TOP, x, bottom, "grid"))
        drawn.append(_word(x, bottom + 16, f"{value:.6g}", anchor="middle"))
    for value in up.ticks():
        y = up(value)
        drawn.append(_line(_LEFT, y, right, y, "grid"))
        drawn.append(_word(_LEFT - 6, y + 4, f"{value:.6g}", anchor="end"))
    drawn.append(_line(_LEFT, bottom, right, bottom, "axis"))
    drawn.append(_line(_LEFT, _TOP, _LEFT, bottom, "axis"))
    drawn.append(_word((_LEFT + right) / 2, height - 8, x_name, anchor="middle"))
    middle = (_TOP + bottom) / 2
    drawn.append(_word(14, middle, y_name, anchor="middle", transform=f"rotate(-90 14 {middle})"))
    return drawn


def _marker(role: str, x: float, y: float, size: float, extra: str = "") -> Markup:
    """A shape a role: circle, diamond, square, triangle."""
    kind = role if role in ("method", "ablation", "control", "oracle") else "method"
    class_ = f"m {kind} {extra}".strip()
    if kind == "method":
        return tag("circle", cx=x, cy=y, r=size, class_=class_)
    if kind == "control":
        return tag("rect", x=x - size, y=y - size, width=2 * size, height=2 * size, class_=class_)
    corners = {
        "ablation": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        "oracle": [(0, -1.3), (1.2, 1), (-1.2, 1)],
    }[kind]
    points = " ".join(f"{x + a * size:.1f},{y + b * size:.1f}" for a, b in corners)
    return tag("polygon", points=points, class_=class_)


def _key(items: Sequence[tuple[Markup, str]], y: float) -> list[Markup]:
    """A legend in one line; marks are drawn around (0, 0)."""
    drawn, x = [], float(_LEFT)
    for mark, text in items:
        width = 22 + _CHARACTER * len(text) + 12
        if x + width > _WIDTH and x > _LEFT:
            x, y = float(_LEFT), y + 18
        drawn.append(tag("g", mark, transform=f"translate({x + 8:.0f} {y:.0f})"))
        drawn.append(_word(x + 20, y + 4, text))
        x += width
    return drawn


# Plane


def plane(found: Plane, title: str, scale: float) -> Markup:
    """Fairness across, distance to real images upwards; left and down are better.

    Args:
        found: The block's plane.
        title: Of the block.
        scale: What distances are shown multiplied by.
    """
    shown = [point for point in found.points if not point.far]
    height = 420.0
    rights = [p.fair.value if p.fair.high is None else p.fair.high for p in shown]
    tops = [p.quality.value if p.quality.high is None else p.quality.high for p in shown]
    lows = [p.quality.value if p.quality.low is None else p.quality.low for p in shown]
    across = _Axis(
        0.0, 1.05 * max([*rights, found.floor or 0.0], default=1.0), _LEFT, _WIDTH - _RIGHT
    )
    up = _Axis(
        min(0.0, scale * min(lows, default=0.0)),
        1.08 * scale * max(tops, default=1.0),
        height - _BOTTOM,
        _TOP,
    )
    scaled = f" × {scale:g}" if scale != 1 else ""
    drawn = _frame(
        across,
        up,
        height,
        f"{found.fairness} (distance of shares; left is fairer)",
        f"kernel distance{scaled} (down is better)",
    )
    if found.floor is not None:
        x = across(found.floor)
        drawn.append(_line(x, _TOP, x, height - _BOTTOM, "floor"))
    drawn += _front(found, across, up, scale)
    places = [(across(p.fair.value), up(scale * p.quality.value)) for p in shown]
    for point, (x, y) in zip(shown, places, strict=True):
        drawn += _errors(point, across, up, scale)
        drawn.append(_marker(point.row.role, x, y, 4.5, _state(point)))
    names = [str(number) for number in range(1, len(shown) + 1)]
    # Room beside each, so that two numbers don't read as one.
    sizes = [(_CHARACTER * len(name) + 8, 12.0) for name in names]
    frame = (_LEFT + 2.0, float(_TOP), float(_WIDTH - _RIGHT), height - _BOTTOM - 2)
    for name, (x, y), (a, b) in zip(
        names, places, place_labels(places, sizes, frame, radius=6), strict=True
    ):
        if math.hypot(a - x, b - y) > 20:
            drawn.append(_line(x, y, a, b, "leader"))
        drawn.append(_word(a, b + 4, name, "t halo", "middle"))
    roles = sorted({point.row.role for point in shown})
    keys = [(_marker(role, 0, 0, 4.5), role) for role in roles]
    if any(point.on_set for point in shown):
        keys.append((_line(-8, 0, 8, 0, "front"), "Pareto set"))
    if any(not point.takes_part for point in shown):
        keys.append((_marker("method", 0, 0, 4.5, "apart"), "faint: not comparable, or an oracle"))
    if found.floor is not None:
        keys.append((_line(0, -7, 0, 7, "floor"), "lowest floor: fair by chance"))
    drawn += _key(keys, height + 12)
    return figure(
        f"Fairness against quality: {title}",
        "A point is a row, its bars are 95 % intervals. Numbers are in the table below. "
        + _told_of(found, scale),
        Markup("").join(drawn),
        height + 50,
        (
            "no.",
            "row",
            "role",
            found.fairness,
            f"{found.quality}{scaled}",
            "on the Pareto set",
            "probability",
        ),
        _numbers(found, shown, scale),
        opened=True,
    )


def _state(point: Point) -> str:
    if not point.takes_part:
        return "apart"
    return "on" if point.on_set else ""


def _front(found: Plane, across: _Axis, up: _Axis, scale: float) -> list[Markup]:
    """The staircase between the rows of the set."""
    corners = sorted(
        (p.fair.value, scale * p.quality.value) for p in found.points if p.on_set and not p.far
    )
    if len(corners) < 2:
        return []
    steps = [corners[0]]
    for before, after in itertools.pairwise(corners):
        steps += [(after[0], before[1]), after]
    return [
        tag(
            "polyline",
            points=" ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in steps),
            class_="front",
        )
    ]


def _errors(point: Point, across: _Axis, up: _Axis, scale: float) -> list[Markup]:
    x, y = across(point.fair.value), up(scale * point.quality.value)
    faint = "bar" if point.takes_part else "bar apart"
    drawn = []
    if point.fair.low is not None and point.fair.high is not None:
        drawn.append(_line(across(point.fair.low), y, across(point.fair.high), y, faint))
    if point.quality.low is not None and point.quality.high is not None:
        low, high = up(scale * point.quality.low), up(scale * point.quality.high)
        drawn.append(_line(x, low, x, high, faint))
    return drawn


def _told_of(found: Plane, scale: float) -> str:
    on = [method_of(point.row) for point in found.points if point.on_set]
    told = [
        f"On the Pareto set, where no comparable row is better in both: {', '.join(on) or 'none'}."
    ]
    far = [p for p in found.points if p.far]
    if far:
        told.append(
            "Above the chart: "
            + ", ".join(f"{method_of(p.row)} ({scale * p.quality.value:.0f})" for p in far)
            + "."
        )
    if found.lacking:
        told.append(f"Not measured in both: {', '.join(map(method_of, found.lacking))}.")
    return " ".join(told)


def _numbers(found: Plane, shown: Sequence[Point], scale: float) -> list[list[str]]:
    number = {id(point): str(index) for index, point in enumerate(shown, 1)}
    return [
        [
            number.get(id(point), "above"),
            method_of(point.row),
            point.row.role,
            _spread(point.fair, 1.0),
            _spread(point.quality, scale),
            "yes" if point.on_set else "no" if point.takes_part else "not comparable",
            "–" if point.probability is None else f"{point.probability:.2f}",
        ]
        for point in found.points
    ]


def _spread(cell: object, scale: float) -> str:
    value, low, high = (getattr(cell, name) for name in ("value", "low", "high"))
    digits = digits_of(scale * value)
    text = f"{scale * value:.{digits}f}"
    if low is not None and high is not None:
        text += f" [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
    return text


# Curves


def curve(found: Curve, name: str, scale: float) -> Markup:
    """The ranked column and the distance to real images along one parameter."""
    rows = [row for _, row in found.points]
    values = [value for value, _ in found.points]
    panels = [(name, 1.0, [row.scores.get(name) for row in rows])]
    quality = [quality_of(row) for row in rows]
    if all(cell is not None for cell in quality):
        panels.append(("kernel distance to real images, own shares", scale, quality))
    each, drawn = 210.0, []
    logarithmic = values[0] > 0 and values[-1] / values[0] >= 20
    shown = [math.log10(value) for value in values] if logarithmic else values
    for place, (title, times, cells) in enumerate(panels):
        top = place * each
        known = [(x, cell) for x, cell in zip(shown, cells, strict=True) if cell is not None]
        if not known:
            continue
        highs = [times * (cell.value if cell.high is None else cell.high) for _, cell in known]
        lows = [times * (cell.value if cell.low is None else cell.low) for _, cell in known]
        margin = 0.05 * (shown[-1] - shown[0])
        across = _Axis(shown[0] - margin, shown[-1] + margin, _LEFT, _WIDTH - _RIGHT)
        up = _Axis(min(0.0, *lows), 1.08 * max(highs), top + each - _BOTTOM, top + 26)
        drawn.append(
            _word(
                _LEFT,
                top + 16,
                f"{title}{f' × {times:g}' if times != 1 else ''} (lower is better)",
            )
        )
        for tick in up.ticks():
            drawn.append(_line(_LEFT, up(tick), _WIDTH - _RIGHT, up(tick), "grid"))
            drawn.append(_word(_LEFT - 6, up(tick) + 4, f"{tick:.6g}", anchor="end"))
        bottom = top + each - _BOTTOM
        drawn.append(_line(_LEFT, bottom, _WIDTH - _RIGHT, bottom, "axis"))
        for x, value in zip(shown, values, strict=True):
            drawn.append(_word(across(x), bottom + 16, f"{value:g}", anchor="middle"))
        points = [(across(x), up(times * cell.value)) for x, cell in known]
        drawn.append(
            tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_="front")
        )
        for (_, cell), (a, b) in zip(known, points, strict=True):
            if cell.low is not None and cell.high is not None:
                drawn.append(_line(a, up(times * cell.low), a, up(times * cell.high), "bar"))
            drawn.append(_marker("method", a, b, 4.5))
        drawn.append(_word(_WIDTH / 2, bottom + 34, found.parameter, anchor="middle"))
    of = " ".join(filter(None, [found.method, f"({found.preset})" if found.preset else ""]))
    told = f" Other settings: {found.settings}." if found.settings else ""
    table = [
        [
            f"{value:g}",
            *("–" if cells[i] is None else _spread(cells[i], times) for _, times, cells in panels),
            f"{len(row.seeds)} × {row.n:,}",
        ]
        for i, (value, row) in enumerate(found.points)
    ]
    return figure(
        f"{of} along {found.parameter}",
        f"Rows that differ in {found.parameter} alone, with 95 % intervals.{told}",
        Markup("").join(drawn),
        each * len(panels),
        (found.parameter, *(title for title, _, _ in panels), "seeds × n"),
        table,
    )


# Shares


def bars(table: str, shares: Sequence[Share]) -> Markup:
    """A bar a group with its interval, and a line at the wanted share."""
    longest = max(len(share[0]) for share in shares)
    left = min(240.0, 12 + _CHARACTER * longest)
    high = max(max(share[5], share[6] or 0.0) for share in shares)
    across = _Axis(0.0, min(1.0, 1.08 * high), left, _WIDTH - 70)
    drawn, row = [], 26.0
    height = row * len(shares) + 34
    for value in across.ticks():
        drawn.append(_line(across(value), 4, across(value), height - 30, "grid"))
        drawn.append(
            _word(
                across(value),
                height - 14,
                f"{value:.0%}" if value >= 0.01 or not value else f"{value:.1%}",
                anchor="middle",
            )
        )
    for index, (group, _, _, share, low, end, target) in enumerate(shares):
        y = 6 + index * row
        drawn.append(_word(left - 6, y + 14, _cut(group, 34), anchor="end"))
        drawn.append(
            tag(
                "rect",
                x=left,
                y=y + 2,
                width=max(0.5, across(share) - left),
                height=row - 8,
                class_=f"c{index % _COLOURS}",
            )
        )
        drawn.append(
            _line(across(low), y + row / 2 - 2, across(end), y + row / 2 - 2, "bar strong")
        )
        if target is not None:
            drawn.append(_line(across(target), y, across(target), y + row - 4, "target"))
        drawn.append(_word(_WIDTH - 62, y + 14, f"{share:.1%}"))
    wanted = any(share[6] is not None for share in shares)
    return figure(
        f"Shares by {table}",
        "Valid images as the first judge reads them, all seeds together, not corrected; thin "
        "lines are 95 % intervals of finite images."
        + (" The dashed line is the wanted share." if wanted else ""),
        Markup("").join(drawn),
        height,
        ("group", "images", "of", "share", "95 % interval", "wanted"),
        [_share_row(share) for share in shares],
    )


def _share_row(share: Share) -> list[str]:
    group, count, n, value, low, high, target = share
    return [
        group,
        f"{count:,}",
        f"{n:,}",
        f"{value:.1%}",
        f"{low:.1%} – {high:.1%}",
        "–" if target is None else f"{target:.1%}",
    ]


def heat_map(table: str, shares: Sequence[Share]) -> Markup:
    """Shares of crossed groups: the first attribute downwards, the others across."""
    cells = {tuple(share[0].split("/", 1)): share for share in shares}
    down = list(dict.fromkeys(key[0] for key in cells))
    across = list(dict.fromkeys(key[-1] for key in cells))
    left = min(160.0, 16 + _CHARACTER * max(map(len, down)))
    width = (_WIDTH - left - 6) / len(across)
    row = 48.0
    largest = max(share[3] for share in shares) or 1.0
    fits = int(width / _CHARACTER)
    drawn = [
        _word(left + (i + 0.5) * width, 16, _cut(name, fits), anchor="middle")
        for i, name in enumerate(across)
    ]
    for j, name in enumerate(down):
        y = 26 + j * row
        drawn.append(_word(left - 8, y + row / 2 + 2, _cut(name, 22), anchor="end"))
        for i, other in enumerate(across):
            share = cells.get((name, other))
            if share is None:
                continue
            x = left + i * width
            drawn.append(
                tag(
                    "rect",
                    x=x,
                    y=y,
                    width=width - 3,
                    height=row - 3,
                    class_="heat",
                    fill_opacity=0.06 + 0.5 * share[3] / largest,
                )
            )
            drawn.append(_word(x + width / 2 - 1, y + 20, f"{share[3]:.1%}", anchor="middle"))
            if share[6] is not None:
                ratio = share[3] / share[6] if share[6] else math.inf
                text = f"{ratio:.2f} × wanted" if fits >= 15 else f"{ratio:.2f}×"
                drawn.append(_word(x + width / 2 - 1, y + 37, text, "t small", "middle"))
    return figure(
        f"Crossed groups: {table}",
        "Share of each crossing; darker is more. Below it, how many times the wanted share.",
        Markup("").join(drawn),
        30 + row * len(down),
        ("group", "images", "of", "share", "95 % interval", "wanted"),
        [_share_row(share) for share in shares],
    )


def strips(table: str, by_prompt: Mapping[str, Sequence[Share]]) -> Markup:
    """A strip a prompt, cut into the groups' shares; ticks where the wanted shares end."""
    longest = max(map(len, by_prompt))
    left = min(200.0, 12 + _CHARACTER * longest)
    width, row = _WIDTH - left - 12, 34.0
    drawn = []
    groups = [share[0] for share in next(iter(by_prompt.values()))]
    for index, (prompt, shares) in enumerate(by_prompt.items()):
        y, x, ends = 4 + index * row, left, 0.0
        drawn.append(_word(left - 6, y + 16, _cut(prompt, 28), anchor="end"))
        for place, share in enumerate(shares):
            size = share[3] * width
            drawn.append(
                tag(
                    "rect",
                    x=x,
                    y=y,
                    width=max(0.0, size),
                    height=row - 10,
                    class_=f"c{place % _COLOURS}",
                )
            )
            x += size
        x = left
        for place, share in enumerate(shares):
            text = f"{share[3]:.0%}"
            if share[3] * width > _CHARACTER * len(text) + 14:
                middle = x + share[3] * width / 2
                plate = _CHARACTER * len(text) + 6
                drawn.append(
                    tag(
                        "rect",
                        x=middle - plate / 2,
                        y=y + 4,
                        width=plate,
                        height=16.0,
                        class_="plate",
                    )
                )
                drawn.append(_word(middle, y + 16, text, anchor="middle"))
            x += share[3] * width
            if share[6] is not None and place < len(shares) - 1:
                ends += share[6]
                at = left + ends * width
                drawn.append(_line(at, y - 3, at, y + row - 7, "target"))
    height = 8 + row * len(by_prompt)
    keys = [
        (tag("rect", x=-6, y=-6, width=12, height=12, class_=f"c{i % _COLOURS}"), _cut(group, 30))
        for i, group in enumerate(groups)
    ]
    drawn += _key(keys, height + 10)
    lines = 1 + sum(34 + _CHARACTER * len(group) for group in groups) // (_WIDTH - _LEFT)
    return figure(
        f"{table} by prompt",
        "Each prompt's valid images by group, in the order of the key; dashed lines are where "
        "groups would end at the wanted shares.",
        Markup("").join(drawn),
        height + 8 + 18 * lines,
        ("prompt", "group", "images", "of", "share", "95 % interval", "wanted"),
        [[prompt, *_share_row(share)] for prompt, shares in by_prompt.items() for share in shares],
    )


def _cut(text: str, most: int) -> str:
    text = shown(text)
    return text if len(text) <= most else f"{text[: max(1, most - 1)]}…"
