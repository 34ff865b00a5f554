"""Where and how a loop runs: device, precision, parts of a batch, processes.

A loop is written once, for one process and the whole batch; the engine decides on which device it runs, in
which precision, in how many parts and with how many other processes. What an image meets depends on the seed
alone: a loop draws all random numbers for the whole batch on the processor, and each process then works on
its own parts of it.
"""

from featlens_trainers.engine.memory import memory_advice
from featlens_trainers.engine.running import Engine, frozen, make_engine

__all__ = ["Engine", "frozen", "make_engine", "memory_advice"]
