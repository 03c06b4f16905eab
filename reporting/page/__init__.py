"""The sections of report.html: each makes HTML from a story, or nothing where the story has nothing of it."""
