"""Diagnosis: yes or no to a finding, for some findings with the differential diagnosis (section 5 of the paper)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from components.curation.table_rows import InstructionRecord, VolumeInstructionRecord, VolumeRecord
from components.curation.text.descriptions import signal_term
from components.curation.text.differentials import list_considerations
from components.curation.text.instructions import build_instruction, spread
from components.curation.text.phrasings import Phrasings
from components.curation.text.structure_names import lesion_values
from components.curation.text.volume_instructions import build_volume_instruction
from components.settings import CurationSettings, EvaluationSettings
from components.tasks.base import AnyInstruction, Image, Target, Task, read_finding
from components.tasks.calibration import Answer, Calibration, fit_calibration
from components.tasks.findings import asked_kinds, evidence, sum_kinds
from components.tasks.known_structures import Shown
from components.tasks.volumetry import measure_shares

if TYPE_CHECKING:
    from components.curation.corpus import Corpus
    from components.curation.curate_volume import CardFacts, CuratedVolume
    from components.curation.store import VolumeStore
    from components.evaluation.model_answers import AnswerGenerator, Case
    from components.evaluation.results import ResultRow
    from components.evaluation.task_result import TaskResult
    from components.evaluation.volume_cases import VolumeCases
    from components.inference.prediction import Prediction
    from components.inference.predictor import Predictor
    from components.inference.question import Question
    from components.inference.sliding_window import ResampledVolume
    from components.inference.study import StudyQuestion

INFERENCE_SLICES = 12
"""Largest number of slices that a diagnosis of a volume considers."""
CALIBRATION_CASES = 2
"""Validation cases that the calibration is fitted on, relative to the test cases of a task."""


class Diagnosis(Task):
    """Answer whether there is a finding; the response begins with yes or no."""

    name = "diagnosis"
    weight = 0.15
    is_paired = True
    answers_yes_or_no = True
    needs_findings = True
    cues = (
        "is there",
        "are there",
        "do you see",
        "can you see",
        "to be seen",
        "diagnos",
        "suspect",
        "suggest",
        "present",
        "differential",
        *("does", "is a", "is any", "has", "evidence of", "sign of", "rule out", "confirm", "show", "visible", "consistent with"),
        *("normal", "wrong", "healthy"),
    )
    beginnings = ("yes", "no")
    phrasings = Phrasings(
        trained=(
            "Does this image suggest a {finding}?",
            "Is there a {finding} in this {scan}?",
            "Does this {scan} show a {finding}?",
            "Would you diagnose a {finding}?",
            "Is a {finding} present in this {scan}?",
            "Is a {finding} to be seen?",
            "Do you see a {finding} in this {scan}?",
            "Would you suspect a {finding} from this image?",
        ),
        held_out=(
            "Would you diagnose a {finding} from this {scan}?",
            "Is a {finding} present?",
        ),
    )
    open_phrasings = Phrasings(
        key="open",
        trained=(
            "Does this image suggest a {finding}? Give the differential diagnosis.",
            "Is there a {finding} in this {scan}, and what else could it be?",
            "Provide your diagnosis of this MRI volume: is there a {finding}?",
            "Provide your diagnosis of this {scan}: does it show a {finding}?",
            "Do you see a {finding} in this {scan}? Name the differential considerations.",
            "Would you diagnose a {finding}, and what would you consider besides?",
        ),
        held_out=(
            "Is a {finding} present in this {scan}? Give the differential considerations.",
            "Provide your diagnosis: does this image suggest a {finding}, and what else could it be?",
        ),
    )
    """Diagnosis with a differential (section 5 of the paper); the response still begins with yes or no."""

    @property
    def all_phrasings(self) -> tuple[Phrasings, ...]:  # noqa: D102 (see Task)
        return self.phrasings, self.open_phrasings

    def candidates(self, curated: CuratedVolume, card: CardFacts, settings: CurationSettings) -> Iterator[InstructionRecord]:
        """Yield instructions about the lesion on slices with and without it, and about the other findings of the volume."""
        facts, count = curated.facts, settings.slices_per_volume
        questions = [(i, facts.lesion, True) for i in spread(facts.lesion_slices, count)]
        questions += [(i, facts.lesion, False) for i in spread(facts.lesion_free_slices, count)]
        for finding in facts.findings:
            if finding.name != facts.lesion or not (facts.lesion_slices or facts.lesion_free_slices):
                questions += [(i, finding.name, finding.present) for i in spread(facts.content_slices, 1)]
        for slice_index, name, positive in questions:
            response = f"yes, {name}" if positive else f"no, no {name}"
            labeled = curated.record.has_labels and name == facts.lesion
            values = lesion_values(card.label_map) if labeled else []
            words = {"finding": name}
            yield build_instruction(curated, self, slice_index, response, words, positive=positive, label_values=values)
            yield from self._with_differential(curated, slice_index, name, positive, values)

    def _with_differential(
        self, curated: CuratedVolume, slice_index: int, name: str, positive: bool, values: list[int]
    ) -> Iterator[InstructionRecord]:
        """Yield the question with its differential, if there is one; the finding of the dataset is called most likely."""
        considered = list_considerations(name, curated.record.anatomy)
        if not considered:
            return
        locations = [
            ", ".join(
                text
                for text in (
                    measure.side,
                    measure.inside and f"in {measure.inside}",
                    measure.signal and signal_term(measure.signal),
                )
                if text
            )
            for measure in curated.facts.measures
            if measure.lesion and measure.name == name
        ]
        location = f", {locations[0]}" if locations and locations[0] else ""
        response = f"no, no {name}"
        if positive:
            response = f"yes{location}. Differential: {', '.join(considered)}. Most likely: {name}."
        fields = {"positive": positive, "differential": considered if positive else [], "label_values": values}
        yield build_instruction(curated, self, slice_index, response, {"finding": name}, self.open_phrasings, **fields)

    def volume_candidates(
        self, curated: CuratedVolume, card: CardFacts, settings: CurationSettings
    ) -> Iterator[VolumeInstructionRecord]:
        """Yield the question about the lesion of the volume, and those about its other findings."""
        facts, record = curated.facts, curated.record
        answers = {finding.name: finding.present for finding in facts.findings}
        if record.lesion is not None:
            answers[facts.lesion] = record.lesion
        for name, positive in sorted(answers.items()):
            response = f"yes, {name}" if positive else f"no, no {name}"
            values = lesion_values(card.label_map) if record.has_labels and name == facts.lesion else []
            fields = {"finding": name, "positive": positive, "label_values": values}
            yield build_volume_instruction(curated, self, response, {"finding": name}, **fields)

    def is_complete(self, record: AnyInstruction, volume: VolumeRecord) -> bool:  # noqa: D102
        return record.positive is not None

    def is_response(self, record: AnyInstruction) -> bool:  # noqa: D102
        return record.response.startswith("yes" if record.positive else "no")

    def input_and_target(self, record: InstructionRecord, store: VolumeStore) -> tuple[Image, Target]:
        """Read the slice and, to train on, the mask of the finding: an answer rests on where the finding is."""
        return read_finding(record, store)

    def case_group(self, record: InstructionRecord) -> object:
        """Return the true answer: equally many cases are positive and negative."""
        return record.positive

    def recognizes(self, answer: str) -> bool:  # noqa: D102
        return answer.lower().startswith(("yes", "no,", "no ")) or answer.lower() == "no"

    def decode(self, predictor: Predictor, question: Question, answer: str) -> Prediction:
        """Return the calibrated p(yes) of the volume, from the text and the masks of slices through it."""
        slices = read_slices(question)
        probability = self.slices_probability(predictor, question, predictor.structures(question, slices, self.name))
        text = f"{'yes' if probability > 0.5 else 'no'} (p = {probability:.2f} over {len(slices)} slices)"
        return question.prediction(self.name, text, question.volume.tiles(slices), probability=probability)

    def slices_probability(self, predictor: Predictor, question: Question, shown: Shown | None) -> float:
        """Return p(yes) from slices through the volume: where a finding with a place is seen best, else their mean.

        A slice counts with the largest value of its tiles. A finding of a whole organ is predicted by volumetry where possible.

        Args:
            shown: of these slices, or of more.
        """
        slices = read_slices(question)
        measured = measured_probability(predictor, question.volume, shown, question.instruction)
        if measured is not None:
            return measured
        tiles = question.volume.tiles(slices)
        by_slice: dict[int, float] = {}
        for tile, share in zip(tiles, predictor.yes_probabilities(question, tiles, self.name), strict=True):
            by_slice[tile.index] = max(by_slice.get(tile.index, 0.0), share)
        seen = finding_evidence(shown, question.instruction, question.volume.grid.pixel_area)
        answers = [Answer(by_slice[index], None if seen is None else seen[index]) for index in slices]
        probabilities = [predictor.calibration.probability(one) for one in answers]
        return float(np.mean(probabilities)) if seen is None else max(probabilities)

    def decode_study(self, study: StudyQuestion, answer: str) -> Prediction:
        """Return the calibrated p(yes) of one pass over the study."""
        probability = study.predictor.volume_calibration.probability(study_answer(study))
        text = f"{'yes' if probability > 0.5 else 'no'} (p = {probability:.2f})"
        return study.prediction(self.name, text, probability=probability)

    def evaluate(self, cases: Sequence[Case], answers: AnswerGenerator, corpus: Corpus, settings: EvaluationSettings) -> TaskResult:
        """Score p(yes) with AUROC and accuracy, next to the more frequent answer of the training patients."""
        from components.evaluation import metrics
        from components.evaluation.baselines import majority_answer
        from components.evaluation.calibration import expected_calibration_error
        from components.evaluation.task_result import ScoredUnits, TaskResult, build_row, example_cases, pair_score, worst_cases

        majority = [float(majority_answer(corpus, self.name))] * len(cases)
        opinions = collect_answers(answers, cases, corpus, settings)
        calibration = _fit(answers, corpus, settings, self.name)
        raw, scores = [Calibration().probability(one) for one in opinions], [calibration.probability(one) for one in opinions]
        truth = [bool(case.record.positive) for case in cases]
        patients = [case.record.patient_id for case in cases]

        def accuracy(predicted: Sequence[float], positive: Sequence[bool]) -> float:
            return float(np.mean([(p > 0.5) == t for p, t in zip(predicted, positive, strict=True)]))

        result = TaskResult(roc=(scores, truth), uncalibrated=raw, calibration=calibration)
        for name, metric, bootstrapped in (("AUROC", metrics.auroc, metrics.auroc_by_ranks), ("accuracy", accuracy, accuracy)):
            baselines = {"majority": pair_score(metric, majority, truth)}
            model, resampled = pair_score(metric, scores, truth), pair_score(bootstrapped, scores, truth)
            result.rows.append(build_row(self.name, name, True, model, baselines, patients, len(cases), resampled))
        if metrics.has_both_answers(truth, patients):
            by_patient = {"majority": metrics.auroc_by_unit(majority, truth, patients)}
            whole = metrics.auroc_by_unit(scores, truth, patients)
            result.rows.append(build_row(self.name, "AUROC by patient", True, whole, by_patient, patients, len(cases)))
        for name, values in (("ECE", scores), ("ECE before calibration", raw)):
            baselines = {"one half": pair_score(expected_calibration_error, [0.5] * len(cases), truth)}
            model = pair_score(expected_calibration_error, values, truth)
            result.rows.append(build_row(self.name, name, False, model, baselines, patients, len(cases)))
        volumes = tuple(case.record.volume_id for case in cases)
        baselines = {"majority": pair_score(accuracy, majority, truth)}
        result.units = ScoredUnits("accuracy", pair_score(accuracy, scores, truth), baselines, volumes)

        def example(i: int) -> tuple[str, str, str]:
            return cases[i].record.instruction, cases[i].record.response, f"p(yes) = {scores[i]:.2f}"

        result.texts = [example(i) for i in example_cases(cases, corpus)]
        result.worst_texts = [example(i) for i in worst_cases([1 - abs(p - t) for p, t in zip(scores, truth, strict=True)])]
        return result

    def score_volumes(self, cases: VolumeCases, corpus: Corpus, result: TaskResult) -> list[ResultRow]:  # noqa: D102
        from components.evaluation.volume_scores import fit_volume_calibration, score_diagnoses

        result.volume_calibration = fit_volume_calibration(cases.validation[self.name])
        return score_diagnoses(cases.test[self.name], corpus, result.volume_calibration)


def read_slices(question: Question) -> list[int]:
    """Return the slices that a diagnosis reads, evenly spaced among those with content."""
    content = question.volume.content_slices
    count = min(INFERENCE_SLICES, len(content))
    return [content[round(position)] for position in np.linspace(0, len(content) - 1, count)]


def finding_evidence(shown: Shown | None, instruction: str, pixel_area: float) -> list[float] | None:
    """Return the evidence of the finding in question on every slice of a volume; None if the model does not know it.

    Args:
        shown: of the volume, on its own grid.
        instruction: the question.
        pixel_area: pixels of a slice for each pixel of the network's grid.
    """
    kinds = asked_kinds(instruction, tuple(shown.structures)) if shown else {}
    if shown is None or not kinds:
        return None
    total_DHW = np.sum(list(sum_kinds(shown.structures, kinds).values()), axis=0)
    return [evidence(total_HW, pixel_area) for total_HW in total_DHW]


def measured_probability(predictor: Predictor, volume: ResampledVolume, shown: Shown | None, instruction: str) -> float | None:
    """Return the probability that volumetry gives a finding of a whole organ; None if it predicts none that the question names.

    Args:
        shown: of the volume, on its own grid.
    """
    if shown is None or not predictor.volumetry.names(instruction):
        return None
    return predictor.volumetry.probability(instruction, measure_shares(shown, volume.volume.spacing_mm))


def study_answer(study: StudyQuestion) -> Answer:
    """Return the opinions on a question about whole volumes; the evidence of masks is that of the slice with most."""
    seen = finding_evidence(study.shown, study.instruction, study.target.volume.grid.pixel_area)
    measured = measured_probability(study.predictor, study.target.volume, study.shown, study.instruction)
    return Answer(study.yes_probability(), None if seen is None else max(seen), measured)


def collect_answers(answers: AnswerGenerator, cases: Sequence[Case], corpus: Corpus, settings: EvaluationSettings) -> list[Answer]:
    """Return p(yes) of the text of each case and, where the model knows the finding, its evidence in the masks.

    A finding of a whole organ is that of the volume of the case.
    """
    from components.evaluation.organ_findings import volume_shares

    collected = []
    for case, share, shown in zip(cases, answers.yes_probabilities(cases), answers.structures(cases), strict=True):
        instruction, measured = case.record.instruction, None
        by_kind = sum_kinds(shown.structures, asked_kinds(instruction, tuple(shown.structures))) if shown else {}
        if answers.volumetry.names(instruction):
            measured = answers.volumetry.probability(instruction, volume_shares(case.record.volume_id, corpus, answers, settings))
        collected.append(Answer(share, evidence(np.sum(list(by_kind.values()), axis=0)) if by_kind else None, measured))
    return collected


def _fit(answers: AnswerGenerator, corpus: Corpus, settings: EvaluationSettings, task: str) -> Calibration:
    """Return the calibration of p(yes) on validation patients."""
    from components.evaluation.case_selection import select_task_cases
    from components.evaluation.model_answers import load_cases

    count = CALIBRATION_CASES * settings.cases_per_task
    cases = load_cases(corpus, select_task_cases(corpus, task, "validation", count, answers.seed))
    return fit_calibration(collect_answers(answers, cases, corpus, settings), [bool(case.record.positive) for case in cases])


TASK = Diagnosis()
