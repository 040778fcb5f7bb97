"""The bibliography's style: by author and year, the labels too, with DOI and arXiv linked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.style.formatting.unsrt import Style as Unsorted
from pybtex.style.labels import BaseLabelStyle

NAME = "author_year"


def label(entry: Entry) -> str:
    """Authors' last names and the year, as the text cites them: one name, two, or the first and "et al."."""
    people = entry.persons.get("author") or entry.persons.get("editor") or []
    names = [" ".join(map(str, (*person.rich_prelast_names, *person.rich_last_names))) for person in people]
    if not names:
        who = entry.fields.get("organization", entry.key)
    elif len(names) <= 2:
        who = " and ".join(names)
    else:
        who = f"{names[0]} et al."
    return f"{who}, {entry.fields.get('year', 'n.d.')}"


class Labels(BaseLabelStyle):  # type: ignore[misc]  # pybtex has no types
    """Labels by author and year."""

    def format_labels(self, sorted_entries: Iterable[Entry]) -> Iterator[str]:
        """One label for each entry; a letter tells two of the same apart."""
        entries = list(sorted_entries)
        plain = [label(entry) for entry in entries]
        for place, text in enumerate(plain):
            same = [i for i, other in enumerate(plain) if other == text]
            yield text if len(same) == 1 else f"{text}{'abcdefgh'[same.index(place)]}"


class Style(Unsorted):  # type: ignore[misc]
    """pybtex's plain style, sorted and labelled by author and year."""

    default_sorting_style = "author_year_title"
    default_label_style = Labels


def register() -> None:
    """Make the style known to pybtex, under :data:`NAME`."""
    register_plugin("pybtex.style.formatting", NAME, Style)
