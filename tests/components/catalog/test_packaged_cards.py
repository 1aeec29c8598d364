"""Packaged cards: number of real datasets, sources of all statistics and facts, layouts that match the published files."""

import re
from collections import Counter

import pytest

from components.catalog.card_files import FOLDER, packaged_cards
from components.catalog.cards import SOURCED_FACTS, STATISTICS, DatasetCard, is_filled
from components.catalog.layout import matches_any

CARDS = {card.id: card for card in packaged_cards()}
REAL = {name: card for name, card in CARDS.items() if card.has_real_patients}
REQUIRED = [
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
"""Datasets that the catalog must contain."""


def test_the_catalog_has_at_least_sixty_real_datasets_and_all_required_ones() -> None:
    assert len(REAL) >= 60
    assert set(REQUIRED) <= set(REAL)


def test_every_file_in_the_folder_is_a_card() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(CARDS)


def test_no_two_cards_describe_the_same_dataset() -> None:
    assert [name for name, count in Counter(card.name for card in REAL.values()).items() if count > 1] == []
    identities = Counter((card.landing_page, card.anatomy, card.version, tuple(card.layout.globs())) for card in REAL.values())
    assert [identity for identity, count in identities.items() if count > 1] == []


@pytest.mark.parametrize("card", REAL.values(), ids=REAL)
def test_every_statistic_and_fact_has_a_source(card: DatasetCard) -> None:
    assert {name for name in (*STATISTICS, *SOURCED_FACTS) if is_filled(card, name)} == set(card.sources)


@pytest.mark.parametrize("card", REAL.values(), ids=REAL)
def test_every_card_gives_landing_page_access_and_terms(card: DatasetCard) -> None:
    assert card.landing_page and card.access and card.anatomy
    assert card.licence or re.search(r"terms|rules|use|agreement", card.rights.lower())


@pytest.mark.parametrize("card", [card for card in REAL.values() if card.licence], ids=lambda card: card.id)
def test_the_rights_agree_with_the_license(card: DatasetCard) -> None:
    license_name = str(card.licence)
    assert ("NC" not in license_name) or "commercial" in card.rights.lower()
    assert ("-SA-" not in license_name) or "same licence" in card.rights
    assert not re.match(r"CC BY", license_name), "SPDX writes CC-BY-4.0"


@pytest.mark.parametrize(
    "card", [card for card in REAL.values() if card.layout.labels or card.layout.tissue_maps], ids=lambda c: c.id
)
def test_cards_with_labels_declare_segmentation_and_their_structures(card: DatasetCard) -> None:
    assert "segmentation" in card.tasks
    assert set(card.layout.tissue_maps) <= set(card.label_map)


def test_sequence_names_are_consistent() -> None:
    """Use T1-weighted, not T1 or T1w: these names are matched with those from the readers."""
    names = {name for card in CARDS.values() for name in (*card.sequences, *card.layout.sequences.values(), *card.layout.channels)}
    assert not {name for name in names if re.fullmatch(r"(?i)(t1|t2|pd)w?|dw|dti", name)} - {"DTI"}


PATHS = [
    # card, published path, role, patient, case
    ("brats-men-2023", "T/BraTS-MEN-00004-000/BraTS-MEN-00004-000-t1c.nii.gz", "image", "BraTS-MEN-00004", "BraTS-MEN-00004-000"),
    ("brats-men-2023", "T/BraTS-MEN-00004-000/BraTS-MEN-00004-000-seg.nii.gz", "label", "BraTS-MEN-00004", "BraTS-MEN-00004-000"),
    ("acdc", "training/patient001/patient001_frame01.nii.gz", "image", "patient001", "patient001_frame01"),
    ("acdc", "training/patient001/patient001_frame01_gt.nii.gz", "label", "patient001", "patient001_frame01"),
    ("acdc", "training/patient001/patient001_4d.nii.gz", "excluded", None, None),
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
    ("hnts-mrg-2024", "train/2/midRT/2_preRT_T2_registered.nii.gz", "excluded", None, None),
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
    ("pi-cai", "csPCa_lesion_delineations/AI/Bosma22a/10417_1000424.nii.gz", "excluded", None, None),
    ("promise12", "training_data/Case00.mhd", "image", "Case00", None),
    ("promise12", "training_data/Case00_segmentation.mhd", "label", "Case00", None),
    ("spider", "images/1_t1.mha", "image", "1", "1_t1"),
    ("spider", "masks/1_t1.mha", "label", "1", "1_t1"),
    ("totalsegmentator-mri", "s0001/mri.nii.gz", "image", "s0001", None),
    ("totalsegmentator-mri", "s0001/segmentations/aorta.nii.gz", "label", "s0001", None),
    ("totalsegmentator-mri", "s0001/segmentations/autochthon_left.nii.gz", "excluded", None, None),
    ("ucsf-pdgm", "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_ADC.nii.gz", "image", "UCSF-PDGM-0004", None),
    ("ucsf-pdgm", "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_tumor_segmentation.nii.gz", "label", "UCSF-PDGM-0004", None),
    ("ucsf-pdgm", "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_brain_segmentation.nii.gz", "excluded", None, None),
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
    ("spine-generic-multi-subject", "sourcedata/sub-amu01/anat/sub-amu01_T2w.nii.gz", "excluded", None, None),
    ("fastmri-knee", "singlecoil_train/file1000001.h5", "image", "file1000001", None),
    ("mrnet", "train/axial/0000.npy", "image", "0000", None),
    ("openneuro", "sub-01/anat/sub-01_T1w.nii.gz", "image", "sub-01", None),
    ("wmh-2017", "training/Amsterdam/GE3T/100/pre/FLAIR.nii.gz", "image", "training/Amsterdam/GE3T/100", None),
    ("wmh-2017", "training/Amsterdam/GE3T/100/wmh.nii.gz", "label", "training/Amsterdam/GE3T/100", None),
    ("wmh-2017", "additional_annotations/observer_o3/training/Utrecht/0/result.nii.gz", "excluded", None, None),
]


@pytest.mark.parametrize(
    ("name", "path", "role", "patient", "case"), PATHS, ids=[f"{name}-{role}" for name, _, role, _, _ in PATHS]
)
def test_a_layout_assigns_role_patient_and_case_to_published_paths(
    name: str, path: str, role: str, patient: str | None, case: str | None
) -> None:
    layout = CARDS[name].layout
    label = matches_any(path, [*layout.labels, *layout.tissue_maps.values()])
    assert ("excluded" if layout.excludes(path) else "label" if label else "image") == role
    if patient is not None:
        match = re.search(str(layout.patient), path)
        assert match and match[1] == patient
    if case is not None:
        match = re.search(str(layout.case), path)
        assert match and match[1] == case


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
def test_exactly_one_sequence_matches_a_file_name(name: str, path: str, sequence: str) -> None:
    assert [kind for text, kind in CARDS[name].layout.sequences.items() if text in path] == [sequence]
