"""Searches: proposals are a function of outcomes, and equal to what Optuna alone proposes."""

import json
import math
import shutil
from collections import defaultdict
from statistics import median

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from errors import UserError
from search_spaces import SPACES
from search_spaces.search_space import SAMPLERS, Choice, LogUniform, SearchSpace, Uniform
from search_spaces.search_stages import Search
from search_spaces.stages import COMPLETE, DIVERGED, STOPPED, Around, Outcome
from sweep.options import SweepOptions
from sweep.queue import TrialQueue
from sweep.resolve import resolve_space
from sweep.search import OptunaCopy, Proposer, check_same_search, identity, open_storage
from tests.faults.servers import postgres, postgres_missing
from tests.helpers import message

EPOCHS = 4
SPACE = SearchSpace(
    name="test",
    question="Which is best?",
    parameters={
        "model": Choice(("bert-tiny", "modernbert-tiny")),
        "target_batch_size": Choice((16, 64, 256)),
        "base_lr": LogUniform(1e-5, 1e-2),
        "head_dropout": Uniform(0.0, 0.5),
    },
    settings={"scaling_rule": "fixed", "epochs": EPOCHS},
    trials=18,
)


def space(sampler="tpe", **changes):
    stopping = "none" if sampler == "gp" else "median"
    return SPACE.replace(**{"sampler": sampler, "stopping": stopping} | changes)


def accuracy(config):
    """A planted optimum: base_lr 1e-3, target batch size 64, no dropout."""
    distance = (math.log10(config.base_lr) + 3) ** 2 + (math.log2(config.target_batch_size) - 6) ** 2 / 9
    return 0.9 - 0.05 * distance - 0.1 * config.head_dropout


def outcome(search, config):
    """Train it: the accuracy comes near with every epoch, and high learning rates diverge."""
    val_accs = []
    for epoch in range(1, EPOCHS + 1):
        val_accs.append(accuracy(config) - 0.02 * (EPOCHS - epoch))
        if config.base_lr > 6e-3:
            return Outcome(DIVERGED, tuple(val_accs[:1]))
        if search.should_stop(val_accs):
            break
    return Outcome(COMPLETE if len(val_accs) == EPOCHS else STOPPED, tuple(val_accs))


class Store:
    """What MLflow keeps of a search: generations and outcomes."""

    def __init__(self):
        self.generations = {}
        self.outcomes = {}

    def open(self, space):
        return Opened(space, self)


class Opened:
    """A search as a run of the command sees it: its stage, and the queue that Tune asks."""

    def __init__(self, space, store):
        around = Around(
            resolve=lambda config: config,
            proposer=lambda space: Proposer(space, chance=0.5),
            known=dict(store.generations),
            keep=lambda number, values: store.generations.update({number: values}),
        )
        self.outcomes = store.outcomes
        self.stage = Search(space, around)
        self.queue = TrialQueue(self.stage, self.outcomes, set(self.outcomes), max_failures=0)
        self.ended = self.queue.end
        self.should_stop = self.stage.should_stop

    @property
    def proposals(self):
        return self.stage.proposed(self.outcomes)

    @property
    def values(self):
        return [self.stage.values(number) for number in range(len(self.proposals))]

    @property
    def is_over(self):
        return self.queue.is_over

    @property
    def is_finished(self):
        return self.stage.is_over(self.outcomes, self.outcomes.keys())

    def next(self):
        proposal = self.queue.next()
        return proposal and proposal.config

    def winner(self):
        return self.stage.winner(self.outcomes)


def run(search, at_most=math.inf):
    """Train until the search is over, or was killed after so many trials."""
    trained = []
    while len(trained) < at_most and (config := search.next()):
        search.ended(config.trial_hash, outcome(search, config))
        trained.append(config)
    return trained


def found(search):
    ended = [search.outcomes[each.trial_hash] for each in search.proposals]
    return list(zip(search.values, ended, strict=True))


