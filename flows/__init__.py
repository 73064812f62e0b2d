"""Prefect flows: the DVC pipeline on a schedule, with parallel siblings, cancellation and a report of what ran."""
