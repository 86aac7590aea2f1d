"""What is minimised, by which steps, and how a training is kept and resumed."""
