"""The description of a method: the requests it answers, what it needs, what it changes, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

REQUESTS = ("classes", "rows", "corrections")
NEEDS = (
    "head", "moments", "features", "activations", "inputs", "images", "retained rows", "unseen rows", "teacher",
    "deletable model",
)  # fmt: skip
CHANGES = ("head", "map", "weights")
COSTS = ("closed form", "features only", "passes over forgotten rows", "passes over retained rows")


@dataclass(frozen=True)
class Facts:
    """The description of a method, stored as its class attribute `facts`.

    requests   the kinds of request the method supports, from REQUESTS; other kinds are refused. "corrections" means
               rows that are kept under a new label
    needs      what it reads besides the forgotten rows, from NEEDS: "inputs" are images or texts themselves, "images"
               are images alone, because the method changes pixels; a "deletable model" was trained so that rows can
               be deleted from it (`model.training: ridge`, `head` or `above`)
    changes    "head", "map" (between features and head) or "weights" (also below the head)
    cost       what the running time depends on, from COSTS. "closed form" includes one pass of gradients without
               descent; "features only" is descent on features that were extracted once
    source     the paper, and "reconstruction" where its formulas were not published; "control" for the method with
               which the verdict compares the others
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
                raise ValueError(f"{name} must be of {', '.join(known)}, got {sorted(unknown)}")

    @property
    def is_control(self) -> bool:
        """Whether the verdict compares the other methods with this one."""
        return self.source == "control"

    @property
    def is_guarded(self) -> bool:
        """Whether a result that lost accuracy on retained rows is refused.

        The control and deletion from a deletable model are judged as they are.
        """
        return not self.is_control and "deletable model" not in self.needs
