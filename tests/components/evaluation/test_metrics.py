"""Metrics agree with the libraries and definitions that they name, on cases with a known result."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from monai.data.box_utils import box_iou
from scipy import ndimage
from scipy.spatial import KDTree
from sklearn.metrics import average_precision_score, roc_auc_score

from components.evaluation import metrics
from components.tasks.findings import VolumeOutline
from model_core.boxes import TextBox, VolumeBox
from model_core.losses.pixels import structural_dissimilarity

FOUND = TextBox("lesion", 100, 100, 200, 200)
edges = st.tuples(st.integers(0, 900), st.integers(1, 99)).map(lambda pair: (pair[0], pair[0] + pair[1]))
boxes = st.tuples(edges, edges).map(lambda pair: TextBox("lesion", pair[0][0], pair[1][0], pair[0][1], pair[1][1]))


def _volumes() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.uniform(size=(3, 24, 24)).astype(np.float32)
    return (truth + 0.05 * rng.normal(size=truth.shape)).astype(np.float32), truth


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.booleans()), min_size=2, max_size=20))
def test_auroc_by_ranks_equals_scikit_learn(pairs: list[tuple[float, bool]]) -> None:
    scores, truth = zip(*pairs, strict=True)
    area = metrics.auroc_by_ranks(scores, truth)
    assert area == pytest.approx(roc_auc_score(truth, scores)) if len(set(truth)) == 2 else np.isnan(area)


def test_hd95_is_in_millimeters_and_the_image_diagonal_for_an_empty_mask() -> None:
    """Compare with scipy's distances of the outlines of two discs, 6 pixels of 1.5 mm apart."""
    rows, columns = np.mgrid[:48, :48]
    first, second = ((rows - 24) ** 2 + (columns - c) ** 2 < 64 for c in (18, 24))
    edges = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) * 1.5 for mask in (first, second)]
    tree = [KDTree(edge) for edge in edges]
    both = [np.percentile(tree[1 - i].query(edges[i])[0], 95) for i in range(2)]
    assert metrics.hd95(first, second, (1.5, 1.5)) == pytest.approx(max(both))
    empty = np.zeros_like(first)
    assert metrics.hd95(empty, empty, (1.5, 1.5)) == 0 and metrics.hd95(empty, first, (1.5, 1.5)) == pytest.approx(72 * 2**0.5)


def test_psnr_and_nmse_follow_their_formulas() -> None:
    prediction, truth = _volumes()
    mean_square = ((prediction - truth) ** 2).mean()
    assert metrics.psnr(prediction, truth, 2.0) == pytest.approx(10 * np.log10(4.0 / mean_square), rel=1e-5)
    assert metrics.nmse(prediction, truth) == pytest.approx(mean_square / (truth**2).mean(), rel=1e-5)


def test_ssim_is_the_one_that_training_optimizes() -> None:
    prediction, truth = _volumes()
    truth[:, 0, 0] = 1.0  # same range in every slice: training uses that of the slice, evaluation that of the volume
    loss = structural_dissimilarity(torch.from_numpy(prediction)[:, None], torch.from_numpy(truth)[:, None])
    assert metrics.ssim(prediction, truth, 1.0) == pytest.approx(1 - float(loss.mean()), abs=1e-4)


def test_dice_of_half_a_mask_is_two_thirds() -> None:
    truth = np.zeros((4, 4), dtype=bool)
    truth[:2] = True
    half = truth.copy()
    half[1] = False
    assert metrics.dice(half, truth) == pytest.approx(2 / 3)
    assert metrics.dice(~truth, truth) == 0 and metrics.dice(truth, truth) == 1


def test_an_empty_prediction_of_an_empty_mask_is_correct() -> None:
    empty, full = np.zeros((4, 4), dtype=bool), np.ones((4, 4), dtype=bool)
    assert metrics.dice(empty, empty) == 1 and metrics.dice(full, empty) == 0


@given(first=boxes, second=boxes)
def test_iou_is_symmetric_and_one_for_itself(first: TextBox, second: TextBox) -> None:
    assert metrics.iou(first, first) == 1
    assert metrics.iou(first, second) == metrics.iou(second, first) <= 1


