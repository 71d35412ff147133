"""Pieces of HTML that several pages show. Whatever is not ours is escaped here."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from html import escape

from studio.jobs.job import ENDED, Job
from studio.library.item import Item
from studio.ui.strings import Words, translated

LEAST_SHARE = 0.03
"""Before that much is done, nothing is said about the time left."""

_COUNT = re.compile(r"[\d.]+ of \d")


def note(text: str, kind: str = "") -> str:
    """A sentence in a coloured field; "" for no text. kind: "bad", "warn", "good" or "" (plain)."""
    if not text:
        return ""
    role = "alert" if kind == "bad" else "status"
    return f'<p class="note {kind}" role="{role}">{escape(text)}</p>'


def step_head(number: int, key: str) -> str:
    """The head of a numbered step; `KEY_title` and `KEY_hint` are in the catalogue."""
    return translated(
        lambda words: (
            f'<div class="step-head"><b aria-hidden="true">{number}</b><div><h2>{words(f"{key}_title")}</h2>'
            f"<p>{words(f'{key}_hint')}</p></div></div>"
        )
    )


def card_head(key: str, *, hint: bool = False) -> str:
    """The title of a card, with the sentence `KEY_hint` below it if wanted."""
    title, more = (key, "") if not hint else (f"{key}_title", f"{key}_hint")
    below = (lambda words: f'<p class="hint">{words(more)}</p>') if hint else (lambda words: "")
    return translated(lambda words: f'<h2 class="card-title">{words(title)}</h2>{below(words)}')


def empty(title: str, hint: str, *links: str) -> str:
    """What an empty place shows: what will be here, and how to get there. All of it is trusted text."""
    return (
        '<div class="empty"><span class="ghost" aria-hidden="true"><i></i><i></i><i></i></span>'
        f'<b>{title}</b><span>{hint}</span><span class="actions">{"".join(links)}</span></div>'
    )


def link(address: str, text: str, main: bool = False) -> str:
    """A link that looks like a button."""
    return f'<a class="link{" main" if main else ""}" href="{escape(address)}">{escape(text)}</a>'


def act(name: str, item_id: str, text: str, *, pressed: bool | None = None, style: str = "link") -> str:
    """A button on a board."""
    state = "" if pressed is None else f' aria-pressed="{str(pressed).lower()}"'
    return f'<button type="button" class="{style}" data-act="{name}" data-id="{escape(item_id)}"{state}>{text}</button>'


def state_pill(job: Job, words: Words) -> str:
    """A job's state as a coloured word."""
    state = "paused" if job.held and job.state not in ENDED else str(job.state)
    return f'<span class="pill {state}">{words(f"state_{state}")}</span>'


def job_card(job: Job, words: Words, *, actions: str = "") -> str:
    """Title, state, progress, time left, the last message or the error."""
    share = 1.0 if job.state == "succeeded" else min(1.0, max(0.0, job.progress))
    percent = round(100 * share)
    parts = [f'<div class="top"><span class="name">{escape(job.title[:160])}</span>{state_pill(job, words)}</div>']
    if job.state not in ENDED:
        parts.append(
            f'<div class="meter" role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent}" '
            f'aria-label="{escape(job.title[:80])}"><i style="width:{percent}%"></i></div>'
        )
    if job.state == "failed":
        parts.append(note(job.error, "bad"))
    elif job.state == "running":
        parts.append(f'<p class="say">{percent} %{_left(job, share, words)}</p>')
    if job.message and not _COUNT.match(job.message) and job.state != "failed":
        parts.append(f'<p class="say">{escape(job.message)}</p>')
    if actions:
        parts.append(f'<div class="actions">{actions}</div>')
    return f'<div class="job">{"".join(parts)}</div>'


def _left(job: Job, share: float, words: Words) -> str:
    """The time left, as it went so far; nothing at the very beginning."""
    if job.started is None or share < LEAST_SHARE:
        return ""
    spent = time.time() - job.started
    return f" · {words('time_left', time=clock(spent * (1.0 - share) / share))}"


def tile(act_name: str, item_id: str, source: str, title: str, under: str = "", *, pressed: bool = False, badge: str = "") -> str:
    """A picture that can be chosen."""
    picture = (
        f'<img class="pic" src="{escape(source)}" alt="{escape(title[:120])}" loading="lazy" decoding="async">'
        if source
        else f'<span class="pic nopic" aria-hidden="true">{escape(title[:1].upper())}</span>'
    )
    caption = f'<span class="under">{under}</span>' if under else ""
    return (
        f'<button type="button" class="tile" data-act="{act_name}" data-id="{escape(item_id)}" '
        f'aria-pressed="{str(pressed).lower()}" title="{escape(title[:300])}">{picture}{badge}{caption}</button>'
    )


def item_tile(item: Item, under: str, *, pressed: bool = False, badge: str = "") -> str:
    """A thing of the library that can be chosen."""
    source = f"/media/items/{item.id}/small" if item.has_thumbnail or item.kind == "picture" else ""
    return tile("open", item.id, source, item.name, under, pressed=pressed, badge=badge)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], chosen: int | None = None) -> str:
    """A table of trusted HTML."""
    titles = "".join(f"<th scope=col>{text}</th>" for text in head)
    body = "".join(
        f"<tr{' class=chosen' if number == chosen else ''}>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
        for number, row in enumerate(rows)
    )
    return (
        f'<div class="table-wrap"><table class="plain-table"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values; both are escaped."""
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs if value)
    return f'<dl class="facts">{cells}</dl>'


def clock(seconds: float) -> str:
    """1:05 min, 42 s, 2:10 h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def megabytes(count: float) -> str:
    """1.4 MB, 350 kB."""
    if count < 1_000_000:
        return f"{count / 1000:.0f} kB"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def ago(moment: float, words: Words) -> str:
    """How long ago a moment was, in one unit."""
    seconds = max(0.0, time.time() - moment)
    for length, unit in ((86_400, "days"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= 2 * length or unit == "s":
            count = int(seconds // length)
            return words("ago", time=words("days", count=count) if unit == "days" else f"{count} {unit}")
    raise AssertionError("seconds are the last unit")
