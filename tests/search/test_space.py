"""A search space: Hydra's words in, Optuna's parameters out, and back to words that compose."""

from __future__ import annotations

import itertools
import json
import warnings
from typing import Any

import hydra
import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from fer_lab.cli import CONF
from fer_lab.search.errors import SearchError
from fer_lab.search.space.grammar import read_range, values, word
from fer_lab.search.space.space import Space

optuna.logging.set_verbosity(optuna.logging.ERROR)

USERS = {
    "params": {"optimizer": "choice(sgd,adamw,muon)", "data.batch_size": "choice(32,64)", "model.dropout": "interval(0,0.6)"},
    "when": {
        "optimizer=sgd": {"optimizer.lr": "tag(log,interval(1e-3,0.5))", "optimizer.momentum": "interval(0.5,0.99)"},
        "optimizer=adamw,muon": {"optimizer.lr": "tag(log,interval(1e-4,1e-1))"},
    },
}  # fmt: skip
LR_SGD, LR_OTHERS = "optimizer.lr (optimizer=sgd)", "optimizer.lr (optimizer=adamw,muon)"


def composed(*words: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", overrides=list(words), return_hydra_config=True)


def space(section: dict[str, Any], *words: str) -> Space:
    fixed = [text for text in words if not OverridesParser.create().parse_override(text).is_sweep_override()]
    return Space.read(section, words, composed(*fixed))


def small(params: dict[str, Any], **more: Any) -> Space:
    """A space of made-up keys: what composes does not matter here."""
    base = OmegaConf.create(
        {"hydra": {"runtime": {"choices": {"optimizer": "adamw"}}}, "n": 3, "mode": "max"}
    )
    return Space.read({"params": params, **more}, [], base)


def asked(
    space: Space, count: int, sampler: optuna.samplers.BaseSampler | None = None
) -> list[tuple[dict, list[str]]]:
    study = optuna.create_study(sampler=sampler or optuna.samplers.RandomSampler(0))
    for point in space.points:
        study.enqueue_trial(point)
    found = []
    for _ in range(count):
        trial = study.ask()
        words = space.suggest(trial)
        found.append((trial.params, words))
        study.tell(trial, 0.0)
    return found


@pytest.mark.parametrize(
    ("written", "distribution"),
    [
        ("interval(0,0.6)", FloatDistribution(0, 0.6)),
        ("tag(log,interval(1e-4,1e-1))", FloatDistribution(1e-4, 0.1, log=True)),
        ("int(interval(16,128))", IntDistribution(16, 128)),
        ("tag(log,int(interval(1,128)))", IntDistribution(1, 128, log=True)),
        ("range(1,10,4)", IntDistribution(1, 9, step=4)),
        ("range(1,4)", IntDistribution(1, 3)),
        ("range(10,0,-3)", IntDistribution(1, 10, step=3)),
        ("range(0.1,0.4,0.1)", FloatDistribution(0.1, 0.3, step=0.1)),
        ("choice(32,64)", CategoricalDistribution((32, 64))),
        ("sgd,'a b'", CategoricalDistribution(("sgd", "a b"))),
        ("0.1,null", CategoricalDistribution((0.1, None))),
        ("choice(true,false)", CategoricalDistribution((True, False))),
        (0.001, CategoricalDistribution((0.001,))),
    ],
)
def test_hydras_ranges_are_optunas(written, distribution):
    assert read_range("key", written) == distribution


@pytest.mark.parametrize(
    "written", ["range(5)", "range(2,9,3)", "range(9,2,-3)", "range(0,1,0.25)", "range(0,0.3,0.1)"]
)
def test_a_range_has_the_values_that_hydra_itself_goes_through(written):
    theirs = OverridesParser.create().parse_override(f"key={written}").sweep_iterator()
    assert values(read_range("key", written)) == pytest.approx(sorted(theirs))


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("interval(0.6,0.1)", "goes from a number to a larger one"),
        ("tag(log,interval(0,1))", "starts above 0"),
        ("interval(0,1,2)", "a range is choice"),
        ("range(1,1)", "holds no value"),
        ("choice(1,null)", "such as 0.1,null"),
        ("choice(1,1)", "names 1 twice"),
        ("glob(*)", "list the choices"),
        ("[1,2],[3]", "no list or dictionary"),
        ([1, 2], r"write choice\(1,2\)"),
        ({"lr": "interval(0,1)"}, "such as key.lr"),
        ("shuffle(1,2)", "shuffle.. means nothing"),
        ("tag(fast,interval(0,1))", r"tag\(log"),
    ],
)
def test_what_is_no_range_is_refused_with_the_way_to_write_it(written, told):
    with pytest.raises(SearchError, match=told):
        read_range("key", written)


