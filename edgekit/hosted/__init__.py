"""Models on a server: hosting one here, and recording and replaying a distant one's answers.

http_server.py hosts a loaded model on a port. recording.py and replay.py keep the answers of a
server; latency.py separates its time from the network's. runtime/server.py is the client.
"""
