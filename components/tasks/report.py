"""Report: the diagnostic report of a volume. What its header states (sequence, plane) is copied, not generated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from components.curation.curate_volume import CardFacts, CuratedVolume
from components.curation.table_rows import DescriptionRecord, InstructionRecord, VolumeInstructionRecord
from components.curation.text.instructions import MASK_RESPONSE, build_instruction, spread
from components.curation.text.phrasings import Phrasings
from components.curation.text.structure_names import knee_organ
from components.curation.text.template import KNEE_ORGANS, format_paragraph, with_fields
from components.curation.text.volume_instructions import build_volume_instruction
from components.settings import CurationSettings, EvaluationSettings
from components.tasks.base import Task

if TYPE_CHECKING:
    from components.curation.corpus import Corpus
    from components.evaluation.model_answers import AnswerGenerator, Case
    from components.evaluation.task_result import Score, TaskResult
    from components.inference.prediction import Prediction
    from components.inference.predictor import Predictor
    from components.inference.question import Question
    from components.inference.study import StudyQuestion


class Report(Task):
    """Write a report: the description of the volume in the form of a paragraph."""

    name = "report"
    weight = 0.15
    needs_findings = True
    states_sizes = True
    is_free_text = True
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
        response = report_text(curated.description, curated.record.anatomy)
        for slice_index in spread(curated.facts.lesion_slices or curated.facts.content_slices, settings.slices_per_volume):
            yield build_instruction(curated, self, slice_index, response, {})

    def volume_candidates(
        self, curated: CuratedVolume, card: CardFacts, settings: CurationSettings
    ) -> Iterator[VolumeInstructionRecord]:
        """Yield the instruction if labels, boxes or diagnoses state whether there is a lesion."""
        if curated.record.lesion is not None:
            yield build_volume_instruction(curated, self, report_text(curated.description, curated.record.anatomy), {})

    def is_response(self, record: InstructionRecord) -> bool:  # noqa: D102 (see Task)
        return len(record.response) > len(MASK_RESPONSE)

    def decode(self, predictor: Predictor, question: Question, answer: str) -> Prediction:
        """Return the answer with the header's own facts in the fields that the header states."""
        return question.prediction(self.name, with_fields(answer, question.header.fields), [question.first_tile])

    def decode_study(self, study: StudyQuestion, answer: str) -> Prediction:
        """Return the answer; of a single series, with the facts of its header in the fields that the header states."""
        return study.prediction(self.name, with_fields(answer, study.target.header.fields) if len(study.series) == 1 else answer)

    def evaluate(self, cases: Sequence[Case], answers: AnswerGenerator, corpus: Corpus, settings: EvaluationSettings) -> TaskResult:
        """Score the overlap of texts and the share of correct fields, next to the most frequent training report."""
        from components.evaluation import metrics
        from components.evaluation.baselines import count_reports
        from components.evaluation.task_result import (
            EXAMPLES,
            ScoredUnits,
            TaskResult,
            build_row,
            mean_score,
            pair_score,
            worst_cases,
        )

        frequent = count_reports(corpus, self.name)
        texts = [with_fields(text, case.header.fields) for text, case in zip(answers.texts(cases), cases, strict=True)]
        truth = [case.record.response for case in cases]
        most_frequent = [frequent.overall] * len(cases)
        of_sequence = [frequent.for_volume(corpus.volumes[case.record.volume_id]) for case in cases]
        patients = [case.record.patient_id for case in cases]

        def field_f1(predicted: Sequence[str]) -> Score:
            return pair_score(metrics.field_f1, predicted, truth)

        def rouge_l(predicted: Sequence[str]) -> Score:
            return mean_score(metrics.rouge_l_each(predicted, truth))

        def bleu(predicted: Sequence[str]) -> Score:
            return pair_score(metrics.bleu, predicted, truth)

        result = TaskResult()
        for name, score in (("field F1", field_f1), ("ROUGE-L", rouge_l), ("BLEU", bleu)):
            model = score(texts)
            baselines = {"most frequent": score(most_frequent), "of its sequence": score(of_sequence)}
            resampled = None if name == "BLEU" else model  # a thousand corpora of BLEU take longer than all other metrics
            result.rows.append(build_row(self.name, name, True, model, baselines, patients, len(cases), resampled))
        result.units = ScoredUnits("field F1", field_f1(texts), tuple(case.record.volume_id for case in cases))
        by_case = [metrics.field_f1([text], [true_text]) for text, true_text in zip(texts, truth, strict=True)]
        examples = [(case.record.instruction, true_text, text) for case, true_text, text in zip(cases, truth, texts, strict=True)]
        result.texts = examples[:EXAMPLES]
        result.worst_texts = [examples[i] for i in worst_cases(by_case)]
        return result


def report_text(description: DescriptionRecord, anatomy: str | None) -> str:
    """Return the report of a volume: the paragraph of its description; for knees in the organ-wise order of the paper's section 5.

    A knee report states what is known about joint space, menisci, cartilage, bone and soft tissues, in this order, then impression,
    grading and recommendation. An organ that no source describes is omitted, not called normal.
    """
    if "knee" not in (anatomy or "").lower():
        return description.text
    by_organ: dict[str, list[str]] = {organ: [] for organ in KNEE_ORGANS}
    for section in ("visible_anatomical_structures", "pathological_findings"):
        separator = "; " if section == "pathological_findings" else ", "
        for name, text in description.fields.items():
            if name.startswith(section):
                for statement in text.split(separator):
                    organ = knee_organ(statement) if statement else None
                    if organ and statement not in by_organ[organ]:
                        by_organ[organ].append(statement)
    header = {name: text for name, text in description.fields.items() if name.startswith("image_modality_sequence.")}
    conclusion = {name: text for name, text in description.fields.items() if name.startswith("diagnostic_impression.")}
    organs = [
        f"{organ.replace('_', ' ').capitalize()}: {'; '.join(statements)}." for organ, statements in by_organ.items() if statements
    ]
    return " ".join(text for text in (format_paragraph(header), *organs, format_paragraph(conclusion)) if text)


TASK = Report()