def by_hand(space):
    """The same search in Optuna's own words: asked and told, generation by generation."""
    study = optuna.create_study(direction="maximize")
    box = {
        "model": CategoricalDistribution(("bert-tiny", "modernbert-tiny")),
        "target_batch_size": CategoricalDistribution((16, 64, 256)),
        "base_lr": FloatDistribution(1e-5, 1e-2, log=True),
        "head_dropout": FloatDistribution(0.0, 0.5),
    }
    if space.sampler == "qmc":
        study.sampler = optuna.samplers.QMCSampler(seed=space.seed, warn_independent_sampling=False)
    proposals = []
    for generation in range(math.ceil(space.trials / space.generation_size)):
        seed = int(np.random.SeedSequence([space.seed, generation]).generate_state(1)[0])
        if space.sampler == "tpe":
            study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=8)
        elif space.sampler == "random":
            study.sampler = optuna.samplers.RandomSampler(seed=seed)
        elif space.sampler == "gp":
            study.sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=8)
        asked = []
        for _ in range(space.generation_size):
            trial = study.ask(box)
            values = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in trial.params.items()}
            for name, value in values.items():  # Optuna must know what is trained, not what it proposed
                internal = box[name].to_internal_repr(value)
                study._storage.set_trial_param(trial._trial_id, name, internal, box[name])
            asked.append(trial)
            proposals.append(values)
        for trial in asked:
            config = space.config(study.trials[trial.number].params)
            if config.base_lr > 6e-3 and space.sampler == "gp":
                study.tell(trial, 0.5)
            elif config.base_lr > 6e-3:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(trial, accuracy(config))
    return proposals[: space.trials]


@pytest.fixture(scope="module", autouse=True)
def quiet_optuna():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


# -- what is proposed ------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_proposals_are_those_of_optuna_alone(sampler):
    searched = space(sampler, stopping="none")
    search = Store().open(searched)
    run(search)
    assert search.values == by_hand(searched)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_that_is_killed_after_any_trial_comes_to_the_same(sampler):
    whole = Store().open(space(sampler))
    run(whole)
    store = Store()
    for killed_after in (1, 3, 4, 0, 5, 2):
        run(store.open(space(sampler)), killed_after)
    last = store.open(space(sampler))
    run(last)
    assert found(last) == found(whole)
    assert last.is_finished
    assert last.winner() == whole.winner()


def test_nothing_is_trained_before_its_generation_is_kept():
    store = Store()
    search = store.open(space())
    config = search.next()
    assert config.trial_hash in {SPACE.config(values).trial_hash for values in store.generations[0]}


def test_a_generation_that_is_kept_is_not_proposed_again():
    store = Store()
    run(store.open(space()), 5)
    store.outcomes.popitem()
    store.generations[1][0]["base_lr"] = 0.00123456  # as a machine that rounds otherwise would have it
    search = store.open(space())
    assert search.next().base_lr == 0.00123456


def test_a_generation_opens_when_the_one_before_has_ended():
    search = Store().open(space())
    first = [search.next() for _ in range(4)]
    assert search.next() is None
    assert not search.is_over
    for config in first:
        search.ended(config.trial_hash, outcome(search, config))
    assert search.next() is not None


def test_a_trial_that_failed_is_trained_again_and_its_generation_stays_open():
    store = Store()
    search = store.open(space())
    first = [search.next() for _ in range(4)]
    search.ended(first[0].trial_hash, None)
    for config in first[1:]:
        search.ended(config.trial_hash, outcome(search, config))
    assert search.next() is None
    assert search.is_over
    assert not search.is_finished
    again = store.open(space())
    assert again.next() == first[0]
    assert again.next() is None


@pytest.mark.parametrize("trials", [18, 20])
def test_more_trials_go_on_where_fewer_ended(trials):
    store = Store()
    run(store.open(space(trials=trials)))
    grown, whole = store.open(space(trials=27)), Store().open(space(trials=27))
    run(grown)
    run(whole)
    assert found(grown) == found(whole)


def test_a_configuration_is_trained_once():
    small = space("random", parameters={"target_batch_size": Choice((16, 64))}, trials=12).replace(
        settings={"scaling_rule": "fixed", "model": "bert-tiny", "epochs": EPOCHS}
    )
    search = Store().open(small)
    assert len(run(search)) == 2
    assert len(search.proposals) == 12
    assert search.is_finished


def test_of_equal_trials_the_earliest_wins():
    store = Store()
    search = store.open(space(trials=4))
    while config := search.next():
        search.ended(config.trial_hash, Outcome(COMPLETE, (0.5, 0.8)))
    assert search.winner() == search.proposals[0]


