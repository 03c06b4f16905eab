"""What is done to images: crops, and random changes for training."""
