"""Names of the files that ingestion keeps beside the data of a dataset."""

MANIFEST, QUARANTINE, JOURNAL = "manifest.json", "quarantine.json", ".journal.jsonl"
