"""A review as a standalone HTML page."""

from __future__ import annotations

from expunge.data.dataset import Dataset
from expunge.promotion.review import Review
from expunge.report.comparison_page import section
from expunge.report.templates import environment


def page(review: Review, dataset: Dataset) -> str:
    """Return the HTML page of a review; the verdict of the gates comes first."""
    template = environment().get_template("review.html.jinja")
    return template.render(
        review=review, versions=review.versions(), comparison=section(review.compared_models(), dataset)
    )
