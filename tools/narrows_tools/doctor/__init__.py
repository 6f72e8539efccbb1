"""`narrows doctor`: what is installed, what this machine has, and whether a server could run here.

    machine.py    CPU, cores, memory, from the text of /proc and of control groups
    libraries.py  versions, conflicts; ONNX Runtime and FAISS, each tried in a process of its own (narrows.probe)
    report.py     all of it, and what speaks against running a server

It works on the base install: nothing of an extra is imported in this process unless it is there.
"""
