"""An entry with another fit seed: what it changes, and what it leaves."""

import torch

from expunge.methods.seeding import seeded
from expunge.methods.table import fit

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


def test_another_seed_gives_another_fit_and_the_same_the_same(request_):
    def weights(offset: int) -> torch.Tensor:
        return fit("mlp", request_, seeded("mlp", TABLE, offset)).map(request_.z_forget[:20])

    torch.testing.assert_close(weights(0), fit("mlp", request_, TABLE).map(request_.z_forget[:20]), rtol=0, atol=0)
    assert not torch.equal(weights(0), weights(1))
