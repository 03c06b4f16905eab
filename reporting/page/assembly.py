"""The page as a whole: its sections in order of importance."""

from __future__ import annotations

from typing import Callable, Tuple

from reporting.markup import document
from reporting.page import classes, curves, heading, memory, pictures, positions, settings, timeline
from reporting.story import Story

RELOAD_SECONDS = 30
SECTIONS: Tuple[Tuple[str, str, Callable[[Story], str]], ...] = (
    ("learning", "Learning", curves.learning),
    ("effort", "Speed and gradients", curves.effort),
    ("timeline", "A step, piece by piece", timeline.section),
    ("memory", "Memory", memory.section),
    ("classes", "Class by class", classes.section),
    ("mistakes", "The most confident mistakes", pictures.mistakes),
    ("attention", "Where the model looked", pictures.attentions),
    ("positions", "How positions resemble each other", positions.section),
    ("run", "What ran", settings.section),
)


def render(story: Story, state: str, folder: str, now: float) -> str:
    """report.html. `state` is "running", "done", "stopped" or "failed"; `now` is in seconds since 1970."""
    made = [(identity, title, make(story)) for identity, title, make in SECTIONS]
    made.append(("files", "Where things are", settings.files(story, state, folder)))
    made = [entry for entry in made if entry[2]]
    links = "".join(f'<li><a href="#{identity}">{title}</a></li>' for identity, title, _ in made)
    sections = "".join(
        f'<section id="{identity}" aria-labelledby="{identity}-title"><h2 id="{identity}-title">{title}</h2>{content}</section>\n'
        for identity, title, content in made
    )
    body = (
        '<a class="skip" href="#content">Skip to the figures</a>\n'
        f"<header>{heading.head(story, state, now)}"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        f'<main id="content" tabindex="-1">{heading.tiles(story)}\n{sections}</main>'
    )
    return document(heading.title(story, state), body, RELOAD_SECONDS if state == "running" else 0)
