"""How robust is a naive model?"""
