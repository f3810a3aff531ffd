"""Tables, plots, the HTML report and the model card, all rendered from the JSON that the stages wrote.

May import data, evaluation and system.
Start with `summary.py` and `tables.py`; `html.py` makes the page.
"""
