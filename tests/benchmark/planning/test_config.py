"""Settings: every field is marked, every bad key or value is refused with a helpful message."""

import dataclasses

import pytest

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.planning.config import (
    PRESETS,
    Request,
    RunConfig,
    TrainConfig,
    convert,
    flatten,
    identity_fields,
    parse_set,
    read_toml,
    train_config,
)


@pytest.mark.parametrize("config", [TrainConfig, RunConfig])
def test_every_field_is_marked_identity_or_runtime(config):
    for field in dataclasses.fields(config):
        assert isinstance(field.metadata.get("identity"), bool), f"{config.__name__}.{field.name} is not marked"
        assert field.metadata["help"]


def test_every_field_of_a_request_is_accounted_for():
    """A new field of Request must be thought about: does it reach the plan's identities?"""
    in_keys = {"methods", "datasets", "backbones", "weights", "folds", "seeds", "protocols", "preset", "ood"}
    in_keys |= {"overrides"}
    # what is refused and told, what is marked (test_leaks_run and test_contamination hold that they change no key), and
    # which rows there are
    told = {"allow_leaks", "weights_seen", "selections"}
    assert {f.name for f in dataclasses.fields(Request)} == in_keys | told | {"run"}


def test_training_settings_are_identity_and_run_settings_are_not():
    assert set(identity_fields(TrainConfig())) == {f.name for f in dataclasses.fields(TrainConfig)}
    assert identity_fields(RunConfig()) == {}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid(preset):
    assert train_config(preset).epochs > 0


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"epoch": 3}, "no setting train.epoch.*Did you mean epochs"),
        ({"lr": "fast"}, "train.lr = 'fast' is not of type float"),
        ({"epochs": 2.5}, "train.epochs = 2.5 is not of type int"),
        ({"epochs": 0}, "at least 1"),
        ({"lr": -1}, "above 0"),
        ({"flip": "maybe"}, "is not of type bool"),
        ({"optimizer": "sdg"}, "Did you mean sgd"),
        ({"load_size": 10}, "below train.image_size"),
        ({"jitter": "0.1,0.2"}, "four values"),
        ({"precision": "int8"}, "not one of fp32"),
    ],
)
def test_bad_training_settings(layer, message):
    with pytest.raises(BenchError, match=message):
        train_config("smoke", layer)


def test_unknown_preset():
    with pytest.raises(BenchError, match="Did you mean smoke"):
        train_config("smok")


def test_later_layers_win():
    config = train_config("smoke", {"lr": 0.5, "epochs": 7}, {"lr": "0.25"})
    assert (config.lr, config.epochs) == (0.25, 7)


@pytest.mark.parametrize(
    ("value", "like", "expected"),
    [("3", 1, 3), ("1e-3", 0.1, 1e-3), (2, 0.5, 2.0), ("no", True, False), ("a,b", ("x",), ("a", "b")),
     ("0.1, 0.2", (1.0,), (0.1, 0.2)), ("5", (1,), (5,))],
)  # fmt: skip
def test_text_takes_the_type_of_the_default(value, like, expected):
    found = convert(value, like, "x")
    assert found == expected
    assert type(found) is type(expected)


def test_set_needs_section_key_and_value():
    assert parse_set(["train.lr=1", "pixelcam.train.lr=2", "train.epochs=3"]) == {
        "train": {"lr": "1", "epochs": "3"},
        "pixelcam": {"train.lr": "2"},
    }
    for bad in ("lr=1", "train.lr", ".x=1", "train.=1"):
        with pytest.raises(BenchError, match=r"SECTION\.KEY=VALUE"):
            parse_set([bad])


def test_toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('methods = ["cam"]\n[train]\nlr = 0.1\n[pixelcam.train]\nlr = 0.2\n')
    content = read_toml(path)
    assert content["methods"] == ["cam"]
    assert flatten(content["pixelcam"]) == {"train.lr": 0.2}
    path.write_text("methods = [")
    with pytest.raises(BenchError, match="not valid TOML"):
        read_toml(path)
    with pytest.raises(BenchError, match="cannot be read"):
        read_toml(tmp_path / "none.toml")


def test_schedule():
    config = TrainConfig(lr=1.0, gamma=0.1, step_epochs=10, lr_floor=0.005, warmup_epochs=3)
    assert [config.lr_at(e) for e in (1, 2, 3, 4, 10)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert config.lr_at(11) == pytest.approx(0.1)
    assert config.lr_at(21) == pytest.approx(0.01)
    assert config.lr_at(99) == 0.005
