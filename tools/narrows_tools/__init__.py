"""Everything around a server: the command line, the judging of answers, the doctor, the splitting of documents.

It imports the runtime, never the other way round. What needs the exporter loads it when a command is run.
"""
