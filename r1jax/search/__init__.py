"""Searching for a response, step by step: re-ranking, guided beams, trees.

What a search decides is pure host logic (`best_of_n`, `beam`, `mcts`): generators that ask for
steps and scores (`requests`) and never see a device. `engine` answers the requests of many
searches together.
"""
