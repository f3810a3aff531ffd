"""Test that every preset, merged into params.yaml, is a valid configuration with the settings of its paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from expunge.config import load_config
from expunge.data.readers.named import NAMED, PREFIX, WITHOUT_DOWNLOAD
from expunge.models.zoo import build
from expunge.reproduce.costs import GPU, estimate
from expunge.reproduce.presets import Preset, load, names
from expunge.reproduce.switches import SWITCHES, chosen
from expunge.system.errors import ConfigError
from expunge.system.vision_imports import import_vision
from expunge.training.settings import recipe_of

ROOT = Path(__file__).parent.parent
PIPELINES = [name for name in names(ROOT) if load(ROOT, name).toy is None]
OFF: frozenset[str] = frozenset()
RU = ("ru-cifar10-class", "ru-cifar100-random", "ru-tiny-imagenet-class")


def params(name: str, run: str | None = None, switches: frozenset[str] = OFF) -> dict:
    preset = load(ROOT, name)
    given = {"model": {"checkpoint": "weights.pth"}} if preset.weights else {}
    return preset.params_of(ROOT, run or next(iter(preset.runs)), switches, given)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_preset_is_a_configuration(name: str, tmp_path: Path) -> None:
    preset = load(ROOT, name)
    for run in preset.runs:
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params(name, run)))
        config = load_config(tmp_path / "params.yaml")
        if config.data.source.startswith(PREFIX):
            assert config.data.source.removeprefix(PREFIX) in (*NAMED, *WITHOUT_DOWNLOAD)
        assert set(config.methods) <= set(config.fit)
    plain = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in preset.params.items():
        assert values != plain[section], f"{name}: {section} says what params.yaml says"
    assert estimate(params(name), len(preset.runs), len(preset.rounds)).hours[GPU] > 0


def test_exact_deletion_costs_a_share_of_training_with_shards() -> None:
    """Ten requests train one of eight shards each, and without shards everything anew each time."""

    def hours(name: str, **model: object) -> float:
        given = params(name)
        given["model"].update(model)
        return estimate(given, 1, 10).hours[GPU]

    none = hours("continual-people-above", training="ridge")
    above, shards = (hours(f"continual-people-{kind}") - none for kind in ("above", "shards"))
    assert above / shards == pytest.approx((1 + 10) / (1 + 10 / 8), rel=0.01)
    assert hours("continual-people-head") > none


def test_every_preset_is_found() -> None:
    assert len(names(ROOT)) == 18 and len(PIPELINES) == 17


@pytest.mark.parametrize(
    ("name", "epochs", "decay", "warmup", "hidden", "passes"),
    [
        ("ru-cifar10-class", 100, 5e-4, 0, 512, 5),
        ("ru-cifar100-random", 200, 5e-4, 0, 1024, 10),
        ("ru-tiny-imagenet-class", 160, 1e-4, 5, 1024, 10),
    ],
)
def test_presets_of_ru_have_the_published_settings(
    name: str, epochs: int, decay: float, warmup: int, hidden: int, passes: int
) -> None:
    given = params(name, switches=frozenset(SWITCHES))
    train = given["train"]
    assert (train["optimizer"], train["lr"], train["weight_decay"], train["batch_size"]) == ("adamw", 1e-3, decay, 256)
    assert (train["schedule"], train["epochs"], train["augment"]) == ("cosine", epochs, "flip-crop")
    assert train["warmup"] * epochs == pytest.approx(warmup) and given["split"]["seed"] == 42
    grid = {n: given["fit"][n] for n in given["methods"] if n.startswith(("std-", "zero-"))}
    assert len(grid) == 2 * 3 * 5
    assert sorted({e["beta"] for e in grid.values()}) == [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    for entry_name, entry in grid.items():
        assert (entry["steps"], entry["epochs"], entry["batch_size"], entry["lr"]) == ("published", passes, 256, 1e-3)
        assert entry["noise_scale"] == 0 and entry["max_distortion"] is None
        widths = [hidden] * entry_name.count("-h")
        assert entry.get("hidden", []) == widths
        assert entry.get("init", "published") == "published"
        assert entry.get("loss", "published") == entry.get("proxies", "raw").replace("raw", "published") == "published"


def test_artefacts_are_off_unless_asked_for() -> None:
    for entry_name, entry in load(ROOT, "ru-cifar10-class").entries(OFF).items():
        assert "steps" not in entry and "published" not in (entry.get("loss"), entry.get("proxies"))
        assert entry.get("proxies", "scaled") == "scaled", entry_name
    assert chosen(["raw-proxies"]) == {"raw-proxies"} and chosen([], as_published=True) == set(SWITCHES)
    with pytest.raises(ConfigError, match="did you mean raw-proxies"):
        chosen(["raw-proxy"])


def test_names_of_entries_are_keys_of_dvc() -> None:
    entries = load(ROOT, "ru-cifar10-class").entries(OFF)
    assert {"std-linear-1e-4", "zero-h-h-1e0"} <= set(entries) and not any("." in name for name in entries)


@pytest.mark.parametrize(
    ("name", "rank", "steps", "lr"),
    [
        ("loft-tiny-imagenet-classes", 250, 50, 1.0),
        ("loft-tiny-imagenet-rows", 300, 100, 1.0),
        ("loft-tiny-imagenet-180", 18, 50, 1.0),
        ("loft-tiny-imagenet-continual", 100, 50, 1.0),
        ("loft-imagenet", 500, 100, 10.0),
    ],
)
def test_presets_of_loft_have_the_published_settings(name: str, rank: int, steps: int, lr: float) -> None:
    entry = params(name)["fit"]["loft-published"]
    assert (entry["rank"], entry["steps"], entry["lr"], entry["solver"]) == (rank, steps, lr, "riemannian-adam")


def test_presets_ask_for_the_published_classes_and_rows() -> None:
    runs = load(ROOT, "loft-tiny-imagenet-classes").runs
    asked = [r["split"]["classes"] for r in runs.values()]
    assert asked == [[44, 65, 150, 168], [53, 57, 108, 179], [11, 83, 115, 153]]
    assert len(params("loft-tiny-imagenet-180")["split"]["classes"]) == 180
    rows = params("loft-tiny-imagenet-rows")["split"]
    assert rows["fraction"] * 100_000 == 1_000
    assert [r["split"]["seed"] for r in load(ROOT, "loft-tiny-imagenet-rows").runs.values()] == [0, 1, 2]
    assert [r["split"]["classes"] for r in load(ROOT, "loft-imagenet").runs.values()] == [[97], [316], [852]]
    assert [len(r["classes"]) for r in load(ROOT, "loft-tiny-imagenet-continual").rounds] == [2, 2, 2, 2]


@pytest.mark.slow
def test_swin_keeps_public_weights_and_its_recipe_is_the_papers(tmp_path: Path) -> None:
    """The model has 64 pixels, 200 classes and 768 features.

    Every tensor except the head's comes from the file of public weights for 1,000 classes.
    """
    import torch

    public = import_vision("torchvision.models").get_model("swin_t", weights=None).state_dict()
    torch.save(public, tmp_path / "swin.pth")
    result = build("torchvision:swin_t", 200, (64, 64, 3), image_size=64, checkpoint=tmp_path / "swin.pth", public=True)
    assert (result.card.feature_dim, result.head.out_features, result.preprocess.height) == (768, 200, 64)
    own = list(result.backbone.state_dict().values())
    assert all(any(torch.equal(t, p) for p in public.values() if p.shape == t.shape) for t in own)
    given = params("loft-tiny-imagenet-classes")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(given))
    recipe = recipe_of(load_config(tmp_path / "params.yaml").train, result)
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.epochs) == ("adamw", 1e-4, 0.05, 20)
    assert (recipe.schedule, recipe.batch_size, recipe.layer_decay, recipe.label_smoothing) == ("cosine", 128, 1, 0)
    assert (recipe.warmup, recipe.augment) == (0, "none")


def test_the_cut_of_every_ru_preset_is_in_its_model() -> None:
    for name, classes, side in zip(RU, (10, 100, 200), (32, 32, 64), strict=True):
        given = params(name)
        if given["model"]["name"].endswith("wrn_28_10"):
            continue  # It has 36 million weights, so only the slow test of this preset builds it.
        result = build(given["model"]["name"], classes, (side, side, 3))
        assert given["activations"]["cuts"][0] in dict(result.backbone.named_modules())
        assert result.card.feature_dim == 512


def test_a_preset_that_is_wrong_says_what(tmp_path: Path) -> None:
    (tmp_path / "presets" / "base").mkdir(parents=True)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())

    def written(text: str) -> Preset:
        (tmp_path / "presets" / "mine.yaml").write_text(text)
        return load(tmp_path, "mine")

    with pytest.raises(ConfigError, match=r"mine\.yaml: unknown key 'tilte'"):
        written("tilte: x")
    with pytest.raises(ConfigError, match=r"mine\.yaml: has no title"):
        written("params: {}")
    with pytest.raises(ConfigError, match=r"extends 'nothing'"):
        written("title: x\nextends: nothing")
    with pytest.raises(ConfigError, match=r"fit\.lfot is no entry"):
        written("title: x\nparams: {fit: {lfot: {rank: 3}}}").params_of(tmp_path, "run", OFF, {})
    with pytest.raises(ConfigError, match="has no key epoch"):
        written("title: x\nparams: {train: {epoch: 3}}").params_of(tmp_path, "run", OFF, {})
    with pytest.raises(ConfigError, match="did you mean mine"):
        load(tmp_path, "mien")


def test_the_random_tenth_is_numpys_draw_of_42() -> None:
    from expunge.data.selectors import random_rows

    given = params("ru-cifar100-random")["split"]
    mask = random_rows(np.ones(50_000, dtype=bool), given["fraction"], given["seed"])
    drawn = np.random.default_rng(42).choice(50_000, 5_000, replace=False)
    assert np.array_equal(np.flatnonzero(mask), np.sort(drawn))