@pytest.mark.parametrize(
    "value", ["true", "1", "a b", "a,b", "null", "it's", "x=1", True, None, 1e-05, 0.1 + 0.2, 7, "runs:/ab"]
)
def test_hydra_reads_every_value_back(value):
    cfg = composed(f"+key={word('key', value).partition('=')[2]}")
    assert cfg.key == value
    assert type(cfg.key) is type(value)


def test_the_users_sweep_composes_whatever_is_asked():
    ours = space(USERS)
    for params, words in asked(ours, 25):
        cfg = composed(*words)
        assert words == ours.words(params)
        assert words[0].startswith("optimizer=")
        sgd = cfg.hydra.runtime.choices.optimizer == "sgd"
        assert (LR_SGD in params, LR_OTHERS in params, "optimizer.momentum" in params) == (sgd, not sgd, sgd)
        assert cfg.optimizer.lr == params[LR_SGD if sgd else LR_OTHERS]
        assert (1e-3 if sgd else 1e-4) <= cfg.optimizer.lr <= (0.5 if sgd else 0.1)
        assert cfg.data.batch_size in (32, 64)


def test_the_command_line_fixes_narrows_and_adds():
    fixed = space(USERS, "optimizer=adamw", "data.batch_size=16")
    assert [one.name for one in fixed.parameters] == ["model.dropout", "optimizer.lr"]
    assert fixed.fixed == ("optimizer=adamw", "data.batch_size=16")
    narrow = space(USERS, "optimizer=sgd,adamw", "optimizer.lr=interval(0.01,0.02)", "ema=choice(0.99,0.999)")
    by_name = {one.name: one for one in narrow.parameters}
    assert by_name["optimizer"].distribution.choices == ("sgd", "adamw")
    assert by_name[LR_SGD].distribution == by_name[LR_OTHERS].distribution == FloatDistribution(0.01, 0.02)
    assert by_name[LR_SGD].when == (("optimizer", ("sgd",)),)
    assert by_name["ema"].when == ()
    assert "optimizer.momentum" not in {one.name for one in space(USERS, "optimizer=adamw,muon").parameters}


def test_conditions_hold_by_the_config_where_their_key_is_not_swept():
    section = {
        "when": {"optimizer=muon": {"optimizer.lr": "interval(0,1)"}, "mode=min": {"seed": "range(3)"}}
    }
    assert [one.key for one in space(section).parameters] == ["optimizer.lr"]  # small trains with muon
    assert [one.key for one in space(section, "optimizer=sgd", "mode=min").parameters] == ["seed"]


def test_conditions_on_conditional_keys():
    ours = small(
        {"a": "choice(x,y)"},
        when={"b=1": {"c": "range(2)"}, "a=x": {"b": "range(3)"}, "a=y b=1": {"d": "1,2"}},
    )
    assert [one.key for one in ours.parameters].index("b") < [one.key for one in ours.parameters].index("c")
    assert ours.size == 1 + (1 + 2 + 1)
    assert {tuple(params) for params, _ in asked(ours, 40)} == {("a",), ("a", "b"), ("a", "b", "c")}


def test_all_faults_come_at_once_each_with_its_fix():
    section = {
        "params": {"optimizer": "choice(sgd,adamw)", "data.batch_size": "interval(16,128)", "model.dropout": "interval(1)"},
        "when": {
            "optimizer=sdg": {"optimizer.momentum": "interval(0.5,0.9)"},
            "modell=small": {"ema": "choice(0.9)"},
            "optimizer.nesterov=true": {"task.label_smoothing": "interval(0,0.1)"},
            "ema=0.99": {"patience": "interval(1,4)", "views": "choice(none,flip)"},
            "views=flip": {"ema": "choice(0.99)"},
        },
        "points": [{"optimizer": "adam"}, {"optimiser": "sgd"}],
    }  # fmt: skip
    with pytest.raises(SearchError) as refused:
        space(section, "++seed=1,2")
    for told in (
        r"data.batch_size=64 is a whole number: write int(interval(16,128)) or choice(…)",
        "model.dropout=interval(1)",
        "optimizer is never sdg (did you mean sgd?); its values: sgd, adamw",
        "modell is neither swept nor in the config (did you mean model?)",
        "optimizer.nesterov comes with optimizer, which is swept",
        "wait for each other",
        "points: optimizer=adam lies outside its range, sgd, adamw",
        "points: optimiser is not swept here (did you mean optimizer?)",
        "++seed=1,2: a range may not follow ++ or ~",
    ):
        assert told in str(refused.value), told


