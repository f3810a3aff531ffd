"""The suites of docs/reliability.md: a mark for each, so that `pytest -m NAME` runs one. Not every test has one."""

SUITES = {
    "faults": (
        "erasure/test_clock_jumps.py", "erasure/test_dropped.py", "erasure/test_kill.py", "flows/test_flow_killed.py",
        "flows/test_retries.py", "flows/test_server_dies.py", "flows/test_service.py", "stages/test_disk.py",
        "stages/test_kill.py", "stages/test_killed_stages.py", "stages/test_offline.py", "sweep/test_kill.py",
        "system/test_cut_off.py", "system/test_parent.py", "system/test_storage.py", "tracking/test_outages.py",
        "tracking/test_store.py",
    ),
    "hostile": (
        "data/test_filters.py", "data/test_images.py", "data/test_limits.py", "models/test_checkpoint.py",
        "stages/test_bad_input.py", "test_config.py", "test_hostile_input.py",
    ),
    "soundness": ("erasure/test_soundness.py",),
    "secrets": ("ledger/test_keys.py", "test_offline.py", "test_secrets.py"),
    "load": ("erasure/test_load.py", "report/test_many_methods.py"),
    "supply": ("system/test_bill.py",),
}  # fmt: skip
