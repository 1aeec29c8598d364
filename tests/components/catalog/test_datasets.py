"""The cards that come with OmniMRI: enough, of real datasets, each figure and fact with its source, layouts true to their files."""

import re
from collections import Counter

import pytest

from components.catalog.cards import FACTS, FIGURES, FOLDER, DatasetCard, filled, matches, packaged_cards

CARDS = {card.id: card for card in packaged_cards()}
REAL = {name: card for name, card in CARDS.items() if card.counts}
WANTED = [
    "fastmri-knee",
    "fastmri-brain",
    "fastmri-prostate",
    "fastmri-breast",
    "fastmri-plus-knee",
    "fastmri-plus-brain",
    "skm-tea",
    "cmrxrecon-2023",
    "calgary-campinas-359",
    "m4raw",
    "mrnet",
    "kneemri",
    "oai",
    "oai-zib",
    "brats-gli-2023",
    "brats-men-2023",
    "brats-ped-2023",
    "brats-met-2023",
    "upenn-gbm",
    "ucsf-pdgm",
    "ixi",
    "oasis-3",
    "adni",
    "abide-1",
    "adhd-200",
    "hcp-young-adult",
    "dhcp-neonatal",
    "openneuro",
    "isles-2022",
    "atlas-r2",
    "wmh-2017",
    "msseg-2016",
    "mslesseg",
    "crossmoda-2023",
    "feta-2022",
    "msd-brain",
    "msd-heart",
    "msd-hippocampus",
    "msd-prostate",
    "promise12",
    "prostatex",
    "pi-cai",
    "prostate158",
    "acdc",
    "mnms",
    "mnms-2",
    "lascarqs-2022",
    "la-2018",
    "emidec",
    "duke-breast-cancer-mri",
    "ispy1",
    "ispy2",
    "mama-mia",
    "advanced-mri-breast-lesions",
    "amos-mr",
    "chaos-mr",
    "lld-mmri",
    "liverhccseg",
    "atlas-liver",
    "duke-liver",
    "totalsegmentator-mri",
    "hnts-mrg-2024",
    "spider",
    "rsna-2024-lumbar",
    "spine-generic-multi-subject",
    "brain-tr-gammaknife",
    "yale-brain-metastases",
    "rsna-miccai-mgmt",
    "nyumets-brain",
    "uk-biobank",
]
"""Datasets that the design note wants in the catalogue."""


def test_there_are_more_than_sixty_and_none_that_was_asked_for_is_missing() -> None:
    assert len(REAL) >= 60
    assert set(WANTED) <= set(REAL)


def test_every_file_is_a_card() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(CARDS)


def test_no_two_cards_are_of_one_dataset() -> None:
    assert [name for name, count in Counter(card.name for card in REAL.values()).items() if count > 1] == []
    places = Counter((card.landing_page, card.anatomy, card.version, tuple(card.layout.globs())) for card in REAL.values())
    assert [place for place, count in places.items() if count > 1] == []


@pytest.mark.parametrize("card", REAL.values(), ids=REAL)
def test_every_figure_and_every_fact_has_its_source(card: DatasetCard) -> None:
    assert {name for name in (*FIGURES, *FACTS) if filled(card, name)} == set(card.sources)


@pytest.mark.parametrize("card", REAL.values(), ids=REAL)
def test_every_card_says_where_to_ask_and_under_what_terms(card: DatasetCard) -> None:
    assert card.landing_page and card.access and card.anatomy
    assert card.licence or re.search(r"terms|rules|use|agreement", card.rights.lower())


@pytest.mark.parametrize("card", [card for card in REAL.values() if card.licence], ids=lambda card: card.id)
def test_the_terms_say_what_the_licence_says(card: DatasetCard) -> None:
    licence = str(card.licence)
    assert ("NC" not in licence) or "commercial" in card.rights.lower()
    assert ("-SA-" not in licence) or "same licence" in card.rights
    assert not re.match(r"CC BY", licence), "SPDX writes CC-BY-4.0"


@pytest.mark.parametrize(
    "card", [card for card in REAL.values() if card.layout.labels or card.layout.tissue_maps], ids=lambda c: c.id
)
def test_labels_come_with_the_task_and_with_their_structures(card: DatasetCard) -> None:
    assert "segmentation" in card.tasks
    assert set(card.layout.tissue_maps) <= set(card.label_map)


def test_sequences_are_named_alike_everywhere() -> None:
    """T1-weighted, not T1 or T1w: they are matched with what readers say."""
    named = {one for card in CARDS.values() for one in (*card.sequences, *card.layout.sequences.values(), *card.layout.channels)}
    assert not {one for one in named if re.fullmatch(r"(?i)(t1|t2|pd)w?|dw|dti", one)} - {"DTI"}


