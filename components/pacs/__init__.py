"""Image archives (PACS): fetch series by DICOMweb (PS3.18) or DIMSE (PS3.7), receive them, and store results back."""
