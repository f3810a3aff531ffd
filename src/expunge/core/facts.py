"""What a method says about itself: the requests it answers, what it needs, what it changes, what it costs."""

from __future__ import annotations

from dataclasses import dataclass

REQUESTS = ("classes", "rows", "corrections")
NEEDS = ("head", "moments", "features", "activations", "images", "retained rows", "unseen rows", "teacher")
CHANGES = ("head", "map", "weights")
COSTS = ("closed form", "features only", "passes over forgotten rows", "passes over retained rows")


@dataclass(frozen=True)
class Facts:
    """Facts of a method, kept as the class attribute `facts`.

    requests   kinds of request it makes sense for, of REQUESTS; another kind is refused. "corrections": rows that keep
               existing under another label
    needs      what it looks at besides the forgotten rows, of NEEDS
    changes    "head", "map" (features on their way to the head) or "weights" (below the head as well)
    cost       what its time grows with, of COSTS; "closed form" also covers one pass of gradients without descent,
               "features only" descent on features that were fetched once
    source     paper, and "reconstruction" where its formulas were not published
    """

    requests: tuple[str, ...]
    needs: tuple[str, ...]
    changes: str
    cost: str
    source: str

    def __post_init__(self) -> None:
        for name, given, known in (
            ("requests", self.requests, REQUESTS),
            ("needs", self.needs, NEEDS),
            ("changes", (self.changes,), CHANGES),
            ("cost", (self.cost,), COSTS),
        ):
            if unknown := set(given) - set(known):
                raise ValueError(f"{name} {sorted(unknown)}: of {', '.join(known)}")
