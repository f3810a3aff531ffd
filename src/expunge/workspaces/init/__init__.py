"""`expunge init`: put the pipeline into a user's repository, and move it from one version to the next.

Start with `plan.py`, which lists what is written. `graph.py` makes dvc.yaml depend on the installed package,
`answers.py` turns the options into params.yaml, and `upgrade.py` compares a workspace with the installed version.
"""