def test_numbers_are_those_that_are_written_down():
    store = Store()
    run(store.open(space()))
    numbers = [values["base_lr"] for generation in store.generations.values() for values in generation]
    assert all(number == float(f"{number:.6g}") for number in numbers)
    assert json.loads(json.dumps(store.generations[2])) == store.generations[2]


def bounded(low, high, sampler="random"):
    """A search over one number of a range."""
    settings = {"model": "bert-tiny", "target_batch_size": 64, "scaling_rule": "fixed", "epochs": EPOCHS}
    return space(sampler, parameters={"head_dropout": Uniform(low, high)}, settings=settings, trials=12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rounding_leaves_no_range(sampler):
    """To six digits a fifth of this one is 0.123456, below it, and a fifth 0.123458, above."""
    low, high = 0.1234561, 0.1234579
    search = Store().open(bounded(low, high, sampler))
    run(search)
    assert search.is_finished
    assert all(low <= values["head_dropout"] <= high for values in search.values)


@pytest.mark.parametrize("end", [0.0, 0.5])
def test_both_ends_of_a_range_belong_to_it(end):
    store = Store()
    run(store.open(bounded(0.0, 0.5)), 5)
    store.outcomes.popitem()
    store.generations[1][0]["head_dropout"] = end  # proposed by a command that was killed
    search = store.open(bounded(0.0, 0.5))
    assert run(search)[0].head_dropout == end
    assert search.is_finished


def test_tpe_finds_the_optimum_in_fewer_trials_than_random_search():
    needed = defaultdict(list)
    for sampler in ("tpe", "random"):
        for seed in range(20):
            search = Store().open(space(sampler, seed=seed, trials=60, stopping="none"))
            run(search)
            good = [n for n, (_, ended) in enumerate(found(search)) if ended.best_val_acc > 0.885]
            needed[sampler].append(good[0] if good else 60)
    assert median(needed["tpe"]) < median(needed["random"])


# -- stopping early --------------------------------------------------------------------------------


def test_a_trial_is_judged_by_earlier_generations_alone():
    store = Store()
    search = store.open(space(trials=12))
    for _ in range(8):
        config = search.next()
        search.ended(config.trial_hash, Outcome(COMPLETE, (0.6, 0.7, 0.8, 0.8)))
    config = search.next()
    assert search.should_stop((0.5, 0.69))
    assert not search.should_stop((0.5, 0.71))
    assert not search.should_stop((0.1,))  # after one epoch nobody is stopped
    search.ended(config.trial_hash, Outcome(COMPLETE, (0.9, 0.9, 0.9, 0.9)))
    assert not search.should_stop((0.5, 0.71))  # one of this generation does not count


def test_the_first_generations_are_never_stopped():
    search = Store().open(space())
    for _ in range(7):
        config = search.next()
        assert not search.should_stop((0.0, 0.0))
        search.ended(config.trial_hash, Outcome(COMPLETE, (0.9, 0.9, 0.9, 0.9)))


def test_stopping_saves_epochs_and_leaves_the_winner():
    epochs, winners = {}, {}
    for stopping in ("none", "median"):
        search = Store().open(space("random", stopping=stopping, trials=40))
        run(search)
        epochs[stopping] = sum(len(ended.val_accs) for _, ended in found(search))
        winners[stopping] = search.winner()
    assert winners["none"] == winners["median"]
    assert epochs["median"] < 0.8 * epochs["none"]


# -- what may be searched --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"parameters": {"base_lrr": Uniform(0.0, 1.0)}}, "did you mean base_lr"),
        ({"parameters": {"max_length": Uniform(16, 64)}}, "max_length cannot be searched"),
        ({"parameters": {"base_lr": Uniform(1e-3, 1e-4)}}, "give low < high"),
        ({"parameters": {"base_lr": LogUniform(0, 1e-3)}}, "give low < high, both numbers above 0"),
        ({"parameters": {"base_lr": Uniform("low", "high")}}, "base_lr has a range from low to high"),
        ({"parameters": {"target_batch_size": Choice((16, 16))}}, "names a value twice"),
        ({"sampler": "tpee"}, "did you mean tpe"),
        ({"stopping": "hyperband"}, "unknown stopping rule"),
        ({"sampler": "gp", "stopping": "median"}, "--stopping none"),
        ({"trials": 0}, "trials must be greater than or equal to 1, not 0"),
    ],
)
def test_a_search_that_cannot_be_is_one_line(changes, told):
    with pytest.raises(UserError) as raised:
        SPACE.replace(**changes)
    assert told in message(raised)


