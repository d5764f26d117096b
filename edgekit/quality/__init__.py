"""Quality of answers: distance from the float model, task suites, and the ship verdict."""
