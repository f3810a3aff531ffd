"""Authors are read from the attributions of quotations, and each author gets one name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.data.readers.authors import author, one_name_each, quotation

# The attributions are those of the packages, and the names were read from them by a person.
NAMED = {
    "Oscar Wilde": "Oscar Wilde",
    'Oscar Wilde, "The Picture of Dorian Gray"': "Oscar Wilde",
    "Voltaire": "Voltaire",
    "Larry Wall in <199710211624.JAA17833@wall.org>": "Larry Wall",
    "Larry Wall in perl.c from the perl source code": "Larry Wall",
    "Sean O'Casey on P. G. Wodehouse": "Sean O'Casey",
    "Fred Brooks, Jr.": "Fred Brooks",
    'Frederick Brooks Jr., "The Mythical Man Month"': "Frederick Brooks",
    'Douglas Coupland, "Generation X: Tales for an Accelerated Culture"': "Douglas Coupland",
    "H.L. Mencken": "H. L. Mencken",
    "J.R.R. Tolkien": "J. R. R. Tolkien",
    "Edgar A. Shoaff": "Edgar A. Shoaff",
    "Leonardo da Vinci": "Leonardo da Vinci",
    "Dr. Laurence J. Peter": "Laurence J. Peter",
    "Sir Winston Churchill, 1940": "Winston Churchill",
    "Dr. Johnson": "Dr. Johnson",
    "Chris Wedgwood <cw@ix.net.nz>": "Chris Wedgwood",
    "Charles-Maurice De Talleyrand": "Charles-Maurice De Talleyrand",
    "Jim Pick, 8 months before Debian 2.0 is finally released": "Jim Pick",
}
UNNAMED = (
    '"The Rockford Files"',
    "_Bill And Ted's Excellent Adventure_",
    "Larry Wall's blessing",
    'Larry Niven and Jerry Pournelle in "Oath of Fealty"',
    "Proverbs 18:12",
    "Chinese proverb",
    "Ancient Simian Proverb",
    "The Wall Street Journal, Tuesday, September 15, 1987",
    "README file from the NetHack game",
    "Seen on #debian-mentors",
    "from /usr/src/linux/MAINTAINERS",
    "Unknown source",
    "Anonymous",
    "terri@csd4.milw.wisc.edu",
    "Tea with a Kick (1924)",
    "A Kurt Vonnegut fan",
    "I have to go to court for kitty littering.",
    "Smith v. Moran, 193 N.E. 2d 466.",
    "- Sven Rudolph about licences in debian/non-free.",
)


@pytest.mark.parametrize("attribution", NAMED)
def test_the_author_is_read_from_an_attribution(attribution: str) -> None:
    assert author(attribution) == NAMED[attribution]


@pytest.mark.parametrize("attribution", UNNAMED)
def test_attributions_that_name_no_author_give_none(attribution: str) -> None:
    assert author(attribution) is None


def test_a_quotation_is_separated_from_its_attribution() -> None:
    fortune = (
        'Be brief.\n\tAlways.\n\t\t-- Oscar Wilde, "Phrases for the Use\n\t\tof the Young"\n\n\t[Quoted elsewhere.]\n'
    )
    assert quotation(fortune) == ("Be brief.\n\tAlways.", 'Oscar Wilde, "Phrases for the Use of the Young"')


@pytest.mark.parametrize(
    "fortune",
    [
        "Nobody said it.\n",
        "A dash -- Not An Author\n",
        "-- Not Indented\n",
        "One.\n\t\t-- Plato\nTwo.\n\t\t-- Voltaire\n",
        "\t\t-- Plato\n",
        "",
    ],
)
def test_entries_that_are_no_quotation_of_one_author_are_left_out(fortune: str) -> None:
    assert quotation(fortune) is None


def groups(names: list[str]) -> set[frozenset[str]]:
    found: dict[str, set[str]] = {}
    for spelling, name in one_name_each(names).items():
        found.setdefault(name, set()).add(spelling)
    return {frozenset(g) for g in found.values()}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["T. S. Eliot", "Thomas Stearns Eliot"], [{"T. S. Eliot", "Thomas Stearns Eliot"}]),
        (["Harry Truman", "Harry S. Truman", "H. Truman"], [{"Harry Truman", "Harry S. Truman", "H. Truman"}]),
        (["John Adams", "John Quincy Adams"], [{"John Adams"}, {"John Quincy Adams"}]),
        (["J. Adams", "John Adams", "James Adams"], [{"J. Adams"}, {"John Adams"}, {"James Adams"}]),
        (["John Q. Adams", "John R. Adams", "John Adams"], [{"John Q. Adams"}, {"John R. Adams"}, {"John Adams"}]),
        (["S. C. Johnson", "Samuel Johnson"], [{"S. C. Johnson"}, {"Samuel Johnson"}]),
        (["Otto von Bismarck", "Otto Von Bismarck"], [{"Otto von Bismarck", "Otto Von Bismarck"}]),
        (["Frost", "Robert Frost"], [{"Frost"}, {"Robert Frost"}]),
        (["Nietzsche", "Friedrich Nietzsche"], [{"Nietzsche", "Friedrich Nietzsche"}]),
        (["Wm. Shakespeare", "William Shakespeare"], [{"Wm. Shakespeare", "William Shakespeare"}]),
        (["René Descartes", "Rene Descartes"], [{"René Descartes", "Rene Descartes"}]),
    ],
)
def test_spellings_of_one_author_are_the_same_author(names: list[str], expected: list[set[str]]) -> None:
    assert groups(names) == {frozenset(e) for e in expected}


def test_the_fullest_then_the_most_frequent_spelling_names_the_author() -> None:
    assert set(one_name_each(["J. Austen", "J. Austen", "Jane Austen"]).values()) == {"Jane Austen"}
    assert set(one_name_each(["Peter De Vries", "Peter de Vries", "Peter de Vries"]).values()) == {"Peter de Vries"}
    assert set(one_name_each(["Nietzsche"]).values()) == {"Friedrich Nietzsche"}


given_names = st.sampled_from(["John", "James", "Jane", "J.", "Q.", "Quincy"])
name = st.builds(lambda g, s: " ".join([*g, s]), st.lists(given_names, max_size=3), st.sampled_from(["Adams", "Frost"]))


@given(st.lists(name, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_every_spelling_has_one_name_whatever_the_order(names: list[str], random) -> None:
    mapped = one_name_each(names)
    assert set(mapped) == set(names)
    assert all(a.split()[-1] == b.split()[-1] for a, b in mapped.items())
    other = list(names)
    random.shuffle(other)
    assert one_name_each(other) == mapped
    firsts = {}
    for spelling, n in mapped.items():
        if len(first := spelling.split()[0]) > 2 and " " in spelling:
            firsts.setdefault(n, set()).add(first)
    assert all(len(f) == 1 for f in firsts.values()), "two full first names are two authors"
