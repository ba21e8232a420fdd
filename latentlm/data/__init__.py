"""Data: documents, packed into batches (README of the flow: docs/tour.md)."""