def test_two_ranges_at_once_and_nothing_at_all_are_refused():
    with pytest.raises(SearchError, match="two ranges at once"):
        small({"optimizer": "choice(a,b)", "lr": "1,2"}, when={"optimizer=a": {"lr": "3,4"}})
    with pytest.raises(SearchError, match="nothing is swept"):
        space({"params": {"seed": "range(3)"}}, "seed=1")
    with pytest.raises(SearchError, match="swept over an interval"):
        small({"a": "interval(0,1)"}, when={"a=0.5": {"b": "1,2"}})
    with pytest.raises(SearchError, match="cache_features=1: expected true or false"):
        space({"params": {"cache_features": "choice(1,2)"}})


def test_known_settings_are_tried_first_and_may_be_partial():
    points = [{"optimizer": "sgd", "optimizer.lr": 0.01}, {"optimizer.lr": 0.05}]
    ours = space({**USERS, "points": points})
    (first, _), (second, _) = asked(ours, 2)
    assert first["optimizer"] == "sgd"
    assert first[LR_SGD] == 0.01
    assert 0.05 in (second.get(LR_SGD), second.get(LR_OTHERS))  # whichever optimizer is drawn
    assert space({**USERS, "points": points}, "optimizer=adamw").points == ({"optimizer.lr": 0.05},)
    assert space({**USERS, "points": points}, "optimizer=sgd,muon").points[1] == {
        LR_SGD: 0.05,
        LR_OTHERS: 0.05,
    }
    for wrong, told in (
        ({"optimizer": "sgd", "optimizer.lr": 0.9}, "lies outside its range, 0.001 to 0.5"),
        ({"optimizer": "adamw", "optimizer.momentum": 0.9}, "asked only with optimizer=sgd"),
    ):
        with pytest.raises(SearchError, match=told):
            space({**USERS, "points": [wrong]})


@pytest.mark.parametrize(
    "section",
    [
        {"params": {"a": "choice(x,y)", "n": "range(1,9,3)"}},
        {
            "params": {"a": "choice(x,y)"},
            "when": {"a=x": {"n": "range(4)"}, "a=y": {"n": "1,2", "mode": "max,min"}},
        },
    ],
)
def test_the_size_is_the_number_of_configurations_that_brute_force_finds(section):
    ours = small(**section)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler(0))
        study.optimize(lambda trial: len(ours.suggest(trial)), n_trials=200)
    assert ours.size == len({tuple(trial.params.items()) for trial in study.trials}) < 200
    assert space(USERS).size is None


def test_combinations_show_every_choice_and_all_of_the_structure():
    ours = space({"params": {**USERS["params"], "scheduler": "choice(none,cosine)"}, "when": USERS["when"]})
    found = ours.combinations()
    assert {tuple(words[:2]) for words in found} == {
        (f"optimizer={one}", f"scheduler={other}")
        for one in ("sgd", "adamw", "muon")
        for other in ("none", "cosine")
    }
    said = {text for words in found for text in words}
    assert {"data.batch_size=32", "data.batch_size=64", "model.dropout=0.0", "model.dropout=0.6"} <= said
    assert len(found) == 6
    many = small({"n": "choice(1,2,3,4,5)", "mode": "choice(max,min)"}).combinations()
    assert {text for words in many for text in words} == {
        "n=1",
        "n=2",
        "n=3",
        "n=4",
        "n=5",
        "mode=max",
        "mode=min",
    }