PATHS = [
    # card, path as its source gives it, what it is, patient, case
    ("brats-men-2023", "T/BraTS-MEN-00004-000/BraTS-MEN-00004-000-t1c.nii.gz", "image", "BraTS-MEN-00004", "BraTS-MEN-00004-000"),
    ("brats-men-2023", "T/BraTS-MEN-00004-000/BraTS-MEN-00004-000-seg.nii.gz", "label", "BraTS-MEN-00004", "BraTS-MEN-00004-000"),
    ("acdc", "training/patient001/patient001_frame01.nii.gz", "image", "patient001", "patient001_frame01"),
    ("acdc", "training/patient001/patient001_frame01_gt.nii.gz", "label", "patient001", "patient001_frame01"),
    ("acdc", "training/patient001/patient001_4d.nii.gz", "left out", None, None),
    ("mnms", "Training/Labeled/A0S9V9/A0S9V9_sa.nii.gz", "image", "A0S9V9", None),
    ("mnms", "Training/Labeled/A0S9V9/A0S9V9_sa_gt.nii.gz", "label", "A0S9V9", None),
    ("emidec", "emidec-dataset-1.0.1/Case_N006/Images/Case_N006.nii.gz", "image", "Case_N006", None),
    ("emidec", "emidec-dataset-1.0.1/Case_N006/Contours/Case_N006.nii.gz", "label", "Case_N006", None),
    (
        "atlas-r2",
        "Training/R001/sub-r001s001/ses-1/anat/sub-r001s001_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz",
        "image",
        "sub-r001s001",
        None,
    ),
    (
        "atlas-r2",
        "R001/sub-r001s001/ses-1/anat/sub-r001s001_ses-1_space-MNI152NLin2009aSym_label-L_desc-T1lesion_mask.nii.gz",
        "label",
        "sub-r001s001",
        None,
    ),
    ("isles-2022", "sub-strokecase0001/ses-0001/dwi/sub-strokecase0001_ses-0001_adc.nii.gz", "image", "sub-strokecase0001", None),
    (
        "isles-2022",
        "derivatives/sub-strokecase0001/ses-0001/sub-strokecase0001_ses-0001_msk.nii.gz",
        "label",
        "sub-strokecase0001",
        None,
    ),
    ("feta-2022", "sub-041/anat/sub-041_rec-irtk_T2w.nii.gz", "image", "sub-041", None),
    ("feta-2022", "sub-041/anat/sub-041_rec-irtk_dseg.nii.gz", "label", "sub-041", None),
    ("hnts-mrg-2024", "train/2/midRT/2_midRT_T2.nii.gz", "image", "2", "2_midRT"),
    ("hnts-mrg-2024", "train/2/midRT/2_midRT_mask.nii.gz", "label", "2", "2_midRT"),
    ("hnts-mrg-2024", "train/2/midRT/2_preRT_T2_registered.nii.gz", "left out", None, None),
    ("crossmoda-2023", "training/TrainingSource/crossmoda2023_etz_1_ceT1.nii.gz", "image", "crossmoda2023_etz_1", None),
    ("crossmoda-2023", "training/TrainingSource/crossmoda2023_etz_1_Label.nii.gz", "label", "crossmoda2023_etz_1", None),
    ("msd-brain", "imagesTs/BRATS_485.nii.gz", "image", "BRATS_485", None),
    ("msd-brain", "labelsTr/BRATS_001.nii.gz", "label", "BRATS_001", None),
    ("msd-hippocampus", "imagesTr/hippocampus_001.nii.gz", "image", "hippocampus_001", None),
    ("msd-heart", "labelsTr/la_003.nii.gz", "label", "la_003", None),
    ("atlas-liver", "imagesTr/im01.nii.gz", "image", "01", None),
    ("atlas-liver", "labelsTr/im01.nii.gz", "label", "01", None),
    ("pi-cai", "images/10417/10417_1000424_t2w.mha", "image", "10417", "10417_1000424"),
    ("pi-cai", "csPCa_lesion_delineations/human_expert/resampled/10417_1000424.nii.gz", "label", "10417", "10417_1000424"),
    ("pi-cai", "csPCa_lesion_delineations/AI/Bosma22a/10417_1000424.nii.gz", "left out", None, None),
    ("promise12", "training_data/Case00.mhd", "image", "Case00", None),
    ("promise12", "training_data/Case00_segmentation.mhd", "label", "Case00", None),
    ("spider", "images/1_t1.mha", "image", "1", "1_t1"),
    ("spider", "masks/1_t1.mha", "label", "1", "1_t1"),
    ("totalsegmentator-mri", "s0001/mri.nii.gz", "image", "s0001", None),
    ("totalsegmentator-mri", "s0001/segmentations/aorta.nii.gz", "label", "s0001", None),
    ("totalsegmentator-mri", "s0001/segmentations/autochthon_left.nii.gz", "left out", None, None),
    ("ucsf-pdgm", "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_ADC.nii.gz", "image", "UCSF-PDGM-0004", None),
    ("ucsf-pdgm", "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_tumor_segmentation.nii.gz", "label", "UCSF-PDGM-0004", None),
    ("ucsf-pdgm", "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_brain_segmentation.nii.gz", "left out", None, None),
    ("rhuh-gbm", "RHUH-0001/0/RHUH-0001_0_t1ce.nii.gz", "image", "RHUH-0001", "RHUH-0001_0"),
    ("rhuh-gbm", "RHUH-0001/0/RHUH-0001_0_segmentations.nii.gz", "label", "RHUH-0001", "RHUH-0001_0"),
    ("mslesseg", "train/P1/T1/P1_T1_FLAIR.nii.gz", "image", "P1", "P1_T1"),
    ("mslesseg", "train/P1/T1/P1_T1_MASK.nii.gz", "label", "P1", "P1_T1"),
    ("lascarqs-2022", "task1/train_data/train_1/enhanced.nii.gz", "image", "task1/train_data/train_1", None),
    ("lascarqs-2022", "task1/train_data/train_1/scarSegImgM.nii.gz", "label", "task1/train_data/train_1", None),
    ("myops-2020", "train25/myops_training_101_DE.nii.gz", "image", "myops_training_101", None),
    ("myops-2020", "train25_myops_gd/myops_training_101_gd.nii.gz", "label", "myops_training_101", None),
    ("ivdm3seg", "01/01_wat.nii", "image", "01", None),
    ("ivdm3seg", "01/01_Labels.nii", "label", "01", None),
    ("mrbrains-2013", "TrainingData/1/T1_IR.nii", "image", "TrainingData/1", None),
    ("mrbrains-2013", "TrainingData/1/LabelsForTesting.nii", "label", "TrainingData/1", None),
    ("hvsmr-2016", "hvsmr_2016_testing/testing_axial_full_pat10.nii.gz", "image", "pat10", None),
    ("spine-generic-multi-subject", "sub-amu01/anat/sub-amu01_T2w.nii.gz", "image", "sub-amu01", "sub-amu01_T2w"),
    (
        "spine-generic-multi-subject",
        "derivatives/labels/sub-amu01/anat/sub-amu01_T2w_label-SC_seg.nii.gz",
        "label",
        "sub-amu01",
        "sub-amu01_T2w",
    ),
    ("spine-generic-multi-subject", "sourcedata/sub-amu01/anat/sub-amu01_T2w.nii.gz", "left out", None, None),
    ("fastmri-knee", "singlecoil_train/file1000001.h5", "image", "file1000001", None),
    ("mrnet", "train/axial/0000.npy", "image", "0000", None),
    ("openneuro", "sub-01/anat/sub-01_T1w.nii.gz", "image", "sub-01", None),
    ("wmh-2017", "training/Amsterdam/GE3T/100/pre/FLAIR.nii.gz", "image", "training/Amsterdam/GE3T/100", None),
    ("wmh-2017", "training/Amsterdam/GE3T/100/wmh.nii.gz", "label", "training/Amsterdam/GE3T/100", None),
    ("wmh-2017", "additional_annotations/observer_o3/training/Utrecht/0/result.nii.gz", "left out", None, None),
]


