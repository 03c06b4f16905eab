"""Reading and writing weights in files: this project's own format here, one file a foreign format."""
