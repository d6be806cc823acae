"""Answers and their scores: generation, exact match with intervals, controls, comparison."""
