"""Pictures of the report, by matplotlib: each takes a part of the report's data and nothing else."""
