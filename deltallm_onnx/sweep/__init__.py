"""Pareto fronts of quality, bytes and time: a study of many settings, which any number of machines may share."""
