"""Find thresholds for a budget: measure what held keys cost per layer and head, and spend it where it hurts least."""
