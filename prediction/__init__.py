"""Prediction on a user's own pictures with a saved model: which pictures, the answers, the attention, and a local web page."""
