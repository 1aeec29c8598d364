"""DICOM MR images, classic, mosaic and enhanced (PS3.3 A.4, A.36), segmentations (A.51) and structure sets (A.19)."""