def test_a_value_at_the_end_of_a_range_is_tried_before_anything_starts():
    impossible = SPACE.replace(parameters={"head_dropout": Uniform(0.0, 1.5)}, settings=DEFAULTS)
    with pytest.raises(UserError, match="head_dropout must be less than 1"):
        list(impossible.corners())


DEFAULTS = {"scaling_rule": "fixed", "model": "bert-tiny", "target_batch_size": 64}


def narrowed(**options):
    return resolve_space(SweepOptions(space="best_config", demo=True, **options), bf16_available=False)


def test_flags_narrow_the_box():
    found = narrowed(
        models=["bert-tiny"], target_batch_sizes=[16, 64], base_lr=1e-3, trials=7, seeds=[5], sampler="gp"
    )
    assert found.parameters.keys() == {"target_batch_size", "warmup_ratio", "head_dropout", "weight_decay"}
    assert found.parameters["target_batch_size"] == Choice((16, 64))
    assert found.settings["model"] == "bert-tiny"
    assert found.settings["base_lr"] == 1e-3
    assert (found.trials, found.seed, found.sampler, found.stopping) == (7, 5, "gp", "none")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seeds": [1, 2]}, "one --seed"),
        ({"optuna_storage": "journal.log"}, "use sqlite:///FILE.db"),
        ({"optuna_storage": "sqlite:///a.db", "tracking_uri": "sqlite:///a.db"}, "one of its own"),
        ({"optuna_storage": "sqlite:///./a.db", "tracking_uri": "sqlite:///a.db"}, "one of its own"),
        ({"assignments": ["scheduler=constant"]}, "warmup_ratio does nothing"),
    ],
)
def test_options_that_a_search_cannot_have_are_one_line(options, told):
    with pytest.raises(UserError) as raised:
        narrowed(**options)
    assert told in message(raised)


def test_the_demo_of_a_search_for_one_model_is_tiny(monkeypatch):
    parameters = {"base_lr": LogUniform(1e-5, 1e-3)}
    one = SPACE.replace(name="one", parameters=parameters, settings=DEFAULTS | {"model": "bert-base"})
    monkeypatch.setitem(SPACES, "one", one)
    found = resolve_space(SweepOptions(space="one", demo=True), bf16_available=False)
    assert found.models == ("bert-tiny",)


def test_a_grid_has_no_trials_to_count():
    with pytest.raises(UserError, match="--trials is for a search, and batch_lr_grid is a grid"):
        resolve_space(SweepOptions(space="batch_lr_grid", trials=5), bf16_available=False)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sampler": "random"}, "another sampler, tpe and not random"),
        ({"seed": 7}, "another seed, 42 and not 7"),
        ({"generation_size": 8}, "another generation_size, 4 and not 8"),
        (
            {"parameters": dict(SPACE.parameters) | {"head_dropout": Uniform(0.0, 0.1)}},
            "another head_dropout",
        ),
        ({"settings": dict(SPACE.settings) | {"weight_decay": 0.1}}, "another weight_decay"),
    ],
)
def test_another_search_under_the_same_name_is_refused(changes, told):
    ours, earlier = identity(SPACE.replace(**changes)), identity(SPACE)
    with pytest.raises(UserError) as raised:
        check_same_search(ours, [earlier])
    assert told in message(raised)


def test_the_order_of_settings_is_none_and_that_of_parameters_counts():
    ours = identity(SPACE)
    settings = dict(reversed(SPACE.settings.items()))
    check_same_search(ours, [identity(SPACE.replace(settings=settings))])
    parameters = dict(reversed(SPACE.parameters.items()))
    with pytest.raises(UserError, match="another order of parameters"):
        check_same_search(ours, [identity(SPACE.replace(parameters=parameters))])


