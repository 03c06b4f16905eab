"""What reports show of a run, its machine and its model: timeline, memory, answers, where the model looks."""
