"""Report: the diagnostic report of a volume.

What its header states (sequence, plane) and what the masks of its slices measure (findings, signals) is copied, not generated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from components.curation.table_rows import InstructionRecord, VolumeInstructionRecord
from components.curation.text.header_facts import NO_HEADER, HeaderFacts
from components.curation.text.instructions import MASK_RESPONSE, build_instruction, spread
from components.curation.text.phrasings import Phrasings
from components.curation.text.template import with_fields
from components.curation.text.volume_instructions import build_volume_instruction
from components.progress import track
from components.settings import CurationSettings, EvaluationSettings
from components.tasks.base import AnyInstruction, Task
from components.tasks.known_structures import Shown
from components.tasks.report_text import format_report, measure_fields, with_measurements
from components.tasks.volumetry import NO_VOLUMETRY, Volumetry, measure_shares

if TYPE_CHECKING:
    from components.curation.corpus import Corpus
    from components.curation.curate_volume import CardFacts, CuratedVolume
    from components.evaluation.model_answers import AnswerGenerator, Case
    from components.evaluation.results import ResultRow
    from components.evaluation.task_result import Score, TaskResult
    from components.evaluation.volume_cases import VolumeCases
    from components.inference.prediction import Prediction
    from components.inference.predictor import Predictor
    from components.inference.question import Question
    from components.inference.sliding_window import ResampledVolume
    from components.inference.study import StudyQuestion


class Report(Task):
    """Write a report: the description of the volume in the form of a paragraph."""

    name = "report"
    weight = 0.15
    needs_findings = True
    states_sizes = True
    is_free_text = True
    cues = ("report", "impression", "describ", "description", "summar", "what do you see", "what does", "what is seen", "interpret")
    phrasings = Phrasings(
        trained=(
            "Generate a diagnostic report based on this MRI scan.",
            "Generate a diagnostic report of this {scan}.",
            "Write a report of this image.",
            "Report this image.",
            "Generate a diagnostic impression.",
            "Write a diagnostic report based on this {scan}.",
            "Generate an impression of this {scan}.",
            "Report what this {scan} shows.",
        ),
        held_out=(
            "Generate a diagnostic impression based on this {scan}.",
            "Report this {scan}.",
        ),
    )

    def candidates(self, curated: CuratedVolume, card: CardFacts, settings: CurationSettings) -> Iterator[InstructionRecord]:
        """Yield instructions if labels, boxes or diagnoses state whether there is a lesion, on slices that show it if any."""
        if curated.record.lesion is None:
            return
        response = format_report(curated.description.fields, curated.record.anatomy)
        for slice_index in spread(curated.facts.lesion_slices or curated.facts.content_slices, settings.slices_per_volume):
            yield build_instruction(curated, self, slice_index, response, {})

    def volume_candidates(
        self, curated: CuratedVolume, card: CardFacts, settings: CurationSettings
    ) -> Iterator[VolumeInstructionRecord]:
        """Yield the instruction if labels, boxes or diagnoses state whether there is a lesion."""
        if curated.record.lesion is not None:
            yield build_volume_instruction(curated, self, format_report(curated.description.fields, curated.record.anatomy), {})

    def is_response(self, record: AnyInstruction) -> bool:  # noqa: D102 (see Task)
        return len(record.response) > len(MASK_RESPONSE)

    def decode(self, predictor: Predictor, question: Question, answer: str) -> Prediction:
        """Return the answer with the facts of the header and of the masks of all slices in the fields that these state."""
        shown = predictor.structures(question, question.volume.content_slices, self.name)
        text = complete_report(answer, question.volume, shown, question.header, predictor.volumetry)
        return question.prediction(self.name, text, [question.first_tile])

    def decode_study(self, study: StudyQuestion, answer: str) -> Prediction:
        """Return the answer with the facts of the masks; of a single series, also of its header.

        The header fields of a report about several series are those of the series that shows the finding, which the model chooses.
        """
        header = study.target.header if len(study.series) == 1 else NO_HEADER
        text = complete_report(answer, study.target.volume, study.shown, header, study.predictor.volumetry)
        return study.prediction(self.name, text)

    def evaluate(self, cases: Sequence[Case], answers: AnswerGenerator, corpus: Corpus, settings: EvaluationSettings) -> TaskResult:
        """Score the overlap of texts and the share of correct fields, next to the most frequent training report."""
        from components.evaluation import metrics
        from components.evaluation.baselines import count_reports
        from components.evaluation.task_result import (
            ScoredUnits,
            TaskResult,
            build_row,
            example_cases,
            mean_score,
            pair_score,
            worst_cases,
        )

        frequent = count_reports(corpus, self.name)
        texts = _complete(answers.texts(cases), cases, answers, corpus, settings)
        truth = [case.record.response for case in cases]
        most_frequent = [frequent.overall] * len(cases)
        of_sequence = [frequent.for_volume(corpus.volumes[case.record.volume_id]) for case in cases]
        patients = [case.record.patient_id for case in cases]

        def field_f1(predicted: Sequence[str]) -> Score:
            return pair_score(metrics.field_f1, predicted, truth)

        def tolerant_f1(predicted: Sequence[str]) -> Score:
            return pair_score(partial(metrics.field_f1, tolerance=metrics.SIZE_TOLERANCE), predicted, truth)

        def rouge_l(predicted: Sequence[str]) -> Score:
            return mean_score(metrics.rouge_l_each(predicted, truth))

        def bleu(predicted: Sequence[str]) -> Score:
            return pair_score(metrics.bleu, predicted, truth)

        result = TaskResult()
        scores = {"field F1": field_f1, "field F1, sizes within a fifth": tolerant_f1, "ROUGE-L": rouge_l, "BLEU": bleu}
        for name, score in scores.items():
            model = score(texts)
            baselines = {"most frequent": score(most_frequent), "of its sequence": score(of_sequence)}
            resampled = None if name == "BLEU" else model  # a thousand corpora of BLEU take longer than all other metrics
            result.rows.append(build_row(self.name, name, True, model, baselines, patients, len(cases), resampled))
        volumes = tuple(case.record.volume_id for case in cases)
        result.units = ScoredUnits("field F1", field_f1(texts), {"of its sequence": field_f1(of_sequence)}, volumes)
        by_case = [metrics.field_f1([text], [true_text]) for text, true_text in zip(texts, truth, strict=True)]
        examples = [(case.record.instruction, true_text, text) for case, true_text, text in zip(cases, truth, texts, strict=True)]
        result.texts = [examples[i] for i in example_cases(cases, corpus)]
        result.worst_texts = [examples[i] for i in worst_cases(by_case)]
        return result

    def score_volumes(self, cases: VolumeCases, corpus: Corpus, result: TaskResult) -> list[ResultRow]:  # noqa: D102
        from components.evaluation.volume_scores import score_reports

        return score_reports(cases.test[self.name], corpus)


def complete_report(
    text: str, volume: ResampledVolume, shown: Shown | None, header: HeaderFacts, volumetry: Volumetry = NO_VOLUMETRY
) -> str:
    """Return a report with the facts of the masks of a volume, and of its header, in the fields that these state."""
    if shown is not None:
        measured = measure_fields(volume.volume, shown, volume.grid.pixel_area)
        organ_findings = volumetry.organ_findings(measure_shares(shown, volume.volume.spacing_mm)) if volumetry.findings else {}
        text = with_measurements(text, measured, organ_findings, volume.volume.acquisition.anatomy)
    return with_fields(text, header.fields)


def _complete(
    texts: Sequence[str], cases: Sequence[Case], answers: AnswerGenerator, corpus: Corpus, settings: EvaluationSettings
) -> list[str]:
    """Return the reports with the facts of the header and of the masks of all slices of their volumes."""
    from components.evaluation.volume_cases import read_volume

    by_volume: dict[str, list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        by_volume[case.record.volume_id].append(index)
    completed = list(texts)
    for volume_id, indices in track(list(by_volume.items()), "report (masks)"):
        readings = read_volume(corpus, volume_id, answers, settings)
        for index in indices:
            completed[index] = complete_report(
                texts[index], readings.volume, readings.shown_by_slices, cases[index].header, answers.volumetry
            )
    return completed


TASK = Report()
