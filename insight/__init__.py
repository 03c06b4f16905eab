"""What a model does with pictures: its answers, where it looked, and how that is drawn."""
