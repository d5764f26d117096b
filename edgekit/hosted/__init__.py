"""Answer one question: how does a model on a server take part, hosted here or far away?

Here: http_server.py puts a loaded model on a port. Far away: recording.py and replay.py keep its
answers, latency.py tells its time from the network's. Talking to a server is runtime/server.py's.
"""
