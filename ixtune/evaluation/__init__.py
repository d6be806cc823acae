"""Evaluation: questions, answers, scores with intervals, controls, comparison, chat."""
