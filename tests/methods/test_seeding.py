"""Tests of entries with another fit seed: which settings and fits change, and which stay."""

import pytest
import torch

from expunge.methods.fitting import fit
from expunge.methods.seeding import other_seeds, seeded
from expunge.system.errors import ConfigError

TABLE = {
    "mlp": {"method": "ru-mlp", "hidden": [16], "steps": 20, "seed": 3, "max_distortion": None},
    "map": {"method": "teacher-map", "after": {"method": "relearn", "cut": "stage2"}},
    "loft": {"rank": 4},
    "certified-removal": {},
}


def test_the_seed_of_the_entry_and_of_what_it_starts_from_is_raised():
    assert seeded("mlp", TABLE, 5) == {"mlp": {**TABLE["mlp"], "seed": 8}}
    assert seeded("map", TABLE, 5)["map"]["after"]["seed"] == 5
    assert seeded("certified-removal", TABLE, 5) == {"certified-removal": {}}
    assert seeded("unknown", TABLE, 5) == {}
    assert "seed" not in TABLE["map"]["after"], "the table was changed"


@pytest.mark.slow
def test_another_seed_gives_another_fit_and_the_same_the_same(fit_inputs):
    def weights(offset: int) -> torch.Tensor:
        return fit("mlp", fit_inputs, seeded("mlp", TABLE, offset)).map(fit_inputs.z_forget[:20])

    torch.testing.assert_close(weights(0), fit("mlp", fit_inputs, TABLE).map(fit_inputs.z_forget[:20]), rtol=0, atol=0)
    assert not torch.equal(weights(0), weights(1))


def test_the_fits_that_an_entry_asks_for():
    table = {**TABLE, "mlp": {**TABLE["mlp"], "fit_seeds": 3}}
    others = other_seeds("mlp", table)
    assert [other["mlp"]["seed"] for other in others] == [4, 5]
    assert other_seeds("mlp", TABLE) == []  # one fit is the default
    assert other_seeds("certified-removal", {"certified-removal": {"fit_seeds": 3}}) is None  # it has no seed
    for wrong in (0, True, "3", 2.0, 1000):
        with pytest.raises(ConfigError, match=r"fit\.mlp\.fit_seeds"):
            other_seeds("mlp", {"mlp": {"fit_seeds": wrong}})
