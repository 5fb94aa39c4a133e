"""``analyze``: from a study in MLflow to the section that looks inside its best-epoch models."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from reports.content import INSIDE, PATIENCE, Picture, Section, make_folder, write_section
from reports.inside.attention import (
    AttentionRow,
    AttentionStatistics,
    attention_row,
    attention_table,
    mean_statistics,
)
from reports.inside.attention_pictures import AttentionMap, attention_map, attention_picture
from reports.inside.error_pictures import Landscape, landscape_picture, rates_picture
from reports.inside.error_rates import error_rates, rates_table
from reports.inside.errors import error_tables, overlaps, shared_errors_sentences
from reports.inside.reloaded import ReloadedModel, reload_model
from reports.inside.sentences import Sentence, choose_sentences, given_sentences
from reports.inside.tested import TestedCell, TestedStudy, choose_rule, tested_study
from reports.study_data import read_study
from tracking import Patience, StudyStore, TrialRun, check_store_exists

_ATTENTION_TEXTS = 256
_LANDSCAPE_TEXTS = 600  # at most 1,000: more points hide each other


@dataclass(frozen=True)
class View:
    """What to look at. Layers and heads count from 1; None is the last layer, the mean over heads."""

    texts: Sequence[str] = ()
    rule: str | None = None
    layer: int | None = None
    head: int | None = None

    @property
    def where(self) -> str:
        """``last layer, mean over heads``."""
        layer = "last layer" if self.layer is None else f"layer {self.layer}"
        return f"{layer}, mean over heads" if self.head is None else f"{layer}, head {self.head}"


@dataclass(frozen=True)
class _Inspection:
    """What is kept of one reloaded model; maps and landscape only where they are drawn."""

    statistics: AttentionStatistics
    texts: int
    maps: Sequence[AttentionMap] = ()
    landscape: Landscape | None = None
    agreeing: int = 0  # texts of the landscape whose reloaded prediction is the tested one


@dataclass(frozen=True)
class _Looking:
    """One analysis under way."""

    study: TestedStudy
    rule: str
    view: View
    sentences: Sequence[Sentence]
    found: dict[str, _Inspection] = field(default_factory=dict)  # by trial hash

    def inspect(
        self,
        runs: dict[str, TrialRun],
        patiently: Callable[[Callable[[], ReloadedModel]], ReloadedModel],
        say: Callable[[str], None],
    ) -> None:
        """Reload one model at a time: all of them may not fit into memory."""
        shown = {cell.trial.trial_hash for cell in self.study.at_rule(self.rule)}
        trials = self.study.trials
        for number, (trial_hash, trial) in enumerate(trials.items(), 1):
            say(f"looking inside {number} of {len(trials)}: {trial.name}")
            model = patiently(partial(reload_model, runs[trial_hash]))
            model.check(self.view.layer, self.view.head)
            self.found[trial_hash] = self._inspection(model, trial_hash, trial_hash in shown)

    def _inspection(self, model: ReloadedModel, trial_hash: str, is_shown: bool) -> _Inspection:
        texts = self.study.sample(_ATTENTION_TEXTS)["text"].to_list()
        layer, head = self.view.layer, self.view.head
        statistics, count = mean_statistics(model.readings(texts, layer, head))
        if not is_shown:
            return _Inspection(statistics, count)
        sentences = [sentence.text for sentence in self.sentences]
        readings = model.readings(sentences, layer, head)
        maps = [attention_map(reading, self.study.label_names) for reading in readings]
        landscape, agreeing = self._landscape(model, trial_hash)
        return _Inspection(statistics, count, maps, landscape, agreeing)

    def _landscape(self, model: ReloadedModel, trial_hash: str) -> tuple[Landscape, int]:
        sample = self.study.sample(_LANDSCAPE_TEXTS)
        features, predictions = model.features(sample["text"].to_list())
        tested = self.study.trials[trial_hash].predictions["best"].set_index("row_id")
        stored = tested["prediction"].loc[sample.index].to_numpy()
        landscape = Landscape(features, sample["label"].to_numpy(), stored)
        return landscape, int((predictions == stored).sum())

    def section(self) -> Section:
        """Pictures, tables and sentences from what was found."""
        rates = error_rates(self.study)
        attention = [self._attention_row(cell) for cell in self.study.cells]
        tables = {"attention": attention_table(attention, self.view.where)}
        tables |= error_tables(self.study)
        tables["error_rates"] = rates_table(rates)
        pictures = [*self._attention_pictures(), self._landscape_picture()]
        pictures.append(rates_picture(rates, self.rule))
        return Section(list(self._prose(attention)), pictures, tables)

    def _attention_row(self, cell: TestedCell) -> AttentionRow:
        found = self.found[cell.trial.trial_hash]
        return attention_row(cell, found.statistics, found.texts)

    def _shown(self) -> dict[tuple[str, int], _Inspection]:
        return {
            (cell.model, cell.target_batch_size): self.found[cell.trial.trial_hash]
            for cell in self.study.at_rule(self.rule)
        }

    def _attention_pictures(self) -> Iterator[Picture]:
        for number, sentence in enumerate(self.sentences):
            maps = {place: found.maps[number] for place, found in self._shown().items()}
            name = f"attention_{number + 1}"
            yield attention_picture(name, sentence, maps, self.view.where, self.rule)

    def _landscape_picture(self) -> Picture:
        shown = self._shown().items()
        landscapes = {place: found.landscape for place, found in shown if found.landscape}
        return landscape_picture(landscapes, self.study.label_names, self.rule)

    def _prose(self, attention: Sequence[AttentionRow]) -> Iterator[str]:
        shown = self._shown().values()
        texts = sum(len(found.landscape.labels) for found in shown if found.landscape)
        agreeing = sum(found.agreeing for found in shown)
        yield (
            f"Best-epoch models of seed {self.study.seed}, reloaded from MLflow on the CPU; the pictures "
            f"show rule {self.rule}. On {agreeing:,} of {texts:,} predictions the reloaded models repeat "
            "what they said when they were tested."
        )
        for model in self.study.models():
            own = [r for r in attention if r.model == model and r.scaling_rule == self.rule]
            shares = [
                f"{100 * r.special_token_share:.0f} % at target batch size {r.target_batch_size}"
                for r in own
            ]
            if shares:
                yield f"{model}, rule {self.rule}: attention on special tokens is {', '.join(shares)}."
        yield from shared_errors_sentences(overlaps(self.study)[0])


def write_inside(
    tracking_uri: str,
    study: str,
    results_path: str,
    view: View | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Section, Path]:
    """Write ``results/<study>/inside/`` and log it to the newest parent run under ``inside/``.

    Returns the section and the folder; ``say`` gets a line per model. Raises UserError for an unknown
    study, rule, layer or head, and for a study without tested trials or without its test split;
    StoreAwayError where MLflow stops to answer meanwhile.
    """
    view = view or View()
    check_store_exists(tracking_uri)
    store = StudyStore(tracking_uri, study)
    patiently = partial(Patience(store.answers, say).call, seconds=PATIENCE)
    invocation = patiently(store.latest_invocation)
    test_split = patiently(invocation.test_split)
    tested = tested_study(patiently(lambda: read_study(store, invocation.plan())), test_split)
    given = given_sentences(view.texts)
    sentences = given or choose_sentences(tested.test, tested.correct(), tested.label_names)
    looking = _Looking(tested, choose_rule(tested, view.rule), view, sentences)
    folder = Path(results_path) / study / INSIDE
    make_folder(folder)
    looking.inspect(patiently(store.trial_runs), patiently, say)
    section = looking.section()
    write_section(section, folder, INSIDE)
    patiently(lambda: invocation.log_folder(folder, INSIDE))
    return section, folder