def test_a_box_is_matched_once() -> None:
    near = TextBox("lesion", 110, 100, 205, 200)
    assert metrics.count_matches([FOUND, near], [FOUND]) == 1
    assert metrics.detection_f1([[FOUND, near]], [[FOUND]]) == pytest.approx(2 / 3)
    assert metrics.detection_f1([[TextBox("cyst", 100, 100, 200, 200)]], [[FOUND]]) == 0
    assert metrics.localization_f1([[TextBox("cyst", 100, 100, 200, 200)], []], [[FOUND], [FOUND]]) == pytest.approx(2 / 3)
    assert metrics.detection_f1([[]], [[]]) == 1


def test_average_precision_of_small_examples() -> None:
    """Two lesions, one matched by the most confident answer, one unmatched: precision 1 up to a recall of one half."""
    wrong = TextBox("lesion", 700, 700, 800, 800)
    truth = [[FOUND], [FOUND], []]
    assert metrics.average_precision([[FOUND], [], [wrong]], truth, [0.9, 0.1, 0.2]) == pytest.approx(0.5)
    assert metrics.average_precision([[FOUND], [], [wrong]], truth, [0.2, 0.1, 0.9]) == pytest.approx(0.25)
    assert metrics.average_precision([[FOUND], [FOUND], []], truth, [0.2, 0.1, 0.9]) == 1
    assert metrics.average_precision([[], [wrong], []], truth, [0.2, 0.1, 0.9]) == 0
    assert metrics.average_precision([[]], [[]], [0.5]) == 1 and metrics.average_precision([[wrong]], [[]], [0.5]) == 0


@given(
    scores=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=4, max_size=4),
    correct=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_average_precision_equals_scikit_learn_if_every_lesion_is_matched(scores: list[float], correct: list[bool]) -> None:
    assume(any(correct))
    predicted, truth = [[FOUND]] * 4, [[FOUND] if hit else [] for hit in correct]
    assert metrics.average_precision(predicted, truth, scores) == pytest.approx(average_precision_score(correct, scores))


def test_auroc_equals_scikit_learn() -> None:
    scores, truth = [0.1, 0.4, 0.35, 0.8], [False, False, True, True]
    assert metrics.auroc(scores, truth) == roc_auc_score(truth, scores)
    assert metrics.auroc(scores, [True] * 4) == 0.5


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), min_size=1, max_size=6))
def test_the_auroc_of_units_is_a_number_where_they_have_both_answers(cases: list[tuple[bool, str]]) -> None:
    positive, units = [one for one, _ in cases], [unit for _, unit in cases]
    value = metrics.auroc_by_unit([0.5] * len(cases), positive, units)(range(len(cases)))
    assert metrics.has_both_answers(positive, units) == (value == 0.5)


def test_a_field_counts_if_name_and_text_are_correct() -> None:
    truth = "Modality: MRI. Sequence: T1-weighted."
    assert metrics.field_f1([truth], [truth]) == 1
    assert metrics.field_f1(["Modality: MRI. Sequence: FLAIR."], [truth]) == 0.5
    assert metrics.field_f1(["words"], [truth]) == 0


@pytest.mark.parametrize(
    ("text", "agrees"),
    [
        ("one lesion, left, in white matter, 12 mm, 1.0 ml", True),
        ("one lesion, left, in white matter, 8 mm, 1.2 ml", True),
        ("one lesion, left, in white matter, 12.1 mm, 1.0 ml", False),  # more than a fifth
        ("one lesion, right, in white matter, 10 mm, 1.0 ml", False),
        ("two lesions, left, in white matter, 10 mm, 1.0 ml", False),
        ("one lesion, left, in white matter, 10 ml, 1.0 mm", False),
        ("one lesion, left, in white matter, 10 mm", False),
    ],
)
def test_sizes_agree_within_a_fifth_and_words_exactly(text: str, agrees: bool) -> None:
    truth = "one lesion, left, in white matter, 10 mm, 1.0 ml"
    assert metrics.same_statement(text, truth, metrics.SIZE_TOLERANCE) == agrees
    report, true_report = (f"Masses or suspicious lesions: {one}." for one in (text, truth))
    assert metrics.field_f1([report], [true_report], metrics.SIZE_TOLERANCE) == agrees
    assert metrics.field_f1([report], [true_report]) == 0


def test_equal_texts_score_one() -> None:
    text = ["one lesion in the left hemisphere of the brain"]
    assert metrics.bleu(text, text) == pytest.approx(1) and metrics.rouge_l(text, text) == pytest.approx(1)
    assert metrics.bleu(["a completely different sentence with other words"], text) < 0.1


