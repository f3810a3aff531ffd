"""A review as a page of HTML of its own."""

from __future__ import annotations

from expunge.data.dataset import Dataset
from expunge.promotion.gates import short
from expunge.promotion.review import Review
from expunge.report.comparison_page import Sides, section
from expunge.report.html import environment


def page(review: Review, dataset: Dataset) -> str:
    """A review as a page of its own, verdict of the gates first."""
    before = "the original" if review.champion is None else f"champion, version {review.champion.version}"
    after = f"challenger, version {review.challenger.version}"
    of_before, of_after = (what and f" (forgets {what})" for what in review.forgets)
    columns = f"{before}{of_before or ''}", f"{after}{of_after or ''}"
    sides = Sides(*columns, review.evaluations, review.parts, review.retrained, review.classes)
    tags = (("method", "method"), ("shown", "claims"), ("utility", "utility"), ("gates against it", "failed_gates"))
    shown = (review.champion, review.challenger)
    rows = [(label, *("–" if v is None else v.tags.get(tag, "–") for v in shown)) for label, tag in tags]
    rows.append(("request", *("–" if v is None else short(v.tags.get("request", "–")) for v in shown)))
    rows.append(("forgets", *(what or "–" for what in review.forgets)))
    template = environment().get_template("review.html.jinja")
    return template.render(
        review=review, serves=review.serves, before=before, after=after, versions=rows, sides=section(sides, dataset)
    )
