"""What a config needs and gives on a machine, here or elsewhere: arithmetic alone, without torch."""