volume_edges = st.tuples(st.integers(0, 200), st.integers(1, 50)).map(lambda pair: (pair[0], pair[0] + pair[1]))
volume_boxes = st.tuples(volume_edges, volume_edges, volume_edges).map(
    lambda sides: VolumeBox("lesion", sides[0][0], sides[1][0], sides[0][1], sides[1][1], sides[2][0], sides[2][1])
)


@given(volume_boxes, volume_boxes)
def test_the_iou_of_volume_boxes_is_that_of_their_voxels(first: VolumeBox, second: VolumeBox) -> None:
    """MONAI's box_iou is the reference."""
    corners = [torch.tensor([[b.slice0, b.row0, b.col0, b.slice1, b.row1, b.col1]]) for b in (first, second)]
    assert metrics.iou(first, second) == pytest.approx(float(box_iou(*corners)), abs=1e-6)


def test_volume_boxes_match_from_the_given_iou_on() -> None:
    true = VolumeBox("lesion", 0, 0, 100, 100, 0, 100)
    moved = VolumeBox("lesion", 0, 0, 100, 100, 40, 140)  # IoU 60 / 140
    assert metrics.detection_f1([[moved]], [[true]], 0.3) == 1 and metrics.detection_f1([[moved]], [[true]], 0.5) == 0


def test_the_froc_curve_is_read_at_one_false_box_per_volume() -> None:
    """Two volumes, three findings: at two false boxes in all (0.95, 0.7), the findings of confidence 0.9 and 0.8 count."""
    shape = (20, 32, 32)
    true = [VolumeBox("lesion", 40, 40, 80, 80, 51, 102), VolumeBox("lesion", 160, 160, 200, 200, 51, 102)]

    def outline(row: int, column: int, confidence: float) -> VolumeOutline:
        return VolumeOutline((5, 7), (row, row + 2), (column, column + 2), confidence, "any name")

    first = [outline(6, 6, 0.9), outline(21, 21, 0.3), outline(0, 28, 0.95)]
    second = [outline(6, 6, 0.8), outline(28, 0, 0.7), outline(28, 6, 0.5)]
    hits = [metrics.froc_hits(first, true, shape), metrics.froc_hits(second, true[:1], shape)]
    assert [sorted(one.true.round(2)) for one in hits] == [[0.3, 0.9], [0.8]]
    assert metrics.froc_sensitivity(hits, 1.0) == pytest.approx(2 / 3)
    assert metrics.froc_sensitivity(hits, 1.5) == pytest.approx(1.0)
    assert metrics.froc_sensitivity([metrics.froc_hits([], true, shape)], 1.0) == 0
    assert metrics.froc_sensitivity([metrics.froc_hits([], [], shape)], 1.0) == 1


def test_a_found_lesion_counts_at_its_only_confidence() -> None:
    """MONAI's curve alone omits the lowest confidence, which is that of a missed lesion if there is one."""
    shape, true = (20, 32, 32), VolumeBox("lesion", 40, 40, 80, 80, 51, 102)
    assert metrics.froc_sensitivity([metrics.froc_hits([VolumeOutline.of_box(true, shape)], [true], shape)], 1.0) == 1


def test_a_patient_counts_once_with_the_largest_score() -> None:
    scores, truth, patients = [0.9, 0.1, 0.4, 0.2], [True, False, False, False], ["a", "a", "b", "b"]
    score = metrics.auroc_by_unit(scores, truth, patients)
    assert score(range(4)) == 1 and score([1, 2]) != score([1, 2])  # one class: not a number


def test_the_sides_of_lesions_are_read_off_the_findings_alone() -> None:
    report = "Modality: MRI. Symmetry and structural integrity: left larger. Masses or suspicious lesions: one lesion, right, 8 mm."
    assert metrics.lesion_sides(report) == {"right"}
    assert metrics.same_sides(report, report.replace("8 mm", "9 mm")) and not metrics.same_sides(
        report, report.replace("right", "left")
    )


def test_findings_of_two_names_on_either_side_are_on_the_same_sides_as_bilateral_ones_of_one_name() -> None:
    """The name of a finding is a matter of the fields, not of its side."""
    truth = "Masses or suspicious lesions: two lesions, bilateral, largest in white matter, 18 mm."
    both = "Masses or suspicious lesions: one lesion, left, 18 mm; one tumor, right, 9 mm."
    assert metrics.same_sides(both, truth) and not metrics.same_sides(both.replace("right", "left"), truth)


def test_a_field_strength_is_no_field_of_the_template() -> None:
    text = "Modality: MRI. Plane: axial."
    assert metrics.field_f1([f"{text} Field strength: 3.0 T."], [text]) == 1
