"""mm-serve: the OpenAI API, an explanation of the gate, metrics and a page for browsers, over one loaded bundle.

`engine` shares the model between requests; `requests` and `responses` are what is said over HTTP; `guard`, `bodies` and
`server` keep others out and bound what they may cost; `app` puts it together. Nothing here is imported by the rest of the
runtime, and nothing here opens a connection of its own.
"""
