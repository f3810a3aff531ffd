"""A review as a page of HTML of its own."""

from __future__ import annotations

from expunge.data.dataset import Dataset
from expunge.promotion.review import Review
from expunge.report.comparison_page import section
from expunge.report.html import environment


def page(review: Review, dataset: Dataset) -> str:
    """A review as a page of its own, verdict of the gates first."""
    template = environment().get_template("review.html.jinja")
    return template.render(review=review, versions=review.versions(), sides=section(review.sides(), dataset))
