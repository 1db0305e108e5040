"""The skills graph, whose edges measure how much a training skill helps an evaluation skill."""
