"""How good are the answers, and against what?"""
