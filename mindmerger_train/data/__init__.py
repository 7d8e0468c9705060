"""Where training data comes from: published sets read from folders, and a generator of word problems."""
