"""Images in, host batches out: sources, augmentation and loaders. Importing it costs nothing; torchvision is imported on use."""