def test_what_a_stranger_stored_is_one_line():
    with pytest.raises(UserError, match="not one that this program stores"):
        check_same_search(identity(SPACE), [{"search": "{"}])
    store = Store()
    store.generations[0] = [{"base_lr": 2.0, "model": "bert-tiny"}] * 4
    with pytest.raises(UserError, match="is not of this search"):
        store.open(space()).next()


def test_more_trials_and_other_passes_are_the_same_search():
    settings = dict(SPACE.settings) | {"physical_batch_size": 8}
    later = SPACE.replace(trials=60, confirm_seeds=5, settings=settings)
    check_same_search(identity(later), [identity(SPACE)])


def test_the_box_survives_the_store():
    stored = json.loads(json.dumps(SPACE.model_dump(mode="json")))
    assert SearchSpace(**stored) == SPACE
    assert SearchSpace(**stored).identity() == SPACE.identity()


def test_the_default_search_is_possible():
    assert len(list(SPACES["best_config"].corners())) == 192


# -- the copy for Optuna's own tools ---------------------------------------------------------------


@pytest.fixture
def finished():
    search = Store().open(space())
    run(search)
    return search


def copied(url):
    return optuna.load_study(study_name="films", storage=open_storage(url)).trials


def test_the_copy_has_every_trial_in_order(finished, tmp_path):
    url = f"sqlite:///{tmp_path}/optuna.db"
    OptunaCopy(url, "films").update(finished.stage, finished.outcomes)
    trials = copied(url)
    assert [trial.params for trial in trials] == finished.values
    for trial, (_, ended) in zip(trials, found(finished), strict=True):
        assert trial.state.name == ("COMPLETE" if ended.state == COMPLETE else "PRUNED")
        assert trial.state.name != "COMPLETE" or trial.value == ended.best_val_acc


def test_the_copy_grows_and_is_made_anew_where_it_is_of_another_search(tmp_path):
    url, store = f"sqlite:///{tmp_path}/optuna.db", Store()
    search = store.open(space())
    copy = OptunaCopy(url, "films")
    run(search, 8)
    copy.update(search.stage, search.outcomes)
    assert len(copied(url)) == 8
    run(search)
    copy.update(search.stage, search.outcomes)
    assert len(copied(url)) == 18
    other = Store().open(space("random", seed=3))
    run(other)
    OptunaCopy(url, "films").update(other.stage, other.outcomes)
    assert [trial.params for trial in copied(url)] == other.values


def test_a_file_that_is_no_database_is_left_alone(finished, tmp_path, capsys):
    (tmp_path / "optuna.db").write_bytes(theirs := b"not a database, but somebody's" * 100)
    OptunaCopy(f"sqlite:///{tmp_path}/optuna.db", "films").update(finished.stage, finished.outcomes)
    assert (tmp_path / "optuna.db").read_bytes() == theirs
    assert "cannot be written" in capsys.readouterr().out


def test_a_study_of_somebody_else_is_left_alone(finished, tmp_path, capsys):
    url = f"sqlite:///{tmp_path}/optuna.db"
    theirs = optuna.create_study(storage=open_storage(url), study_name="films")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    OptunaCopy(url, "films").update(finished.stage, finished.outcomes)
    assert [set(trial.params) for trial in copied(url)] == [{"x"}, {"x"}]
    assert "holds trials that are not of this search" in capsys.readouterr().out


def test_a_database_of_another_program_is_left_alone(finished, tmp_path, capsys, migrated_database):
    shutil.copyfile(migrated_database, tmp_path / "other.db")
    OptunaCopy(f"sqlite:///{tmp_path}/other.db", "films").update(finished.stage, finished.outcomes)
    assert [path.name for path in tmp_path.iterdir()] == ["other.db"]
    assert "cannot be written" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(bool(postgres_missing()), reason=postgres_missing())
def test_the_copy_may_be_on_postgresql(finished):
    with postgres() as server:
        OptunaCopy(server.uri, "films").update(finished.stage, finished.outcomes)
        trials = copied(server.uri)
    assert [trial.params for trial in trials] == finished.values


def test_a_copy_that_cannot_be_written_stops_nothing(finished, capsys):
    copy = OptunaCopy("sqlite:////no/such/folder/optuna.db", "films")
    for _ in range(2):
        copy.update(finished.stage, finished.outcomes)
    assert capsys.readouterr().out.count("cannot be written") == 1
