"""The record of benchmark runs compares a run with the newest one of the same benchmark on the same machine."""

import json

from benchmarks.history import changes, keep, last, machine, numbers, print_changes

RUN = {"loft": {"threads": 2, "cases": [{"rank": 9, "ratio": 0.05}, {"rank": 100, "ratio": 0.2}]}, "met": {"all": True}}


def test_every_number_has_a_dotted_name_and_truth_values_have_none():
    assert dict(numbers(RUN)) == {
        "loft.threads": 2, "loft.cases.0.rank": 9, "loft.cases.0.ratio": 0.05,
        "loft.cases.1.rank": 100, "loft.cases.1.ratio": 0.2,
    }  # fmt: skip


def test_only_figures_that_differ_by_more_than_a_tenth_are_changes():
    now = {"loft": {"threads": 2, "cases": [{"rank": 9, "ratio": 0.052}, {"rank": 100, "ratio": 0.3}]}}
    assert changes(RUN, now) == [("loft.cases.1.ratio", 0.2, 0.3)]


def test_the_last_record_is_of_the_same_machine_and_holds_the_newest_run_of_each_benchmark(tmp_path):
    history = tmp_path / "history.jsonl"
    records = [
        {"commit": "a", "date": "2026-01-01", "machine": "x", "results": {"loft": {"s": 1}, "ru": {"s": 1}}},
        {"commit": "b", "date": "2026-01-02", "machine": "y", "results": {"loft": {"s": 9}}},
        {"commit": "c", "date": "2026-01-03", "machine": "x", "results": {"loft": {"s": 2}}},
    ]
    history.write_text("".join(json.dumps(r) + "\n" for r in records))
    found = last(history, "x")
    assert found is not None and found["commit"] == "c"
    assert found["results"] == {"loft": {"s": 2}, "ru": {"s": 1}}
    assert last(history, "z") is None and last(tmp_path / "none", "x") is None


def test_a_kept_run_is_what_the_next_run_is_compared_with(tmp_path, capsys):
    history = tmp_path / "history.jsonl"
    print_changes({"loft": {"s": 1.0}}, history)
    assert "no record of this machine" in capsys.readouterr().out
    keep({"loft": {"s": 1.0}}, history)
    keep({"ru": {"s": 3.0}}, history)
    assert len(history.read_text().splitlines()) == 2 and machine() in history.read_text()
    print_changes({"loft": {"s": 2.0}}, history)
    shown = capsys.readouterr().out
    assert "loft.s" in shown and "2.00" in shown
    print_changes({"loft": {"s": 1.05}}, history)
    assert "No figure differs" in capsys.readouterr().out
