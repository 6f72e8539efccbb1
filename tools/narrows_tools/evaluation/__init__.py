"""Judging retrieval: questions with their answers, what counts as found, and how two rankings compare.

Needs the extra `narrows[eval]`; nothing here touches PyTorch, and only `narrows_tools.evaluation.search` touches ONNX
Runtime and FAISS, and only when it searches by itself instead of asking a server.
"""
