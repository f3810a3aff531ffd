"""`expunge init`: the pipeline into somebody's own repository, and from one version to the next.

Start with `plan.py`, which says what is written; `graph.py` makes dvc.yaml depend on the installed package,
`answers.py` turns what was asked for into params.yaml, `upgrade.py` compares a workspace with the installed version.
"""