@pytest.mark.parametrize(("name", "path", "role", "patient", "case"), PATHS, ids=[f"{one[0]}-{one[2]}" for one in PATHS])
def test_a_layout_tells_the_files_of_its_dataset_apart(
    name: str, path: str, role: str, patient: str | None, case: str | None
) -> None:
    layout = CARDS[name].layout
    label = matches(path, [*layout.labels, *layout.tissue_maps.values()])
    assert ("left out" if layout.leaves_out(path) else "label" if label else "image") == role
    if patient is not None:
        found = re.search(str(layout.patient), path)
        assert found and found[1] == patient
    if case is not None:
        found = re.search(str(layout.case), path)
        assert found and found[1] == case


@pytest.mark.parametrize(
    ("name", "path", "sequence"),
    [
        ("brats-gli-2023", "BraTS-GLI-00001-000-t1c.nii.gz", "T1-weighted post-contrast"),
        ("brats-gli-2023", "BraTS-GLI-00001-000-t1n.nii.gz", "T1-weighted"),
        ("rhuh-gbm", "RHUH-0001_0_t1ce.nii.gz", "T1-weighted post-contrast"),
        ("rhuh-gbm", "RHUH-0001_0_t1.nii.gz", "T1-weighted"),
        ("ucsf-pdgm", "UCSF-PDGM-0004_T1c.nii.gz", "T1-weighted post-contrast"),
        ("ucsf-pdgm", "UCSF-PDGM-0004_T1.nii.gz", "T1-weighted"),
        ("mrbrains-2013", "T1.nii", "T1-weighted"),
        ("mrbrains-2013", "T1_IR.nii", "T1-weighted inversion recovery"),
        ("mslesseg", "P1_T1_FLAIR.nii.gz", "FLAIR"),
        ("mslesseg", "P1_T1_T2.nii.gz", "T2-weighted"),
    ],
)
def test_only_one_sequence_is_read_from_a_file_name(name: str, path: str, sequence: str) -> None:
    assert [kind for text, kind in CARDS[name].layout.sequences.items() if text in path] == [sequence]
