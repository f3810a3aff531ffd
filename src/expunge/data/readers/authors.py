"""Extract author names from the attribution lines of quotations, and unify the spellings of one author.

In the files of the `fortune` program, a quotation ends with an indented line `-- Author, "Source"`. The rules are
deterministic and use only the text, so the same files give the same authors on every machine.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

ATTRIBUTION = re.compile(r"^\s+--\s*(\S.*)$")
ENDS = re.compile(r"""[,;:("<\[_]|\s-|\s'""")  # a name ends where a source or a remark begins
PARTICLES = {"al", "bin", "da", "de", "del", "della", "den", "der", "di", "du", "la", "le", "ten", "ter", "van", "von"}
SUFFIXES = {"jr", "sr", "ii", "iii", "iv", "esq", "phd"}
TITLES = {
    *("admiral", "archbishop", "bishop", "capt", "captain", "chancellor", "chief", "col", "colonel", "comrade", "dean"),
    *("dr", "father", "gen", "general", "gov", "governor", "judge", "justice", "lady", "lord", "lt", "maj", "major"),
    *("marshal", "mayor", "miss", "mr", "mrs", "ms", "pres", "president", "prime", "minister", "prof", "professor"),
    *("rabbi", "rep", "rev", "reverend", "secretary", "sen", "senator", "sgt", "sir", "vice"),
}
# Words of attributions to a thing, a group or an unknown person. A name with any of them is not an author.
NOBODY = {
    *("adage", "advertisement", "anon", "anonymous", "another", "army", "article", "author", "bible"),
    *("book", "bulletin", "bumper", "button", "chinese", "church", "comics", "committee", "company", "cookie"),
    *("corporation", "dating", "department", "dictionary", "documentation", "editorial", "encyclopedia", "epigrams"),
    *("fan", "fans", "film", "fortune", "from", "gazette", "graffiti", "guide", "headline", "herald", "institute"),
    *("journal", "lampoon", "law", "letter", "license", "list", "magazine", "man", "manual", "memo", "message"),
    *("monthly", "movie", "news", "newsletter", "newspaper", "newsweek", "notice", "official", "old", "one", "our"),
    *("page", "paper", "post", "poster", "press", "principle", "proverb", "proverbs", "quarterly", "quoted", "reader"),
    *("recent", "reuters", "review", "rule", "saying", "science", "seen", "show", "sign", "song", "source", "sticker"),
    *("street", "t-shirt", "television", "the", "theorem", "times", "topic", "tribune", "two", "unknown", "university"),
    *("usenet", "various", "weekly", "winner", "winning", "wisdom", "world", "yet", "zen"),
}

# Spellings of one author that no rule below joins; they were checked by hand against the quotations.
ALIASES = {
    "Captain Kirk": "Kirk",
    "Cervantes": "Miguel de Cervantes",
    "Dijkstra": "Edsger W. Dijkstra",
    "Dr. McCoy": "McCoy",
    "Emerson": "Ralph Waldo Emerson",
    "Frederick Brooks": "Fred Brooks",
    "Goethe": "Johann Wolfgang von Goethe",
    "James T. Kirk": "Kirk",
    "Johann van Goethe": "Johann Wolfgang von Goethe",
    "Kipling": "Rudyard Kipling",
    "Lao Tsu": "Lao Tse",
    "Lewis Carrol": "Lewis Carroll",
    "Machiavelli": "Niccolo Machiavelli",
    "Milton": "John Milton",
    "Nietzsche": "Friedrich Nietzsche",
    "Picasso": "Pablo Picasso",
    "Samuel Clemens": "Mark Twain",
    "Seneca": "Lucius Annaeus Seneca",
    "Shakespeare": "William Shakespeare",
    "Thoreau": "Henry David Thoreau",
    "Wm. Shakespeare": "William Shakespeare",
}


def quotation(fortune: str) -> tuple[str, str] | None:
    """Return text and attribution of one fortune; None unless exactly one indented line `-- ...` follows a text.

    A dialogue or a list with several such lines has no single author. The attribution extends to the next blank line.
    """
    lines = fortune.strip("\n").split("\n")
    found = [(row, match[1]) for row, line in enumerate(lines) if (match := ATTRIBUTION.match(line))]
    if len(found) != 1:
        return None
    row, first = found[0]
    text = "\n".join(lines[:row]).strip("\n").rstrip()
    rest: list[str] = []
    for line in lines[row + 1 :]:
        if not line.strip():
            break
        rest.append(line.strip())
    return (text, " ".join([first.strip(), *rest])) if text.strip() else None


def author(attribution: str) -> str | None:
    """Return the name at the beginning of an attribution, without titles; None if it does not name a single author.

    A name consists of one to five capitalised words or initials, with particles between them. It ends at punctuation
    or, after at least two words, at the first lower-case word, as in `Larry Wall in the perl man page`.
    """
    words: list[str] = []
    head = ENDS.split(attribution.strip(), maxsplit=1)[0].split()
    for place, word in enumerate(head):
        if (word.lower() in PARTICLES and place + 1 < len(head)) or _capitalised(word):
            words.append(word)
        elif word[0].islower() and word.isalpha() and word != "and" and len(words) >= 2:
            break
        else:
            return None
    while words and words[-1].lower() in PARTICLES:
        words.pop()
    bare = list(words)
    while len(bare) > 1 and _plain(bare[0]) in TITLES:
        bare.pop(0)
    while len(bare) > 1 and _plain(bare[-1]) in SUFFIXES:
        bare.pop()
    if len(bare) == 1 and len(words) > 1 and _plain(words[-1]) not in SUFFIXES:
        bare = words  # a title before a single surname is kept: `Dr. Johnson`
    if not 1 <= len(bare) <= 5 or bare[0] in ("A", "An") or _initials(bare[-1]):
        return None
    if {_plain(word) for word in bare if not _initials(word)} & NOBODY:
        return None
    return re.sub(r"(?<=\b[A-Z]\.)(?=[A-Z])", " ", " ".join(bare)).removesuffix(".")


def one_name_each(names: Sequence[str]) -> dict[str, str]:
    """Map every spelling in `names` (one entry per quotation) to the name of its author.

    Spellings that differ only in case, accents or dots belong to one author. So do names with the same surname and
    first name whose other given names agree or are omitted initials (`Harry S. Truman`, `Harry Truman`). Initials are
    joined to the author whose given names they abbreviate one by one (`T. S. Eliot`, `Thomas Stearns Eliot`), unless
    two authors match. A surname alone is joined to a full name only through ALIASES. The author's name is the longest
    spelling; ties go to the more frequent one, then to the first in alphabetical order.
    """
    spellings: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for name in names:
        spellings[_key(ALIASES.get(name, name))][name] += 1
    by_surname: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for key in sorted(spellings):
        by_surname[key[-1]].append(key)
    result = {}
    for keys in by_surname.values():
        for group in _groups(keys):
            together = sum((spellings[key] for key in group), Counter[str]())
            counts = Counter({ALIASES.get(s, s): n for s, n in sorted(together.items())})
            best = min(counts, key=lambda s: (-len(_key(s)), -len("".join(_key(s))), -together[s], s))
            result.update(dict.fromkeys(together, best))
    return result


def _groups(keys: list[tuple[str, ...]]) -> list[list[tuple[str, ...]]]:
    """Group keys with the same surname by author: first by full first names, then add initials that fit one group."""
    groups: list[list[tuple[str, ...]]] = []
    firsts: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    for key in keys:
        firsts[key[:1] if len(key) > 1 and len(key[0]) > 1 else key].append(key)
    for first, group in firsts.items():
        agreed = all(_extends(a[:-1], b[:-1]) for a in group for b in group if len(a) <= len(b))
        groups += [group] if len(first) == 1 and agreed else [[key] for key in group]
    initials = [key for key in keys if len(key) > 1 and len(key[0]) == 1]
    for key in initials:
        fits = [g for g in groups if any(len(k[0]) > 1 and _abbreviates(key[:-1], k[:-1]) for k in g)]
        if len(fits) == 1:
            groups.remove([key])
            fits[0].append(key)
    return groups


def _extends(short: tuple[str, ...], long: tuple[str, ...]) -> bool:
    """Whether `long` begins with `short`, up to abbreviation, and continues only with initials."""
    return _abbreviates(short, long[: len(short)]) and all(len(word) == 1 for word in long[len(short) :])


def _abbreviates(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """Whether two lists of given names match one by one; a name also matches its initial."""
    same = all(x == y or (1 in (len(x), len(y)) and x[0] == y[0]) for x, y in zip(a, b, strict=False))
    return len(a) == len(b) and same


def _key(name: str) -> tuple[str, ...]:
    folded = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode() or name
    return tuple(folded.lower().replace(".", " ").replace("'", "").split()) or (name,)


def _capitalised(word: str) -> bool:
    letters = word.replace(".", "").replace("'", "").replace("-", "")
    if not letters.isalpha() or not letters[0].isupper() or word.endswith(("'s", "s'")):
        return False
    return not (letters.isupper() and len(letters) > 1) or _initials(word) or letters.lower() in SUFFIXES


def _initials(word: str) -> bool:
    """Whether `word` consists of initials, such as `A.`, `J.R.R.` or a single capital."""
    return re.fullmatch(r"(?:[A-Z]\.)*[A-Z]\.?", word) is not None and (len(word) == 1 or "." in word)


def _plain(word: str) -> str:
    return word.lower().strip(".")
