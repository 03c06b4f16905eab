"""Where images come from: one file a kind of data set, and what several of them share."""