def test_beyond_the_limit_every_pair_is_shown():
    params = {f"k{index}": "choice(a,b,c,d)" for index in range(7)}
    when = {f"k{index}=a": {f"n{index}": "range(2)"} for index in range(7)}
    ours = small(params, when={**when, "k0=b k1=b k2=b": {"deep": "1,2"}})
    found = ours.samples(limit=50)
    assert ours.size == (5**3 + 1) * 5**4  # each key counts five ways, and b b b of the first three twice
    assert len(found) < 120  # of 4 ** 7
    for one, other in itertools.combinations(params, 2):
        assert {(params[one], params[other]) for params in found} == set(itertools.product("abcd", repeat=2))
    assert {params["deep"] for params in found if "deep" in params} == {1, 2}
    assert all((params["k0"] == "a") == ("n0" in params) for params in found)


def test_extremes_step_through_the_ends_of_what_is_swept():
    section = {
        "params": {
            "model": "choice(small,vgg_fer)",
            "data.batch_size": "choice(64,32,128)",
            "data.size": "range(32,65,16)",
        }
    }
    ends = {tuple(words) for words in space(section).extremes(["model", "data.batch_size", "data.size"])}
    assert ends == {
        (f"model={model}", f"data.batch_size={batch}", f"data.size={size}")
        for model in ("small", "vgg_fer") for batch in (32, 128) for size in (32, 64)
    }  # fmt: skip
    assert space(USERS).extremes(["model"]) == [
        [
            "optimizer=sgd",
            "optimizer.lr=0.001",
            "optimizer.momentum=0.5",
            "data.batch_size=32",
            "model.dropout=0.0",
        ]
    ]


def carried(old: Space, new: Space, params: dict[str, Any]) -> dict[str, Any] | None:
    study = optuna.create_study()
    study.enqueue_trial(params)
    trial = study.ask()
    old.suggest(trial)
    study.tell(trial, 1.0)
    return new.carry_over(study.trials[0], json.loads(json.dumps(old.facts())))


def test_old_trials_are_taken_into_a_changed_space():
    old = space(USERS)
    sgd = {
        "optimizer": "sgd",
        "data.batch_size": 32,
        "model.dropout": 0.1,
        LR_SGD: 0.3,
        "optimizer.momentum": 0.6,
    }
    adamw = {"optimizer": "adamw", "data.batch_size": 64, "model.dropout": 0.5, LR_OTHERS: 0.05}
    assert carried(old, old, sgd) == sgd
    wider = space(USERS, "data.batch_size=choice(16,32,64)", "optimizer=choice(adam,sgd,adamw,muon)")
    assert carried(old, wider, sgd) == sgd
    narrower = space(USERS, "model.dropout=interval(0,0.3)")
    assert carried(old, narrower, sgd) == sgd
    assert carried(old, narrower, adamw) is None
    one_range = space({"params": {**USERS["params"], "optimizer.lr": "interval(0,0.1)"}})
    assert carried(old, one_range, adamw) == {
        **{key: adamw[key] for key in USERS["params"]},
        "optimizer.lr": 0.05,
    }
    assert carried(old, one_range, sgd) is None


def test_a_key_that_was_not_swept_had_its_value_all_the_same():
    old = space(USERS)
    params = {"optimizer": "adamw", "data.batch_size": 64, "model.dropout": 0.5, LR_OTHERS: 0.05}
    newly = space(USERS, "task.label_smoothing=interval(0,0.2)")
    assert carried(old, newly, params) == {**params, "task.label_smoothing": 0.0}  # the config's own value
    assert carried(space(USERS, "task.label_smoothing=0.1"), newly, params)["task.label_smoothing"] == 0.1
    assert carried(space(USERS, "task.label_smoothing=0.3"), newly, params) is None
    assert carried(old, space(USERS, "task.label_smoothing=0.1"), params) is None
    assert carried(old, space(USERS, "data.batch_size=64"), params) == {
        key: value for key, value in params.items() if key != "data.batch_size"
    }
    assert carried(old, space(USERS, "data.batch_size=32"), params) is None


def test_where_the_runs_lie_is_no_part_of_a_space():
    params = {"optimizer": "adamw", "data.batch_size": 64, "model.dropout": 0.5, LR_OTHERS: 0.05}
    here = space(
        {**USERS, "places": ["runs_dir", "tracking"]},
        "runs_dir=here",
        "tracking.uri=postgresql://me:secret@host/db",
    )
    there = space({**USERS, "places": ["runs_dir", "tracking"]}, "runs_dir=there")
    assert carried(here, there, params) == params
    assert "secret" not in json.dumps(here.facts())
